"""Typed settings: `load()` reads params.yaml and reports every problem in it at once, each with its line and path.

Every model is frozen and forbids unknown keys. Text is refused where a number belongs: PyYAML reads `3e-4` as text and
DVC reads it as a number, so the two would disagree about what was trained.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, model_validator

from pipeline.base import plugins
from pipeline.base.errors import SettingsError
from pipeline.settings import yaml_file
from pipeline.settings.base import Settings
from pipeline.settings.bundles import Bundle
from pipeline.settings.card import CardSettings
from pipeline.settings.compare import CompareSettings
from pipeline.settings.data import DataSettings
from pipeline.settings.distill import DistillSettings
from pipeline.settings.general import GeneralSettings
from pipeline.settings.measure import MeasureSettings
from pipeline.settings.problems import MAX_PROBLEMS_SHOWN, describe_all
from pipeline.settings.quantize import QuantizeSettings
from pipeline.settings.report import ReportSettings
from pipeline.settings.student import GENERAL, RANDOM, TEACHER, InitSettings, StudentSettings
from pipeline.settings.targets import Target
from pipeline.settings.task import TaskSettings
from pipeline.settings.teacher import TeacherSettings

MAX_MESSAGE = 1_000  # characters; a key in the file may be as long as the file


class Params(Settings):
    """The whole of params.yaml."""

    seed: int = Field(default=0, ge=0, lt=2**31, description="The one source of randomness.")
    threads: int = Field(
        default=2, ge=1, le=256, description="Threads for training: another number gives other last digits."
    )
    task: TaskSettings = Field(default=TaskSettings(), description="What is learned.")
    data: DataSettings = Field(default=DataSettings(), description="Where the examples come from.")
    teacher: TeacherSettings = Field(default=TeacherSettings(), description="The model that teaches.")
    student: StudentSettings = Field(default=StudentSettings(), description="The model that ships.")
    general: GeneralSettings = Field(default=GeneralSettings(), description="Distillation before the task.")
    distill: DistillSettings = Field(default=DistillSettings(), description="How the student learns.")
    quantize: QuantizeSettings = Field(default=QuantizeSettings(), description="The quantization plan.")
    targets: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], Target] = Field(
        description="Deployment rows by name.", min_length=1
    )
    bundles: dict[str, Bundle] = Field(default={}, description="Folders for apps, by platform.")
    card: CardSettings = Field(default=CardSettings(), description="What only a person knows of the model.")
    measure: MeasureSettings = Field(default=MeasureSettings(), description="How latency is measured.")
    report: ReportSettings = Field(default=ReportSettings(), description="What reports may show.")
    compare: CompareSettings = Field(default=CompareSettings(), description="What `decant compare` calls a regression.")

    @model_validator(mode="after")
    def _bundles_have_targets(self) -> Self:
        for platform, bundle in self.bundles.items():
            if bundle.target not in self.targets:
                raise ValueError(
                    f"bundles.{platform}.target is '{bundle.target}'{plugins.nearest(bundle.target, self.targets)}"
                )
        return self

    @property
    def is_general(self) -> bool:
        """Whether the student begins as one that was distilled on general text."""
        return self.student.init.source == GENERAL

    @property
    def origin(self) -> tuple[str, str | None]:
        """The model whose tokens the student reads and whose family it is of: its name, and its revision."""
        if not self.is_own_origin:
            return self.teacher.model, self.teacher.revision
        return self._init.source, self._init.revision

    @property
    def is_own_origin(self) -> bool:
        """Whether the student is copied from a model by its name; the teacher's own base is another one than it."""
        return self._init.source not in (TEACHER, RANDOM)

    @property
    def _init(self) -> InitSettings:
        return self.general.init if self.is_general else self.student.init

    @model_validator(mode="after")
    def _general_can_be_made(self) -> Self:
        if self.general.init.source == GENERAL:
            raise ValueError("general.init.from is 'general', which it describes; use teacher, random, or a model")
        if self.is_general and not self.general.texts:
            raise ValueError(
                "student.init.from is 'general', but general.texts names no file; name text to distil on, or set "
                "student.init.from to teacher"
            )
        return self

    @model_validator(mode="after")
    def _token_is_trained(self) -> Self:
        if self.student.distillation_token and "distillation_token" not in self.distill.losses:
            raise ValueError(
                "student.distillation_token is true, but no loss trains it; add distill.losses.distillation_token"
            )
        return self


def load(path: Path | str = "params.yaml", *, with_plugins: bool = True) -> Params:
    """The settings in a file.

    Args:
        path: a params.yaml.
        with_plugins: also check the settings that losses and exporters define. That imports them, and with them torch;
            stages that only read records pass False, and the stages before any training pass True.

    Raises:
        SettingsError: with every problem found, one a line.
    """
    path = Path(path)
    values, lines, problems = yaml_file.read_file(path)
    params = None
    if values is not None:
        try:
            # JSON mode keeps strict types and still takes a YAML list for a tuple.
            params = Params.model_validate_json(json.dumps(values))
        except ValidationError as error:
            problems += describe_all(Params, values, error)
        problems += _unknown_plugins(values)
        if with_plugins or problems:
            problems += _plugin_problems(values)
    if problems or params is None:
        raise SettingsError(_report(path, problems, lines))
    return params


def read_values(path: Path) -> dict[str, Any]:
    """What stands in a settings file, as plain values that nothing has checked yet.

    Raises:
        SettingsError: it cannot be read as YAML, or says something twice.
    """
    values, lines, problems = yaml_file.read_file(path)
    if problems:
        raise SettingsError(_report(path, problems, lines))
    return values


