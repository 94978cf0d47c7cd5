"""Reading a YAML file that may be hostile or mistaken: values, the line of each, and every problem with it."""

import json
import math
import re
from pathlib import Path
from typing import Any

import yaml

MAX_FILE_BYTES = 1_000_000
MAX_NODES = 20_000  # after aliases are expanded: a page of YAML can expand to billions of nodes
MAX_DEPTH = 20

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_file(path: Path) -> tuple[Any, dict[str, int], list[tuple[str, str]]]:
    """(values, line of each path, problems) of a YAML file that may be hostile. No values: nothing could be read."""
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            return None, {}, [("", f"found {size:,} bytes, expected at most {MAX_FILE_BYTES:,}")]
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return None, {}, [("", "no such file; run the command in a folder that has one, or copy one from recipes/")]
    except UnicodeDecodeError as error:
        return None, {}, [("", f"found a byte that is not UTF-8 at offset {error.start}; save the file as UTF-8")]
    except OSError as error:
        return None, {}, [("", f"cannot be read ({error.strerror}); expected a file of settings")]
    try:
        _check_nesting(text)
        root = yaml.compose(text, Loader=_LOADER)
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        at = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        hint = "; indent with spaces, not tabs" if "\t" in text else ""
        what = getattr(error, "problem", None) or str(error).partition("\n")[0]
        return None, {}, [("", f"{at}not valid YAML: {what}{hint}")]
    except _TooLargeError as error:
        return None, {}, [("", str(error))]
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

    def __init__(self) -> None:
        super().__init__(
            f"found more than {MAX_NODES:,} values or {MAX_DEPTH} levels once aliases are expanded; write it out"
        )


def _check_nesting(text: str) -> None:
    """Refuses what is too deep or too long before the node graph is built, which costs more than reading it.

    libyaml's composer recurses in C until the process dies.
    """
    depth = items = 0
    for event in yaml.parse(text, Loader=_LOADER):
        items += isinstance(event, yaml.NodeEvent)
        if items > 2 * MAX_NODES:  # a value and its key
            raise _TooLargeError
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise _TooLargeError
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


class _NodeReader:
    """Turns a YAML node graph into plain values, noting lines, duplicate keys and values that readers disagree about.

    PyYAML reads YAML 1.1 and DVC reads 1.2: `010` is 8 or 10, `1:30` is 90 or a text, `no` is false or a text. Only
    what both read alike is taken.
    """

    def __init__(self) -> None:
        self.lines: dict[str, int] = {}
        self.problems: list[tuple[str, str]] = []
        self.nodes = 0

    def read(self, node: yaml.Node, path: tuple[str, ...]) -> Any:
        self.nodes += 1
        if self.nodes > MAX_NODES or len(path) > MAX_DEPTH:
            raise _TooLargeError
        where = ".".join(path)
        self.lines.setdefault(where, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            return self._read_mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(item, (*path, str(index))) for index, item in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)  # the third and last kind
        return self._read_scalar(node, where)

    def _read_scalar(self, node: yaml.ScalarNode, where: str) -> Any:
        text, kind = node.value, node.tag.rpartition(":")[2]
        if kind == "timestamp":
            return text  # a date has no place here: the model refuses it by type, or takes it for a name
        if kind == "str":
            # DVC writes 1.0e-5 back as 1e-05, which PyYAML takes for text; 3e-4 is only ever written by hand.
            is_written_by_dvc = node.style in (None, "") and re.fullmatch(r"-?\d(\.\d+)?e[-+]\d\d+", text)
            return float(text) if is_written_by_dvc and repr(float(text)) == text else text
        if kind == "null" and text in {"", "~", "null", "Null", "NULL"}:
            return None
        if kind == "bool" and text.lower() in {"true", "false"}:
            return text.lower() == "true"
        if kind == "int" and re.fullmatch(r"[-+]?(0|[1-9]\d{0,17})", text):
            return int(text)
        if kind == "float" and re.fullmatch(r"[-+]?(\d+\.\d*|\.\d+)([eE][-+]?\d+)?", text):
            if math.isfinite(float(text)):
                return float(text)
            self.problems.append((where, f"found {shown(text)}, expected a finite number"))
        elif kind == "float" and text.lower().lstrip("+-") in {".inf", ".nan"}:
            self.problems.append((where, f"found {shown(text)}, expected a finite number"))
        else:
            self.problems.append(
                (
                    where,
                    f"found {shown(text)}, which YAML readers take for different things; write numbers as 10 or "
                    "3.0e-4, true or false, and put text in quotes",
                )
            )
        return None

    def _read_mapping(self, node: yaml.MappingNode, path: tuple[str, ...]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.append(
                    (".".join((*path, f"key in line {line}")), "found a list or section, expected a name")
                )
                continue
            key = str(key_node.value)
            if key == "<<":  # a merge: written keys win over merged ones
                merged = self.read(value_node, (*path, key))
                for source in merged if isinstance(merged, list) else [merged]:
                    if isinstance(source, dict):
                        values = {**source, **values}
                continue
            where = ".".join((*path, key))
            if where in self.lines and key in values:
                self.problems.append((where, f"key {shown(key)} stands twice, in lines {self.lines[where]} and {line}"))
            self.lines[where] = line
            values[key] = self.read(value_node, (*path, key))
        return values


def shown(value: Any) -> str:
    """A value as one short line."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    text = text if len(text) <= 80 else f"{text[:80]}…"
    return f"'{text[1:-1] if text.endswith(chr(34)) else text[1:]}'" if isinstance(value, str) else text
