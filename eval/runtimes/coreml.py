"""Core ML itself, on a Mac: what runs `.mlpackage` on phones. Elsewhere it says why not.

It answers one text a call, so a batch is a loop. Core ML chooses among CPU, GPU and Neural Engine, within the compute
units that it is given; on the CPU it has no setting for the number of threads.
"""

import platform
import sys
import warnings
from importlib import metadata, util
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, Self

import numpy as np

from eval.padding import cut, pad_further
from eval.runtimes import Arrays, check_names, settings_of
from pipeline.base.errors import ModelError, UnusableRuntimeError
from pipeline.base.records import Artefact

FORMATS = ("coreml",)
STAND_IN = None
# What Core ML may use, by the names of coremltools.ComputeUnit.
UNITS = ("ALL", "CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE")
SETTINGS = {"compute_units": "ALL"}
PLANS_SINCE = (14, 4)  # macOS
# classes of coremltools.models.compute_device -> words for people
DEVICES = {"MLCPUComputeDevice": "CPU", "MLGPUComputeDevice": "GPU", "MLNeuralEngineComputeDevice": "Neural Engine"}


def why_unusable() -> str | None:
    """The reason why it cannot run here, or None."""
    if sys.platform != "darwin":
        return f"Core ML runs on macOS only; this is {platform.system()} {platform.machine()}"
    return None if util.find_spec("coremltools") else "the package 'coremltools' is not installed"


def version() -> str:
    """The system that Core ML is a part of, and the package that calls it."""
    system = f"macOS {platform.mac_ver()[0]}, " if sys.platform == "darwin" else ""
    return f"{system}coremltools {metadata.version('coremltools')}"


def open_session(folder: Path, artefact: Artefact, threads: int) -> "CoreMlSession":
    """A session on the artefact's package.

    Args:
        folder: where the package is.
        artefact: what its card says.
        threads: ignored; Core ML has no such setting.

    Raises:
        UnusableRuntimeError: this machine cannot run Core ML, or its system is older than the package asks for.
        ModelError: the package is not what its card says.
    """
    reason = why_unusable()
    if reason is not None:
        raise UnusableRuntimeError(reason)
    return CoreMlSession(folder / artefact.file, artefact)


def variants(artefact: Artefact) -> dict[str, dict[str, str]]:
    """The other compute units."""
    chosen = settings_of(artefact, SETTINGS)["compute_units"]
    return {unit: {"compute_units": unit} for unit in UNITS if unit != chosen}


def compute_plan(folder: Path, artefact: Artefact) -> dict[str, dict[str, int]]:
    """Where Core ML means to run each operation: device -> kind of operation -> count. macOS 14.4 or later.

    Raises:
        UnusableRuntimeError: this is no Mac, or one without compute plans.
        ModelError: Core ML gives no plan for this package.
    """
    reason = why_unusable()
    if reason is not None:
        raise UnusableRuntimeError(reason)
    found = platform.mac_ver()[0]
    if tuple(int(part) for part in found.split(".")[:2]) < PLANS_SINCE:
        raise UnusableRuntimeError(f"compute plans need macOS {'.'.join(map(str, PLANS_SINCE))}, this is {found}")
    from coremltools.models.compute_plan import MLComputePlan

    units = _units(artefact)
    model = _load(folder / artefact.file, units)
    try:
        plan = MLComputePlan.load_from_path(path=model.get_compiled_model_path(), compute_units=units)
        operations = plan.model_structure.program.functions["main"].block.operations
    except (RuntimeError, ValueError, AttributeError, KeyError) as error:
        raise ModelError(f"{artefact.file}: Core ML gives no compute plan: {error}") from error
    places: dict[str, dict[str, int]] = {}
    for op in operations:
        usage = plan.get_compute_device_usage_for_mlprogram_operation(op)
        if usage is None:  # constants run nowhere
            continue
        name = type(usage.preferred_compute_device).__name__
        kinds = places.setdefault(DEVICES.get(name, name), {})
        kind = op.operator_name.rpartition(".")[2]  # 'ios18.linear'
        kinds[kind] = kinds.get(kind, 0) + 1
    return places


class CoreMlSession:
    """A loaded package. `load_ms` includes the compilation that Core ML does on the first load."""

    def __init__(self, path: Path, artefact: Artefact) -> None:
        started = perf_counter()
        self._model: Any = _load(path, _units(artefact))
        self.load_ms = 1e3 * (perf_counter() - started)
        description = self._model.get_spec().description
        self.input_names = tuple(value.name for value in description.input)
        outputs = tuple(value.name for value in description.output)
        check_names(path, self.input_names, outputs, artefact)
        self.output_names = artefact.number_outputs
        self._artefact = artefact

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """The outputs for a padded batch, float32.

        Padding goes up to the shortest length that the package takes; what stands there is masked.

        Raises:
            ModelError: longer than every length of the package.
        """
        given = pad_further(inputs, self.input_names, self._artefact)
        columns = {name: values.astype(np.int32) for name, values in given.items()}
        rows = [
            self._model.predict({name: values[i : i + 1] for name, values in columns.items()})
            for i in range(len(next(iter(columns.values()))))
        ]
        found = {
            name: np.concatenate([np.asarray(row[name], dtype=np.float32) for row in rows])
            for name in self.output_names
        }
        return cut(found, inputs[self.input_names[0]].shape[1], self._artefact)

    def close(self) -> None:
        """Frees the model."""
        self._model = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _units(artefact: Artefact) -> Any:
    """The compute units that the artefact's settings name."""
    import coremltools

    name = settings_of(artefact, SETTINGS)["compute_units"]
    if name not in UNITS:
        raise ModelError(
            f"{artefact.file}: found compute_units '{name}', known: {', '.join(UNITS)}; mend options.settings of its "
            "target and export it again"
        )
    return coremltools.ComputeUnit[name]


def _load(path: Path, units: Any) -> Any:
    """The package as a model that can predict; when Core ML refuses it, coremltools only warns."""
    import coremltools

    with warnings.catch_warnings():
        warnings.filterwarnings("error", "You will not be able to run predict", RuntimeWarning)
        try:
            return coremltools.models.MLModel(str(path), compute_units=units)
        except RuntimeWarning as warning:
            raise UnusableRuntimeError(
                f"{path.name}: Core ML of macOS {platform.mac_ver()[0]} cannot load it: "
                f"{str(warning).splitlines()[-1]}; "
                "if the system is older than options.deployment_target, update it or lower that"
            ) from warning
