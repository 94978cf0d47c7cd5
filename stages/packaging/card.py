"""README.md of a bundle: the model card, in Markdown with the header that model hubs read, all of it from records."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from eval.wording import MARKS, say_verdict, show_figure, show_figure_interval, show_limit
from pipeline.base.records import Interval, Status, Verdict
from pipeline.settings.card import CardSettings
from stages.reporting.evidence import Evidence
from stages.reporting.markdown import escape, table
from stages.reporting.models import ModelRow

NOT_SAID = "Not said by those who made it."


def model_card(
    card: CardSettings,
    evidence: Evidence,
    rows: Sequence[ModelRow],
    verdict: Verdict,
    facts: Mapping[str, Any],
    how: str,
) -> str:
    """The whole file.

    Args:
        card: what only a person knows.
        evidence: every record.
        rows: every model, with its figures.
        verdict: the one that the manifest names.
        facts: of the manifest.
        how: how an app uses the folder, in Markdown.
    """
    ours = next(row for row in rows if row.role == "target" and row.name == facts["target"])
    header = yaml.safe_dump(_header(card, evidence, ours), sort_keys=False, allow_unicode=True)
    budgets = [one for one in verdict.budgets if one.target == facts["target"]]
    artefact = facts["artefact"]
    sections = [
        f"# {card.name}",
        verdict.first_line,
        f"For {facts['platform']}: {artefact.precision} {artefact.format}, target `{facts['target']}`. "
        f"{MARKS[Status(facts['target_verdict'])]} Its budgets: **{facts['target_verdict']}**; "
        f"the required ones of all targets: {facts['verdict']}.",
        "## Use\n\n" + how,
        "## Meant for\n\n" + (escape(card.use) or NOT_SAID),
        "## Limits\n\n" + "\n".join(f"- {line}" for line in _limits(card, evidence, artefact.max_length)),
        "## Data and training\n\n" + "\n".join(f"- {line}" for line in _training(evidence, card)),
        f"## {evidence.metric.title.capitalize()} on test\n\n" + _scores(evidence, ours),
        "## Budgets\n\n"
        + table(
            ("", "budget", "limit", "measured", "interval"),
            (
                (
                    f"{MARKS[one.status]} {one.status}",
                    one.title,
                    show_limit(one),
                    show_figure(one),
                    show_figure_interval(one),
                )
                for one in budgets
            ),
        ),
    ]
    if missing := [f"- {escape(say_verdict(one))}" for one in budgets if one.status is not Status.PASS]:
        sections.append("\n".join(missing))
    sections.append(
        "Licences of all that is inside: NOTICES.md. Parts for programs: sbom.cdx.json. Files: manifest.json."
    )
    return f"---\n{header}---\n\n" + "\n\n".join(sections) + "\n"


def _header(card: CardSettings, evidence: Evidence, ours: ModelRow) -> dict[str, Any]:
    """Source: the metadata of model cards, as Hugging Face's hub documents it."""
    header: dict[str, Any] = {
        "license": card.license.lower().replace(" ", "-"),
        "language": list(card.languages),
        "pipeline_tag": evidence.task.HUB_NAME if evidence.task is not None else None,
        "tags": ["decant", "distillation", "quantization"],
    }
    if ours.score is not None:
        header["metrics"] = [evidence.metric.name]
        header["model-index"] = [
            {
                "name": card.name,
                "results": [
                    {
                        "task": {"type": header["pipeline_tag"]},
                        "dataset": {"name": "test split", "type": "private", "split": "test"},
                        "metrics": [{"type": evidence.metric.name, "value": round(ours.score.value, 6)}],
                    }
                ],
            }
        ]
    return header


def _limits(card: CardSettings, evidence: Evidence, longest: int) -> list[str]:
    found = [escape(card.limits)] if card.limits else []
    cut = evidence.cut_share
    found.append(
        f"Reads the first {longest} tokens of a text"
        + (f"; {cut:.1%} of test texts were longer and were cut." if cut else ".")
    )
    found.append("Always gives one of its labels, whatever the text: ask again below a confidence of model.json.")
    return found


def _training(evidence: Evidence, card: CardSettings) -> list[str]:
    found = [f"Languages of the data: {', '.join(card.languages)}; licence of the data: {card.data_license}."]
    if evidence.data is not None:
        facts = evidence.data.facts
        counts = ", ".join(f"{split} {facts['rows'][split]:,}" for split in ("train", "dev", "test"))
        found.append(f"Rows: {counts}.")
    for name, trained in (("Teacher", evidence.teacher), ("Student", evidence.student)):
        if trained is not None and trained.parameters:
            found.append(f"{name}: {trained.parameters / 1e6:.1f} M parameters.")
    return found


def _scores(evidence: Evidence, ours: ModelRow) -> str:
    """All of test and each slice, as the exported file answers in its runtime."""
    if ours.score is None:
        return "Not measured."
    rows = [("all of test", str(evidence.examples), _say(ours.score, evidence))]
    rows += [
        (name, str(count), _say(ours.by_slice[name], evidence))
        for name, count in evidence.slice_rows.items()
        if name in ours.by_slice
    ]
    return table(("", "rows", f"{evidence.metric.title}, 95 % interval"), rows)


def _say(figure: Interval, evidence: Evidence) -> str:
    scale, unit = evidence.metric.scale, evidence.metric.unit
    return f"{scale * figure.value:.1f} {unit} [{scale * figure.low:.1f}, {scale * figure.high:.1f}]"
