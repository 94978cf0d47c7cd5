"""comment.md: a comparison for one pull-request comment, which is edited in place at each push.

The verdict in words comes first; open is only what moved, the rest is folded. What could not be compared has a line of
its own: it is never shown as if nothing had changed.
"""

from collections.abc import Sequence

from eval.wording import (
    MARKS,
    compared_headline,
    is_moved,
    say_change,
    show_harm,
    show_harm_interval,
    show_loss,
    show_side,
    why_changed,
)
from pipeline.base.records import Change, Comparison, ReasonKind, Status
from stages.reporting.markdown import escape, table

# By which the comment of an earlier push is found.
MARKER = "<!-- decant compare -->"
HEADER = ("", "target", "what", "base", "this", "change", "interval", "noise of this run", "seen from")
SHORT_VERSION = 12  # letters of a revision


def render(comparison: Comparison) -> str:
    """The whole comment."""
    moved = [change for change in comparison.changes if is_moved(change)]
    rest = [change for change in comparison.changes if not is_moved(change)]
    version = comparison.base_version[:SHORT_VERSION]
    base = comparison.base if version in ("", comparison.base) else f"{comparison.base} ({version})"
    parts = [MARKER, f"### {MARKS[comparison.status]} Decant: {escape(compared_headline(comparison))}"]
    parts += [f"- {escape(say_change(change))}" for change in moved if change.status is Status.FAIL]
    if comparison.not_compared:
        lines = (f"- **{escape(name)}**: {escape(why)}" for name, why in comparison.not_compared.items())
        parts.append("**Could not be compared:**\n\n" + "\n".join(lines))
    if moved:
        parts.append(_table(moved))
        parts += [f"- {escape(say_change(one))}" for one in moved if one.status is not Status.FAIL and why_changed(one)]
    if rest:
        told = "".join(f"\n- {escape(say_change(one))}" for one in rest if one.status is None and one.reasons)
        body = f"{_table(rest)}\n{told}".rstrip()
        parts.append(f"<details><summary>{_rest(rest, bool(moved))}</summary>\n\n{body}\n\n</details>")
    apart = any(reason.kind is ReasonKind.RUNTIMES_APART for change in comparison.changes for reason in change.reasons)
    where = "processes of their own, by turns" if apart else "the same processes"
    parts.append(
        f"<sub>Base: {escape(base)}. Both versions ran in {where}, each twice, in both orders; *noise* is "
        "how far a file was from itself in this very run, *seen from* the smallest loss that would have been found in "
        "nine runs of ten.</sub>"
    )
    return "\n\n".join(parts) + "\n"


def _rest(rest: Sequence[Change], some_moved: bool) -> str:
    figures = f"{len(rest)} {'other ' if some_moved else ''}figure{'s' if len(rest) > 1 else ''}"
    return f"{figures} without a change that could be seen"


def _table(changes: Sequence[Change]) -> str:
    return table(
        HEADER,
        (
            (
                "" if change.status is None else f"{MARKS[change.status]} {_word(change)}",
                change.target if change.required else f"{change.target} (optional)",
                change.title,
                show_side(change, change.base),
                show_side(change, change.head),
                show_harm(change),
                show_harm_interval(change),
                show_loss(change, change.noise) if change.noise is not None else "",
                show_loss(change, change.could_see) if change.could_see is not None else "",
            )
            for change in changes
        ),
    )


def _word(change: Change) -> str:
    if change.status is Status.FAIL:
        return "regression"
    gained = change.harm is not None and change.harm.high < 0
    return "better" if change.status is Status.PASS and gained and is_moved(change) else str(change.status)
