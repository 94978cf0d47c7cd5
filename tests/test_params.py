"""Settings: every problem at once with its line, hostile files, and files in the repository that name every key."""

import json
import re
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from pipeline.base import plugins
from pipeline.base.errors import SettingsError
from pipeline.settings.budgets import Budgets
from pipeline.settings.params import Params, load
from pipeline.settings.problems import MAX_PROBLEMS_SHOWN
from stages.commands.schema import texts

ROOT = Path(__file__).resolve().parents[1]
DEFAULT = (ROOT / "params.yaml").read_text("utf-8")
FILES = [ROOT / "params.yaml", *sorted((ROOT / "recipes").glob("*.yaml"))]
# Sections whose keys a plug-in decides, or where an absent key has a meaning (a budget that is not judged).
OPEN_SECTIONS = (Budgets,)


def changed(*pairs: tuple[str, str]) -> str:
    """params.yaml of the repository with each text, which stands in it, replaced once."""
    text = DEFAULT
    for old, new in pairs:
        assert old in text, old
        text = text.replace(old, new, 1)
    return text


def problems(tmp_path: Path, content: str | bytes, with_plugins: bool = False) -> list[str]:
    """The messages that a file gives, without the file's name; none when it loads."""
    path = tmp_path / "params.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    try:
        load(path, with_plugins=with_plugins)
    except SettingsError as error:
        lines = str(error).splitlines()
        assert all(line.startswith(str(path)) for line in lines), lines
        return [line.removeprefix(str(path)).lstrip(":") for line in lines]
    return []


def line_of(text: str, needle: str) -> int:
    return text[: text.index(needle)].count("\n") + 1


# --- what a user gets wrong ----------------------------------------------------------------------------------------


