"""Reads the data set, cuts and checks its splits, and makes both tokenizers.

Run as `python -m stages.prepare`.
"""

import logging
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from pipeline import tasks
from pipeline.base import guard
from pipeline.base.files import output_folder
from pipeline.base.records import seal
from pipeline.base.workspace import Workspace
from pipeline.data.examples import SPLITS, write_prepared
from pipeline.data.prepared import BATCH, student_lengths, write_encoded
from pipeline.data.splits import Dataset, load_dataset
from pipeline.data.texts import encode
from pipeline.models.checkpoints import check_positions, check_vocabulary, read_config
from pipeline.models.model_files import find_model
from pipeline.models.students import student_config
from pipeline.models.vocabulary import load_tokenizer, needed_tokens, save_tokenizer, trim, with_distillation_token
from pipeline.settings.params import Params, load

log = logging.getLogger(__name__)
KIND = "data"


def run(params: Params, workspace: Workspace, root: Path | None = None) -> None:
    """Writes the prepared splits, `tokenizer/` for the student and `teacher_tokenizer/`.

    `root` is the project whose data files are read, where it is not the workspace itself.
    """
    folder = find_model(params.teacher.model, params.teacher.revision)
    config = read_config(folder)
    check_positions(config, params.data.max_length)
    tokenizer = load_tokenizer(folder)
    check_vocabulary(config, len(tokenizer))
    task = tasks.load(params.task.name, params.task.options)
    dataset = load_dataset(params.data, task, root or workspace.root, params.seed)
    keep, student_tokenizer, has_token = None, tokenizer, params.student.distillation_token
    if params.student.vocabulary == "trimmed":
        keep = needed_tokens(tokenizer, [row.texts for row in dataset.splits["train"]])
        student_tokenizer = trim(tokenizer, keep)
    elif has_token and config.vocab_size > len(tokenizer):
        # The token takes the tokenizer's next id, where such a teacher has a row that no text reads.
        keep = list(range(len(tokenizer)))
    if has_token:
        student_tokenizer = with_distillation_token(student_tokenizer)
    student_config(config, params.student, len(keep) if keep else None)  # a student that cannot be built stops here
    facts: dict[str, object] = {
        **dataset.findings,
        "keep_tokens": keep,
        "distillation_token": has_token,
        "vocabulary": {"teacher": len(tokenizer), "student": len(student_tokenizer)},
    }
    with output_folder(workspace.data) as partial:
        write_prepared(dataset, partial)
        save_tokenizer(student_tokenizer, partial / "tokenizer")
        save_tokenizer(tokenizer, partial / "teacher_tokenizer")
        # What the saved tokenizers say, since those are what ships.
        saved = load_tokenizer(partial / "tokenizer"), load_tokenizer(partial / "teacher_tokenizer")
        facts["encoding"] = write_encoded(partial, *saved, params.data.max_length, has_token=has_token)
        facts["tokens"] = _token_facts(partial, dataset, saved[0], params.data.max_length)
        seal(partial, KIND, facts=facts)
    rows, near = dataset.findings["rows"], dataset.findings["near_duplicates"]
    log.info(
        "%s: %s; rows: %s; removed because they are also in test: %s; test rows with a near duplicate in train or "
        "dev: %d",
        task.name,
        dataset.task.describe(dataset.task.space),
        ", ".join(f"{split} {rows[split]:,}" for split in SPLITS),
        dataset.findings["rows_also_in_test_removed"],
        near["test_rows"],
    )


def _token_facts(
    folder: Path, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> dict[str, object]:
    """Lengths in the student's tokens of each split, and how many texts are cut."""
    facts: dict[str, object] = {"max_length": max_length}
    for split, rows in dataset.splits.items():
        lengths = student_lengths(folder, split)
        full = np.flatnonzero(lengths == max_length)  # only these may have been cut
        histogram = np.bincount(lengths)
        for start in range(0, len(full), BATCH):
            some = full[start : start + BATCH]
            lengths[some] = [len(ids) for ids in encode(tokenizer, [rows[i].texts for i in some], max_length=1_000_000)]
        facts[split] = {
            "mean": round(float(np.mean(lengths)), 2),
            "p50": int(np.percentile(lengths, 50)),
            "p99": int(np.percentile(lengths, 99)),
            "longest": int(lengths.max()),
            "cut": int((lengths > max_length).sum()),
            "histogram": {int(length): int(histogram[length]) for length in np.flatnonzero(histogram)},
        }
    return facts


def main() -> None:
    workspace = Workspace()
    params = load(workspace.params)
    with guard.lock(workspace.data):
        run(params, workspace)


if __name__ == "__main__":
    guard.run(main)
