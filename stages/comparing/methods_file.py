"""The list of methods to compare: what each one changes in a recipe."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.base.errors import SettingsError
from pipeline.base.plugins import nearest
from pipeline.settings import yaml_file as settings_file

BASELINE = "logits_only"  # what every method has to beat
CONTROLS = (BASELINE, "no_teacher")


class Method(BaseModel):
    """One way to distil."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    about: str = Field(description="One line: what the method is and whose.")
    losses: dict[str, dict[str, Any]] = Field(description="As distill.losses in params.yaml.", min_length=1)
    changes: dict[str, Any] = Field(
        default={}, description="Other keys of params.yaml, such as distill.phases: two; dots part the sections."
    )


class MethodsFile(BaseModel):
    """The whole file."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    every: dict[str, Any] = Field(description="Keys of params.yaml that hold for every method: student and training.")
    methods: dict[str, Method] = Field(description="By name; logits_only and no_teacher must be there.", min_length=2)


@dataclass(frozen=True)
class Job:
    """One student to train."""

    method: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.method}-{self.seed}"


def read_methods(path: Path, only: list[str]) -> MethodsFile:
    """The methods in a file, or some of them and the controls.

    Raises:
        SettingsError: with every problem of the file, or a name that it does not have.
    """
    values, lines, problems = settings_file.read_file(path)
    if problems or values is None:
        raise SettingsError("\n".join(": ".join(filter(None, (str(path), where, what))) for where, what in problems))
    try:
        found = MethodsFile.model_validate(values)
    except ValidationError as error:
        raise SettingsError(
            "\n".join(
                f"{path}:{lines.get('.'.join(map(str, e['loc'])), 1)}: {'.'.join(map(str, e['loc']))}: {e['msg']}"
                for e in error.errors(include_url=False)
            )
        ) from None
    if missing := [name for name in CONTROLS if name not in found.methods]:
        raise SettingsError(f"{path}: no method {missing[0]}; it is a control that every comparison needs")
    for name in only:
        if name not in found.methods:
            raise SettingsError(f"{path}: no method '{name}'{nearest(name, found.methods)}")
    wanted = {n: m for n, m in found.methods.items() if not only or n in only or n in CONTROLS}
    for where, changes in (("every", found.every), *((name, method.changes) for name, method in wanted.items())):
        for key in changes:
            if not key.startswith(("student.", "distill.")):
                raise SettingsError(
                    f"{path}: {where}: {key}: methods share teacher, data, seed and threads; expected a key of student "
                    "or distill"
                )
    return MethodsFile(every=found.every, methods=wanted)


def settings_of(base: Mapping[str, Any], methods: MethodsFile, name: str) -> dict[str, Any]:
    """The whole settings of one method: the recipe's with what every method and this one change."""
    settings = yaml.safe_load(yaml.safe_dump(dict(base)))  # a deep copy of plain values
    method = methods.methods[name]
    for key, value in {**methods.every, **method.changes, "distill.losses": method.losses}.items():
        *sections, last = key.split(".")
        place = settings
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise SettingsError(f"{key}: '{section}' is no section")
        place[last] = value
    settings["distill"]["controls"] = {"no_teacher": 0, "logits_only": 0}
    settings["distill"]["seeds"] = 1
    return settings
