"""summary.md: the essentials in Markdown, for the summary of a CI job."""

from collections.abc import Sequence

from eval.wording import (
    MARKS,
    capitalized,
    decimals_of,
    headline,
    say_verdict,
    show_figure,
    show_figure_interval,
    show_interval,
    show_limit,
    show_megabytes,
    show_millions,
    show_percent,
    show_value,
    show_whole,
    show_with_unit,
    why,
)
from pipeline.base.records import Status, Verdict
from stages.reporting.evidence import Evidence
from stages.reporting.markdown import escape, table
from stages.reporting.models import ModelRow


def render_summary(evidence: Evidence, verdict: Verdict, rows: Sequence[ModelRow]) -> str:
    """The whole file."""
    metric = evidence.metric
    parts = [
        verdict.first_line,
        f"**{MARKS[verdict.status]} {verdict.status}: {headline(verdict)}.**",
        table(
            ("", "target", "budget", "limit", "measured", "interval", "why"),
            (
                (
                    f"{MARKS[one.status]} {one.status}",
                    one.target if one.required else f"{one.target} (optional)",
                    one.budget,
                    show_limit(one),
                    show_figure(one),
                    show_figure_interval(one),
                    why(one),
                )
                for one in verdict.budgets
            ),
        ),
        table(
            ("model", "made of", metric.title, "95 % interval", "parameters", "size", "p50", "p90", "speed-up"),
            (
                (
                    row.name,
                    row.made_of,
                    show_value(row.score.value if row.score else None, metric),
                    show_interval(row.score, decimals_of(metric.unit), metric.scale),
                    show_millions(row.parameters),
                    show_megabytes(row.size_bytes),
                    show_with_unit(row.p50_ms.value if row.p50_ms else None, "ms"),
                    show_with_unit(row.p90_ms.value if row.p90_ms else None, "ms"),
                    show_with_unit(row.speedup.value if row.speedup else None, "×"),
                )
                for row in rows
            ),
        ),
    ]
    if evidence.cut_share:
        parts.append(f"{show_percent(evidence.cut_share)} of test texts are longer than the model reads, and were cut.")
    if evidence.left_over:
        left = ", ".join(map(escape, evidence.left_over))
        parts.append(f"Left behind by targets that are no longer in params.yaml; `decant clean` removes: {left}")
    sliced = [row for row in rows if row.by_slice]
    if sliced:
        lines = (
            f"- {name} ({show_whole(count)} rows): "
            + ", ".join(f"{row.name} {show_value(row.by_slice[name].value, metric)}" for row in sliced)
            for name, count in evidence.slice_rows.items()
        )
        parts.append(f"{capitalized(metric.title)} by slice of test:\n\n" + "\n".join(escape(line) for line in lines))
    unmeasured = [f"- {escape(say_verdict(one))}" for one in verdict.budgets if one.status is Status.NOT_MEASURED]
    if unmeasured:
        parts.append("Not measured:\n\n" + "\n".join(unmeasured))
    if evidence.problems:
        parts.append("Could not be read:\n\n" + "\n".join(f"- {escape(problem)}" for problem in evidence.problems))
    return "\n\n".join(parts) + "\n"
