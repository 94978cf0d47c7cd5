"""Answers with label and probability from a shipped artefact.

    decant predict --target cpu "wake me at six"

The file answers in its own runtime, as it would in an app.
"""

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from eval.padding import MASK
from pipeline import tasks
from pipeline.base import plugins
from pipeline.base.errors import SettingsError, UnusableRuntimeError
from pipeline.base.plugins import nearest
from pipeline.base.records import open_folder
from pipeline.base.workspace import Workspace
from pipeline.data.texts import clean
from pipeline.settings.params import load
from pipeline.tasks import Texts
from stages.targets import artefact_of


def command(
    texts: Annotated[list[str], typer.Argument(help="One or more texts.")],
    target: Annotated[str, typer.Option(help="A target of params.yaml.")] = "cpu",
    workspace: Annotated[Path, typer.Option(help="Folder that has params.yaml and artifacts/.")] = Path(),
    pair: Annotated[bool, typer.Option("--pair", help="The two texts are one pair.")] = False,
    top: Annotated[int, typer.Option(min=1, help="How many labels to show.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line for each text.")] = False,
) -> None:
    rows = [tuple(texts)] if pair else [(text,) for text in texts]
    for row, ranked in zip(rows, predict(Workspace(workspace), target, rows), strict=True):
        if as_json:
            answer = [{"label": label, "probability": round(p, 6)} for label, p in ranked[:top]]
            print(json.dumps({"text": row[0] if len(row) == 1 else row, "target": target, "answer": answer}))
        else:
            print("\n".join(f"{label}  {p:.1%}" for label, p in ranked[:top]))


def predict(workspace: Workspace, target: str, texts: Texts) -> list[list[tuple[str, float]]]:
    """For each text or pair, (answer, probability) by falling probability, from the exported file in its own runtime.

    Raises:
        SettingsError: there is no such target.
        UnusableRuntimeError: the target's runtime does not run here.
    """
    from tokenizers import Tokenizer

    params = load(workspace.params, with_plugins=False)
    if target not in params.targets:
        raise SettingsError(f"no target '{target}' in {workspace.params}{nearest(target, params.targets)}")
    folder = workspace.exported(target)
    card = open_folder(folder, "artefact")
    artefact = artefact_of(card)
    runtime, device = params.targets[target].runtime, plugins.load("device", params.targets[target].device)
    reason = device.why_unusable() or plugins.load("runtime", runtime).why_unusable()
    if reason is not None:
        raise UnusableRuntimeError(f"target '{target}' cannot answer here: {reason}")
    told = card.facts["task"]
    task = tasks.load(told["name"], told["options"], tasks.Space.model_validate(told["space"]))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    answers = []
    # In a process of its own: a runtime may abort on a token id that the model does not have.
    with device.open_session(runtime, folder, artefact, params.measure.threads) as session:
        for text in texts:
            batch = np.array([tokenizer.encode(*map(clean, text)).ids], dtype=np.int64)
            outputs = session.run({"input_ids": batch, MASK: np.ones_like(batch)})
            answers.append(task.explain({name: values[0] for name, values in outputs.items()}, task.space))
    return answers