def json_schema() -> dict[str, Any]:
    """The JSON schema of params.yaml, plug-ins included, for editors."""
    schema = Params.model_json_schema(by_alias=True)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "Decant params.yaml"
    losses = {name: _inlined(plugins.load("loss", name).Params.model_json_schema()) for name in plugins.names("loss")}
    for section in ("DistillSettings", "GeneralSettings"):
        schema["$defs"][section]["properties"]["losses"].update(
            properties=losses, additionalProperties=False, type="object"
        )
    schema["$defs"]["TaskSettings"]["properties"]["name"]["enum"] = plugins.names("task")
    target = schema["$defs"]["Target"]["properties"]
    for kind in ("format", "runtime", "device"):
        target[kind]["enum"] = plugins.names(kind)
    schema["properties"]["bundles"]["propertyNames"] = {"enum": plugins.names("bundle")}
    target["optional_checks"]["items"] = {"enum": plugins.names("check"), "type": "string"}
    return schema


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """A plug-in's schema without its own $defs, which would be looked up in the outer document."""
    definitions = schema.pop("$defs", {})
    text = json.dumps(schema)
    for name, definition in definitions.items():
        text = text.replace(json.dumps({"$ref": f"#/$defs/{name}"}), json.dumps(definition))
    return json.loads(text)


def _report(path: Path, problems: list[tuple[str, str]], lines: dict[str, int]) -> str:
    first: dict[str, str] = {}
    for where, what in problems:  # one message a place: what was wrong first is what has to be mended
        first.setdefault(where, what)
    out = []
    for where, what in list(first.items())[:MAX_PROBLEMS_SHOWN]:
        line = lines.get(where) or lines.get(where.rpartition(".")[0])
        where = where if len(where) <= 200 else f"{where[:200]}…"
        message = f":{line}: {where}: {what}" if line and where else f": {what}"
        out.append(f"{path}{message[:MAX_MESSAGE]}".replace("\n", "\\n"))
    if len(first) > MAX_PROBLEMS_SHOWN:
        out.append(f"{path}: ... and {len(first) - MAX_PROBLEMS_SHOWN} more")
    return "\n".join(out)


# --- plug-ins -----------------------------------------------------------------------------------------------------


def _unknown_plugins(values: Any) -> list[tuple[str, str]]:
    """Names that no file implements, from values that need not be valid otherwise."""
    known = {kind: plugins.names(kind) for kind in plugins.KINDS}
    wrong = [(where, kind, name) for where, kind, name in _named_plugins(values) if name not in known[kind]]
    # Searching the nearest name takes time, so it is spared for what nobody will read.
    return [
        (where, plugins.unknown(kind, name) if index < MAX_PROBLEMS_SHOWN else "")
        for index, (where, kind, name) in enumerate(wrong)
    ]


def _named_plugins(values: Any) -> Iterator[tuple[str, str, str]]:
    """(path, kind, name) wherever a plug-in is named."""
    task = _get(_get(values, "task"), "name")
    if isinstance(task, str):
        yield "task.name", "task", task
    for section in ("distill", "general"):
        for name in _items(_get(_get(values, section), "losses")):
            yield f"{section}.losses.{name}", "loss", name
    formats = _get(_get(values, "teacher"), "formats")
    for index, name in enumerate(formats if isinstance(formats, list) else []):
        if isinstance(name, str):
            yield f"teacher.formats.{index}", "format", name
    for target_name, target in _items(_get(values, "targets")).items():
        for kind in ("format", "runtime", "device"):
            if isinstance(_get(target, kind), str):
                yield f"targets.{target_name}.{kind}", kind, target[kind]
        checks = _get(target, "optional_checks")
        for index, name in enumerate(checks if isinstance(checks, list) else []):
            if isinstance(name, str):
                yield f"targets.{target_name}.optional_checks.{index}", "check", name
    for platform in _items(_get(values, "bundles")):
        yield f"bundles.{platform}", "bundle", platform


def _plugin_problems(values: Any) -> list[tuple[str, str]]:
    """Problems with the settings that losses and exporters define themselves."""
    problems = []
    for where, kind, name, settings in _plugin_settings(values):
        if name not in plugins.names(kind):
            continue
        model = plugins.load(kind, name).Params
        try:
            model.model_validate_json(json.dumps(settings))
        except ValidationError as error:
            for inner, message in describe_all(model, settings, error):
                problems.append((f"{where}.{inner}" if inner else where, message))
    return problems


def _plugin_settings(values: Any) -> Iterator[tuple[str, str, str, Any]]:
    """(path, kind, name, settings) of every section that a plug-in defines."""
    task = _get(values, "task")
    if isinstance(_get(task, "name"), str) and "options" in task:
        yield "task.options", "task", task["name"], task["options"]
    for section in ("distill", "general"):
        for name, settings in _items(_get(_get(values, section), "losses")).items():
            yield f"{section}.losses.{name}", "loss", name, settings
    for name, target in _items(_get(values, "targets")).items():
        if isinstance(_get(target, "format"), str) and "options" in target:
            yield f"targets.{name}.options", "format", target["format"], target["options"]
    for platform, bundle in _items(_get(values, "bundles")).items():
        if isinstance(bundle, dict) and "options" in bundle:
            yield f"bundles.{platform}.options", "bundle", platform, bundle["options"]


def _get(values: Any, key: str) -> Any:
    return values.get(key) if isinstance(values, dict) else None


def _items(values: Any) -> dict[str, Any]:
    return values if isinstance(values, dict) else {}