def test_five_mistakes_give_five_messages_each_with_its_line_and_path(tmp_path):
    """Of five kinds, in five sections, plug-ins' names and settings among them."""
    text = changed(
        ("max_length: 64", "max_lenght: 64"),
        ("batch_size: 32", "batch_size: many"),
        ("vocabulary: full", "vocabulary: half"),
        ("runtime: onnxruntime", "runtime: onnxruntim"),
        ("logit_kl: {weight: 1.0, temperature: 2.0}", "logit_kl: {weight: 1.0, temprature: 2.0}"),
    )
    found = problems(tmp_path, text, with_plugins=True)
    assert len(found) == 5
    for needle, path, message in (
        ("max_lenght", "data.max_lenght", "unknown key 'max_lenght'; did you mean 'max_length'?"),
        ("batch_size: many", "teacher.training.batch_size", "found the text 'many', expected a number"),
        ("vocabulary: half", "student.vocabulary", "found 'half', expected 'full' or 'trimmed'"),
        ("runtime: onnxruntim\n", "targets.cpu_fp32.runtime", "did you mean 'onnxruntime'?"),
        ("temprature", "distill.losses.logit_kl.temprature", "did you mean 'temperature'?"),
    ):
        line = line_of(text, needle)
        assert any(problem.startswith(f"{line}: {path}: ") and message in problem for problem in found), (path, found)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("learning_rate: 2.0e-4", "learning_rate: 3e-4", "found the text '3e-4', expected a number .*3.0e-4"),
        ("learning_rate: 2.0e-4", "learning_rate: '0.1'", "found the text '0.1', expected a number"),
        ("learning_rate: 2.0e-4", "learning_rate: 1e999", "found the text '1e999', expected a number"),
        ("learning_rate: 2.0e-4", "learning_rate: 1.0e+999", "found '1.0e\\+999', expected a finite number"),
        ("learning_rate: 2.0e-4", "learning_rate: .inf", "found '.inf', expected a finite number"),
        ("learning_rate: 2.0e-4", "learning_rate: -.NaN", "found the text '-.NaN', expected a number"),
        ("learning_rate: 2.0e-4", "learning_rate: 2.0", "found 2.0, expected less than 1"),
        ("learning_rate: 2.0e-4", "learning_rate: [1.0]", r"found \[1.0\], expected a valid number"),
        ("learning_rate: 2.0e-4", "learning_rate:", "found null, expected a valid number"),
        ("seed: 0", "seed: 010", "found '010', which YAML readers take for different things"),
        ("seed: 0", "seed: 1:30", "found '1:30', which YAML readers"),
        ("seed: 0", "seed: 0x10", "found '0x10', which YAML readers"),
        ("seed: 0", "seed: 1_000", "found '1_000', which YAML readers"),
        ("seed: 0", f"seed: {'9' * 5000}", "found '9+…', which YAML readers"),
        ("seed: 0", f"seed: 1{':59' * 5000}", "which YAML readers"),
        ("seed: 0", "seed: 1.0", "found 1.0, expected a valid integer"),
        ("seed: 0", "seed: true", "found true, expected a valid integer"),
        ("seed: 0", "seed: -1", "found -1, expected greater than or equal to 0"),
        ("seed: 0", "seed: !!bool foo", "found 'foo', which YAML readers"),
        ("seed: 0", "seed: !!timestamp foo", "found the text 'foo', expected a number"),
        ("seed: 0", "seed: !!int ''", "found '', which YAML readers"),
        ("seed: 0", "seed: !!python/object/apply:os.system [ls]", r"found \[.ls.\], expected a valid integer"),
        ("header: true", "header: yes", "found 'yes', which YAML readers"),
        ("header: true", "header: 'true'", "found 'true', expected a valid boolean"),
        ("phases: one", 'phases: "a\\nb"', r"found 'a\\nb', expected 'one' or 'two'"),
        ("text: text", "text: [1]", r"found \[1\], expected a valid string or a valid integer"),
        ("layers: uniform", "layers: [1, no]", "found 'no', which YAML readers"),
        ("layers: uniform", "layers: [1, 0]", "found 0, expected greater than or equal to 1"),
        ("layers: uniform", "layers: foo", "found 'foo', expected 'uniform', 'first' or 'last' or a valid array"),
        ("formats: [onnx]", "formats: onnx", "found 'onnx', expected a valid array"),
        ("formats: [onnx]", "formats: [onyx]", r"no format 'onyx' \(export/to_onyx.py does not exist\); did you mean"),
        ("device: local", "device: locale", r"no device 'locale' \(eval/devices/locale.py .*did you mean 'local'"),
        ("hidden_mse:", "hiden_mse:", "no loss 'hiden_mse' .*did you mean 'hidden_mse'.* known: a2d, attention_kl"),
        ("  cpu:", "  Cpu:", "found 'Cpu'; String should match pattern"),
        ("required: true\n    ", "", "targets.cpu.required: missing; add this key"),
        ("p90_ms: 10.0", "p90: 10.0", "targets.cpu.budgets.p90: unknown key 'p90'; did you mean 'p90_ms'"),
        ("init: {from:", "init: {form:", "student.init.form: unknown key 'form'; did you mean 'from'"),
        ("hidden: null\n  heads: null", "hidden: 96\n  heads: 7", "hidden 96 is not divisible by heads 7"),
        ("source: bundled", "source: hub", "hub.dataset is null; name a data set id"),
        ("source: bundled", "source: files", "files.root is null; name the folder"),
        ("measure:", "? [measure, {}]\n: 1\nmeasure:", "key in line \\d+: found a list or section, expected a name"),
    ],
)
def test_one_mistake_gives_one_message_with_its_line(tmp_path, old, new, message):
    """What was found, what was expected; never a second message for the same mistake, never a traceback."""
    found = problems(tmp_path, changed((old, new)))
    assert len(found) == 1, found
    assert re.search(message, found[0]), found
    assert re.match(r"\d+: ", found[0])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("logit_kl: {weight: 1.0,", "logit_kl: {weight: 0.0,", "logit_kl.weight: found 0.0, expected greater than 0"),
        ("logit_kl: {weight: 1.0,", "logit_kl: {weight: 1e-1,", "logit_kl.weight: found the text '1e-1'"),
        ("map: uniform", "map: unifrom", "attention_kl.map: found 'unifrom', expected 'uniform', 'first', 'last'"),
        ("options: {inputs: int64}", "options: {inputs: int16}", "options.inputs: found 'int16', expected 'int64' or"),
        ("options: {inputs: int64}", "options: {input: int64}", "options.input: unknown key 'input'; did you mean"),
        ("options: {inputs: int64}", "options: null", "cpu_fp32.options: found null, expected"),
        ("options: {lengths: [16, 32, 64]}", "options: {lengths: bar}", "options.lengths: found 'bar', expected"),
        ("options: {lengths: [16, 32, 64]}", "options: {lengths: [16, '32']}", "lengths.1: found the text '32'"),
    ],
)
def test_settings_of_plugins_are_checked_in_the_same_listing(tmp_path, old, new, message):
    """Losses and exporters define their own; a mistake elsewhere does not hide theirs, nor theirs another."""
    found = problems(tmp_path, changed((old, new), ("seed: 0", "sed: 0")), with_plugins=True)
    assert len(found) == 2, found
    assert re.search(message, "\n".join(found)), found
    assert "did you mean 'seed'?" in "\n".join(found)


