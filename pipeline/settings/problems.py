"""pydantic's errors in the project's words."""

from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pipeline.base import plugins
from pipeline.settings import yaml_file

MAX_PROBLEMS_SHOWN = 50


def describe_all(model: type[BaseModel], values: Any, error: ValidationError) -> list[tuple[str, str]]:
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
        return f"unknown key {yaml_file.shown(path[-1])}{plugins.nearest(path[-1], _keys_at(model, path[:-1]))}"
    if kind in {"float_type", "int_type"} and isinstance(found, str):
        text = yaml_file.shown(found)
        return f"found the text {text}, expected a number (write small numbers as 3.0e-4, without quotes)"
    if kind == "missing":
        return "missing; add this key"
    if kind == "value_error":
        return str(context["error"])
    if kind == "literal_error":
        return f"found {yaml_file.shown(found)}, expected {context['expected']}"
    expected = detail["msg"].removeprefix("Input should be ")
    return f"found {yaml_file.shown(found)}" + (
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
