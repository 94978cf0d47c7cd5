"""Reads the data set, cuts and checks its splits, and makes both tokenizers.

Run as `python -m stages.prepare`.
"""

import logging
from itertools import chain
from pathlib import Path

import numpy as np
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from pipeline import tasks
from pipeline.base import guard
from pipeline.base.files import output_folder
from pipeline.base.records import seal
from pipeline.base.workspace import Workspace
from pipeline.data.examples import SPLITS, Texts, read_prepared, write_prepared
from pipeline.data.prepared import BATCH, learned_splits, student_lengths, write_encoded, write_unlabelled
from pipeline.data.seen import check_unseen, digests_of
from pipeline.data.splits import Dataset, count_near, load_dataset
from pipeline.data.texts import encode
from pipeline.data.unlabelled import REST, read_texts
from pipeline.data.unlabelled import SPLIT as UNLABELLED
from pipeline.models.checkpoints import check_origin, check_positions, check_vocabulary, read_config
from pipeline.models.model_files import find_model
from pipeline.models.students import student_config
from pipeline.models.vocabulary import load_tokenizer, needed_tokens, save_tokenizer, trim, with_distillation_token
from pipeline.settings.params import Params, load
from pipeline.settings.teacher import TaughtModel

log = logging.getLogger(__name__)
KIND = "data"


def run(params: Params, workspace: Workspace, root: Path | None = None) -> None:
    """Writes the prepared splits, `tokenizer/` for the student and `teacher_tokenizer/`.

    `root` is the project whose data files are read, where it is not the workspace itself.
    """
    teacher = _open(params, *_named(params.teacher), "teacher.model")
    second = params.teacher.second
    others = None if second is None else _open(params, *_named(second), "teacher.second.model")
    from_where = "general.init.from" if params.is_general else "student.init.from"
    config, tokenizer = _open(params, *params.origin, from_where)
    if params.is_own_origin:
        check_origin(config, params.origin[0], from_where)
    task = tasks.load(params.task.name, params.task.options)
    dataset = load_dataset(params.data, task, root or workspace.root, params.seed)
    _check_general(params, dataset, workspace.root)
    with output_folder(workspace.data) as partial:
        write_prepared(dataset, partial)
        further = write_unlabelled(params.data.unlabelled, dataset, partial, root or workspace.root)
        near = _near_unlabelled(params, dataset, partial)
        keep = _kept(params, config, tokenizer, partial)
        # A student that cannot be built stops here.
        student_config(config, params.student, len(keep) if keep is not None else None)
        student = tokenizer
        if keep is not None and params.student.vocabulary == "trimmed":
            student = trim(tokenizer, keep)
        if params.student.distillation_token:
            student = with_distillation_token(student)
        save_tokenizer(student, partial / "tokenizer")
        save_tokenizer(teacher[1], partial / "teacher_tokenizer")
        if others is not None:
            save_tokenizer(others[1], partial / "second_tokenizer")
        # What the saved tokenizers say, since those are what ships.
        saved = load_tokenizer(partial / "tokenizer"), load_tokenizer(partial / "teacher_tokenizer")
        has_token, length = params.student.distillation_token, params.data.max_length
        facts: dict[str, object] = {
            **dataset.findings,
            "unlabelled": further,
            "unlabelled_near_test": near,
            "keep_tokens": keep,
            "distillation_token": has_token,
            "vocabulary": {"teacher": len(teacher[1]), "student": len(student)},
            "encoding": write_encoded(
                partial, *saved, length, has_token=has_token, second=others[1] if others is not None else None
            ),
            "tokens": _token_facts(partial, dataset, saved[0], length),
        }
        seal(partial, KIND, facts=facts)
    rows, near_rows = dataset.findings["rows"], dataset.findings["near_duplicates"]["test_rows"]
    log.info(
        "%s: %s; rows: %s; removed because they are also in test: %s; test rows with a near duplicate in train or "
        "dev: %d",
        task.name,
        dataset.task.describe(dataset.task.space),
        ", ".join(f"{split} {rows[split]:,}" for split in SPLITS),
        dataset.findings["rows_also_in_test_removed"],
        near_rows,
    )


def _check_general(params: Params, dataset: Dataset, root: Path) -> None:
    """Raises DataError where text for a general student has a text of dev or test.

    The student is refused for it too, but that is after it was trained.
    """
    files = [root / name for name in params.general.texts] if params.is_general else []
    texts = chain.from_iterable(read_texts(file, "general.texts") for file in files)
    held_out = {split: [row.texts for row in dataset.splits[split]] for split in ("dev", "test")}
    check_unseen(digests_of(texts), held_out, "general.texts")


def _near_unlabelled(params: Params, dataset: Dataset, folder: Path) -> int:
    """How many test rows are almost texts of the files without labels; what is left of train was looked at before.

    Raises:
        DataError: too many.
    """
    if not params.data.unlabelled.files or UNLABELLED not in learned_splits(folder):
        return 0
    test = [row.text for row in dataset.splits["test"]]
    further = read_prepared(folder, UNLABELLED)
    of_files = [number for number, name in enumerate(further.ids) if not name.startswith(REST)]
    near, _ = count_near(test, Texts(further.texts, of_files), params.data, "data.unlabelled.files")
    if near:
        log.info("text without labels: %d of %d test rows have a near duplicate in it", near, len(test))
    return near


def _named(model: TaughtModel) -> tuple[str, str | None]:
    return model.model, model.revision


def _open(
    params: Params, name: str, revision: str | None, setting: str
) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    """A model's configuration and its tokenizer, which must fit each other and the longest text."""
    folder = find_model(name, revision, setting)
    config, tokenizer = read_config(folder), load_tokenizer(folder)
    check_positions(config, params.data.max_length, setting)
    check_vocabulary(config, len(tokenizer))
    return config, tokenizer


def _kept(
    params: Params, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> list[int] | None:
    """Tokens that the student keeps of the model it is copied from; None for all."""
    if params.student.vocabulary == "trimmed":
        return needed_tokens(tokenizer, [read_prepared(folder, split).texts for split in learned_splits(folder)])
    if params.student.distillation_token and config.vocab_size > len(tokenizer):
        # The token takes the tokenizer's next id, where such a model has a row that no text reads.
        return list(range(len(tokenizer)))
    return None


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