def test_a_file_with_a_duplicate_key_still_has_its_other_problems_listed(tmp_path):
    """YAML itself would take the last of two without a word."""
    text = changed(("  max_length: 64", "  max_length: 64\n  max_length: 32"), ("seed: 0", "sed: 0"))
    line = line_of(text, "  max_length")
    found = problems(tmp_path, text)
    assert len(found) == 2
    assert f"data.max_length: key 'max_length' stands twice, in lines {line} and {line + 1}" in found[0]


def test_tabs_are_named_as_such(tmp_path):
    """libyaml's own words say nothing of tabs."""
    (found,) = problems(tmp_path, changed(("  source: bundled", "\tsource: bundled")))
    assert re.search("line 13, column 1: not valid YAML: .*; indent with spaces, not tabs", found)


def test_what_dvc_writes_back_for_small_numbers_is_a_number(tmp_path):
    """`dvc exp run -S distill.training.learning_rate=1.0e-5` leaves 1e-05 in the file."""
    path = tmp_path / "params.yaml"
    path.write_text(changed(("learning_rate: 2.0e-4", "learning_rate: 1e-05")))
    assert load(path, with_plugins=False).teacher.training.learning_rate == 1e-5


def test_merge_keys_and_aliases_work_and_written_keys_win(tmp_path):
    """They are YAML that people use; the value beside the merge wins over the merged one."""
    path = tmp_path / "params.yaml"
    head, _, tail = DEFAULT.partition("  cpu:\n")
    text = head.replace("  cpu_fp32:\n", "  cpu_fp32: &base\n")
    text += "  cpu:\n    <<: *base\n    precision: int8\n    required: true\n\nmeasure:" + tail.partition("measure:")[2]
    path.write_text(text)
    params = load(path, with_plugins=False)
    assert params.targets["cpu"].format == "onnx"
    assert params.targets["cpu"].precision == "int8"
    assert params.targets["cpu_fp32"].precision == "fp32"


def test_a_wrong_key_that_came_through_a_merge_is_reported(tmp_path):
    """The nearest line that can be named is the section's."""
    found = problems(tmp_path, changed(("measure:\n", "measure:\n  <<: {porcesses: 3}\n")))
    assert len(found) == 1
    assert re.match(r"\d+: measure.porcesses: unknown key 'porcesses'; did you mean 'processes'", found[0])


