"""The prepared data as the stages use it: verified, tokenized, with the teacher's token ids beside the student's."""

from transformers import PreTrainedTokenizerBase

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
    """One split as examples and as token ids; for the teacher, in its own vocabulary only.

    Beside a student with a distillation token the teacher reads one token less, so that both read the same text.
    """
    card = open_data(workspace)
    has_token = not for_teacher and card.facts.get("distillation_token", False)  # older data has no such fact
    examples = read_prepared(workspace.data, split)
    teacher_tokenizer = load_tokenizer(workspace.data / "teacher_tokenizer")
    teacher_ids = encode(teacher_tokenizer, examples.texts, max_length - has_token)
    teacher_pad = int(teacher_tokenizer.pad_token_id)
    if for_teacher or (card.facts["keep_tokens"] is None and not has_token):
        return examples, EncodedSplit(
            names=examples.ids,
            ids=teacher_ids,
            labels=examples.labels,
            pad_id=teacher_pad,
            delimiter_ids=_delimiters(teacher_tokenizer, max_length),
        )
    tokenizer = load_tokenizer(workspace.data / "tokenizer")
    return examples, EncodedSplit(
        names=examples.ids,
        ids=encode(tokenizer, examples.texts, max_length),
        labels=examples.labels,
        pad_id=int(tokenizer.pad_token_id),
        teacher_ids=teacher_ids,
        teacher_pad_id=teacher_pad,
        has_token=has_token,
        delimiter_ids=_delimiters(tokenizer, max_length),
    )


def _delimiters(tokenizer: PreTrainedTokenizerBase, max_length: int) -> tuple[int, ...]:
    """The special tokens around a text, which are all that is left of an empty one."""
    return tuple(encode(tokenizer, [""], max_length)[0])
