"""accepted.yaml: reviewed exceptions, each with its reason and the day on which it ends by itself.

The file is under git, so that an exception is seen by whoever reviews the change. Its last day is in UTC.
"""

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime
from pathlib import Path

import yaml
from pydantic import Field, ValidationError, field_validator

from pipeline.base.errors import SettingsError
from pipeline.base.files import write_atomically
from pipeline.settings import yaml_file
from pipeline.settings.base import Name, Settings
from pipeline.settings.problems import describe_all

FILE = "accepted.yaml"
MAX_DAYS = 366  # an exception without an end is a budget that was deleted
HEAD = "# Reviewed exceptions: `decant accept` adds one. Each is shown in every report, and ends by itself.\n"


class Exemption(Settings):
    """Budgets of a target, or figures of its comparison with a base, that may fail until a day."""

    target: Name = Field(description="A name under targets: in params.yaml.")
    budgets: tuple[Name, ...] = Field(min_length=1, description="Names of budgets, or of figures that were compared.")
    because: str = Field(min_length=10, description="Why, for those who read the report.")
    until: str = Field(description="The last day, as 2027-01-31, in UTC.")

    @field_validator("until")
    @classmethod
    def _is_a_day(cls, text: str) -> str:
        try:
            return date.fromisoformat(text).isoformat()
        except ValueError:
            raise ValueError(f"found '{text}', expected a day such as 2027-01-31") from None


class _File(Settings):
    accepted: tuple[Exemption, ...] = ()


def today() -> date:
    """The day in UTC."""
    return datetime.now(UTC).date()


def read(root: Path) -> tuple[Exemption, ...]:
    """All exemptions of a project, those that have ended among them; none without a file.

    Raises:
        SettingsError: the file cannot be read, with every problem found.
    """
    path = root / FILE
    if not path.is_file():
        return ()
    values, lines, problems = yaml_file.read_file(path)
    if values is not None and not problems:
        try:
            return _File.model_validate_json(json.dumps(values)).accepted
        except ValidationError as error:
            problems = describe_all(_File, values, error)
    told = (
        f"{path}:{lines.get(where, 1)}: {where}: {what}" if where else f"{path}: {what}" for where, what in problems
    )
    raise SettingsError("\n".join(told))


def in_force(exemptions: Iterable[Exemption], day: date) -> list[Exemption]:
    """Those whose last day has not passed."""
    return [one for one in exemptions if one.until >= day.isoformat()]


def find(exemptions: Sequence[Exemption], target: str, budget: str) -> Exemption | None:
    """That of one budget; of several the one that ends last."""
    found = [one for one in exemptions if one.target == target and budget in one.budgets]
    return max(found, key=lambda one: one.until, default=None)


def add(root: Path, exemption: Exemption) -> None:
    """Writes it behind the others.

    Raises:
        SettingsError: its end has passed or is too far away, or the file that is there cannot be read.
    """
    days = (date.fromisoformat(exemption.until) - today()).days
    if not 0 <= days <= MAX_DAYS:
        raise SettingsError(
            f"--until {exemption.until}: found a day {days} days from now, expected 0 to {MAX_DAYS}: an exception "
            "without an end is a budget that was deleted"
        )
    both = [one.model_dump(mode="json") for one in (*read(root), exemption)]
    body = yaml.safe_dump({"accepted": both}, sort_keys=False, allow_unicode=True, width=120)
    write_atomically(root / FILE, HEAD + body)
