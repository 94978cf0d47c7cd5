"""Answers with label and probability from a shipped artefact.

    decant predict --target cpu "wake me at six"

The file answers in its own runtime, as it would in an app.
"""

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from pipeline.base import plugins
from pipeline.base.errors import SettingsError, UnusableRuntimeError
from pipeline.base.plugins import nearest
from pipeline.base.records import open_folder
from pipeline.base.workspace import Workspace
from pipeline.settings.params import load
from stages.targets import artefact_of


def command(
    texts: Annotated[list[str], typer.Argument(help="One or more texts.")],
    target: Annotated[str, typer.Option(help="A target of params.yaml.")] = "cpu",
    workspace: Annotated[Path, typer.Option(help="Folder that has params.yaml and artifacts/.")] = Path(),
    top: Annotated[int, typer.Option(min=1, help="How many labels to show.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line for each text.")] = False,
) -> None:
    for text, ranked in zip(texts, predict(Workspace(workspace), target, texts), strict=True):
        if as_json:
            answer = [{"label": label, "probability": round(p, 6)} for label, p in ranked[:top]]
            print(json.dumps({"text": text, "target": target, "answer": answer}))
        else:
            print("\n".join(f"{label}  {p:.1%}" for label, p in ranked[:top]))


def predict(workspace: Workspace, target: str, texts: list[str]) -> list[list[tuple[str, float]]]:
    """For each text, (label, probability) by falling probability, from the exported file in its own runtime.

    Raises:
        SettingsError: there is no such target.
        UnusableRuntimeError: the target's runtime does not run here.
    """
    from tokenizers import Tokenizer

    params = load(workspace.params, with_plugins=False)
    if target not in params.targets:
        raise SettingsError(f"no target '{target}' in {workspace.params}{nearest(target, params.targets)}")
    folder = workspace.exported(target)
    artefact = artefact_of(open_folder(folder, "artefact"))
    runtime, device = params.targets[target].runtime, plugins.load("device", params.targets[target].device)
    reason = device.why_unusable() or plugins.load("runtime", runtime).why_unusable()
    if reason is not None:
        raise UnusableRuntimeError(f"target '{target}' cannot answer here: {reason}")
    labels = json.loads((folder / "labels.json").read_text("utf-8"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    answers = []
    # In a process of its own: a runtime may abort on a token id that the model does not have.
    with device.open_session(runtime, folder, artefact, params.measure.threads) as session:
        for text in texts:
            # The terminal may hand over bytes that are no text; they become the replacement character.
            ids = tokenizer.encode(text.encode("utf-8", "replace").decode("utf-8")).ids
            batch = np.array([ids], dtype=np.int64)
            logits = session.run({"input_ids": batch, "attention_mask": np.ones_like(batch)})["logits"][0].astype(
                np.float64
            )
            probabilities = np.exp(logits - logits.max())
            probabilities /= probabilities.sum()
            ranked = np.argsort(-probabilities, kind="stable")
            answers.append([(labels[i], float(probabilities[i])) for i in ranked])
    return answers
