"""The prepared data as the stages use it: verified, tokenized, with the teacher's token ids beside the student's."""

from pipeline.batches import EncodedSplit
from pipeline.data import Examples, encode, read_prepared
from pipeline.records import Card, open_folder
from pipeline.vocabulary import load_tokenizer
from pipeline.workspace import Workspace


def open_data(workspace: Workspace) -> Card:
    """The card of the prepared data, after every file was checked against it."""
    return open_folder(workspace.data, "data")


def read_encoded(
    workspace: Workspace, split: str, max_length: int, *, for_teacher: bool = False
) -> tuple[Examples, EncodedSplit]:
    """One split as examples and as token ids; for the teacher, in its own vocabulary only."""
    card = open_data(workspace)
    examples = read_prepared(workspace.data, split)
    teacher_tokenizer = load_tokenizer(workspace.data / "teacher_tokenizer")
    teacher_ids = encode(teacher_tokenizer, examples.texts, max_length)
    teacher_pad = int(teacher_tokenizer.pad_token_id)
    if for_teacher or card.facts["keep_tokens"] is None:
        return examples, EncodedSplit(examples.ids, teacher_ids, examples.labels, teacher_pad)
    tokenizer = load_tokenizer(workspace.data / "tokenizer")
    return examples, EncodedSplit(
        names=examples.ids,
        ids=encode(tokenizer, examples.texts, max_length),
        labels=examples.labels,
        pad_id=int(tokenizer.pad_token_id),
        teacher_ids=teacher_ids,
        teacher_pad_id=teacher_pad,
    )