# --- hostile files -------------------------------------------------------------------------------------------------

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
)
HOSTILE = {
    "alias bomb": (BOMB, "more than 20,000 values or 20 levels"),
    "alias bomb as a key": (BOMB.replace("a9: ", "? ") + ": 1", "more than 20,000 values"),
    "alias of itself": ("a: &a [*a]", "more than 20,000 values"),
    "key that holds itself": ("? &a [*a]\n: 1", "key in line 1: found a list or section"),
    # these two took the process down with a segmentation fault in libyaml's composer
    "400,000 open brackets": ("[" * 400_000, "20 levels"),
    "300,000 nested lists": ("- " * 300_000, "20 levels"),
    "long list": ("a: [" + "1," * 30_000 + "]", "more than 20,000 values"),
    "9,000 unknown keys": ("".join(f"see{i}: 1\n" for i in range(9_000)), r"\.\.\. and 8951 more"),
    "a key of 900,000 characters": (f"? {'k' * 900_000}\n: 1", "unknown key 'k+"),
    "big file": ("# " + "x" * 1_000_000, "found 1,000,002 bytes, expected at most 1,000,000"),
    "NUL": ("seed: \0", "not valid YAML: .*#x0000"),
    "not UTF-8": (b"seed: 1\n# caf\xe9\n", "found a byte that is not UTF-8 at offset 13; save the file as UTF-8"),
    "UTF-16": ("seed: 1".encode("utf-16"), "not UTF-8"),
    "empty": ("", "found no settings, expected sections such as 'data:'"),
    "a text": ("hello", "found no settings"),
    "a list": ("- a", "found no settings"),
    "two documents": ("a: 1\n---\nb: 2", "line 2, column 1: not valid YAML"),
    "undefined alias": ("a: *b", "line 1, column 4: not valid YAML: found undefined alias"),
    "open bracket": ("a: [1,\nb", "not valid YAML"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_within_a_second(tmp_path, name):
    """Neither time nor memory, nor the process itself, depends on what a file expands to."""
    content, message = HOSTILE[name]
    started = time.process_time()
    found = problems(tmp_path, content)
    assert time.process_time() - started < 1
    assert re.search(message, "\n".join(found)), found
    assert len(found) <= MAX_PROBLEMS_SHOWN + 1
    assert all(len(problem) < 1_500 for problem in found)


def test_a_missing_file_says_what_to_do(tmp_path):
    """So does a folder in its place."""
    with pytest.raises(SettingsError, match=r"nothing.yaml: no such file; run the command in a folder that has one"):
        load(tmp_path / "nothing.yaml")
    with pytest.raises(SettingsError, match=r"cannot be read \(Is a directory\)"):
        load(tmp_path)


def test_a_byte_order_mark_and_crlf_are_fine(tmp_path):
    """Editors on Windows write both."""
    assert problems(tmp_path, "\ufeff" + DEFAULT.replace("\n", "\r\n")) == []


def loads_or_refuses(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    started = time.process_time()
    try:
        load(path, with_plugins=False)
    except SettingsError as error:
        assert str(error)
    assert time.process_time() - started < 1


FUZZ = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@FUZZ
@given(content=st.binary(max_size=300) | st.text(max_size=300).map(lambda text: text.encode("utf-8", "replace")))
@example(content=b"? *a\n: &a 1")
@example(content=b"seed: !!set {a, b}")
@example(content=b"seed: !!binary ///")
@example(content=b"<<: [1, {seed: a}]\n<<: 5")
@example(content=b"data: {files: {text: {str: 1}}}\ntargets: {'[key]': 1, str: {}}")
def test_arbitrary_bytes_give_settings_or_a_settings_error(tmp_path, content):
    """Nothing else, and no hang."""
    loads_or_refuses(tmp_path / "params.yaml", content)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def leaves(values: Any, path: tuple = ()) -> Iterator[tuple]:
    yield path
    if isinstance(values, dict):
        for key, value in values.items():
            yield from leaves(value, (*path, key))


PLACES = sorted(path for path in leaves(yaml.safe_load(DEFAULT)) if path)


@FUZZ
@given(place=st.sampled_from(PLACES), value=VALUES)
def test_an_arbitrary_value_anywhere_gives_settings_or_a_settings_error(tmp_path, place, value):
    """A structure-aware fuzzer reaches what random bytes never do."""
    values = yaml.safe_load(DEFAULT)
    section = values
    for key in place[:-1]:
        section = section[key]
    section[place[-1]] = value
    loads_or_refuses(tmp_path / "params.yaml", yaml.safe_dump(values).encode())


@FUZZ
@given(start=st.integers(0, len(DEFAULT)), length=st.integers(0, 40), junk=st.binary(max_size=4))
def test_a_damaged_file_gives_settings_or_a_settings_error(tmp_path, start, length, junk):
    """A piece cut out of the repository's own file, something else put in its place."""
    content = DEFAULT.encode()
    loads_or_refuses(tmp_path / "params.yaml", content[:start] + junk + content[start + length :])


# --- the models and the repository's files --------------------------------------------------------------------------


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from models_in(argument)


def all_models(model: type[BaseModel]) -> set[type[BaseModel]]:
    found = {model}
    for field in model.model_fields.values():
        for inner in models_in(field.annotation):
            found |= all_models(inner)
    return found


def plugin_models() -> list[type[BaseModel]]:
    return [plugins.load(kind, name).Params for kind in ("loss", "format") for name in plugins.names(kind)]


def test_every_field_of_every_model_is_described_in_one_sentence():
    """The description is what an editor shows; plug-ins' models are models too."""
    models = set().union(all_models(Params), *(all_models(model) for model in plugin_models()))
    assert len(models) > 20
    for model in models:
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name} has no description"
            assert field.description[-1] in ".:);" or len(field.description) > 10, (model, name)


def test_every_model_is_frozen_strict_and_closed():
    """A setting that changes while a stage runs, or a key that is ignored, would make the record a lie."""
    for model in all_models(Params):
        config = model.model_config
        assert config["frozen"] and config["strict"] and config["extra"] == "forbid" and not config["allow_inf_nan"]
    params = load(ROOT / "params.yaml", with_plugins=False)
    with pytest.raises(ValidationError, match="frozen"):
        params.seed = 1


def missing_keys(model: type[BaseModel], values: dict, path: str = "") -> list[str]:
    """Keys of a model that a file does not spell out."""
    out = []
    for name, field in model.model_fields.items():
        key = field.alias or name
        if model in OPEN_SECTIONS:
            continue
        if key not in values:
            out.append(path + key)
            continue
        origin = get_origin(field.annotation)
        for inner in models_in(field.annotation):
            if origin is dict:
                for inner_key, value in values[key].items():
                    out += missing_keys(inner, value, f"{path}{key}.{inner_key}.")
            elif origin not in (Union, types.UnionType):
                out += missing_keys(inner, values[key], f"{path}{key}.")
    return out


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_settings_file_of_the_repository_loads_and_names_every_key(file):
    """DVC follows and sets only keys that stand in the file; a default that is left out could not be changed by -S."""
    load(file)
    assert missing_keys(Params, yaml.safe_load(file.read_text("utf-8"))) == []


def test_a_key_left_out_is_found():
    """Planted fault: the check above must not be one that cannot fail."""
    values = yaml.safe_load(DEFAULT)
    del values["student"]["init"]["from"], values["targets"]["cpu"]["required"]
    assert missing_keys(Params, values) == ["student.init.from", "targets.cpu.required"]


def test_dvc_can_set_every_key_and_the_settings_stay_the_same(tmp_path):
    """`dvc exp run -S KEY=VALUE` for each key with its own value, through DVC's own code."""
    from dvc.utils.hydra import apply_overrides

    path = tmp_path / "params.yaml"
    path.write_text(DEFAULT)
    values = yaml.safe_load(DEFAULT)
    overrides = []
    for place in PLACES:
        value = values
        for key in place:
            value = value[key]
        if not isinstance(value, dict):
            quoted = f"'{value}'" if isinstance(value, str) else json.dumps(value)
            overrides.append(f"{'.'.join(place)}={quoted}")
    assert len(overrides) > 90
    apply_overrides(path, overrides)
    assert load(path, with_plugins=False) == load(ROOT / "params.yaml", with_plugins=False)
    apply_overrides(
        path, ["distill.training.learning_rate=3e-6", "student.init.from=random", "data.files.columns.text=0"]
    )
    params = load(path, with_plugins=False)
    assert (params.distill.training.learning_rate, params.student.init.source) == (3e-6, "random")
    assert params.data.files.columns["text"] == 0


def test_the_committed_schema_is_the_generated_one():
    """Renewed by `decant schema` (or `make schema`)."""
    for name, text in texts().items():
        assert (ROOT / name).read_text("utf-8") == text, name


def resolve(schema: dict, part: dict) -> dict:
    return schema["$defs"][part["$ref"].rpartition("/")[2]] if "$ref" in part else part


def undescribed(schema: dict, part: dict, values: Any, path: str) -> list[str]:
    """Keys of a file that the schema does not describe or does not have, found by walking both."""
    part = resolve(schema, part)
    if not isinstance(values, dict) or part.get("type") != "object":
        return []
    out = []
    for key, value in values.items():
        inner = part.get("properties", {}).get(key)
        if inner is None and isinstance(part.get("patternProperties"), dict):
            inner = next((p for pattern, p in part["patternProperties"].items() if re.search(pattern, key)), None)
        if inner is None and isinstance(part.get("additionalProperties"), dict):
            inner = part["additionalProperties"]
        if inner is None:
            out += [] if part.get("additionalProperties") is True else [path + key]
        else:
            out += undescribed(schema, inner, value, f"{path}{key}.")
    return out


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_schema_knows_every_key_of_the_file_and_the_file_names_it(file):
    """An editor finds the schema by the first line, and underlines no key that the pipeline takes."""
    schema = json.loads((ROOT / "params.schema.json").read_text("utf-8"))
    text = file.read_text("utf-8")
    assert undescribed(schema, schema, yaml.safe_load(text), "") == []
    named = re.match(r"# yaml-language-server: \$schema=(\S+)\n", text)
    assert named and (file.parent / named[1]).resolve() == ROOT / "params.schema.json"


def test_the_schema_refuses_what_the_loader_refuses():
    """Names of plug-ins, and settings of a loss, stand in the schema; it has no default that is not allowed."""
    schema = json.loads((ROOT / "params.schema.json").read_text("utf-8"))
    target = schema["$defs"]["Target"]["properties"]
    assert target["runtime"]["enum"] == plugins.names("runtime")
    losses = schema["$defs"]["DistillSettings"]["properties"]["losses"]
    assert sorted(losses["properties"]) == plugins.names("loss")
    assert losses["additionalProperties"] is False
    assert undescribed(schema, schema, {"sed": 1, "distill": {"losses": {"logit_kl": {"temprature": 1}}}}, "") == [
        "sed",
        "distill.losses.logit_kl.temprature",
    ]
