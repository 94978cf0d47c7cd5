"""A whole project in a few seconds: made-up sentences of three classes, a random BERT that can learn them, settings."""

import csv
import random
from pathlib import Path

import torch
import yaml
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from pipeline.base.workspace import Workspace
from pipeline.models.vocabulary import save_tokenizer
from pipeline.settings.params import load

CLASSES = {
    "alarm": ("wake", "alarm", "oclock", "snooze"),
    "music": ("play", "song", "album", "louder"),
    "weather": ("rain", "sunny", "forecast", "windy"),
}
FILLERS = ("please", "the", "a", "to", "for", "me", "my", "on", "in", "at", "with", "some", "any", "now", "today")
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def make_tokenizer(extra=()):
    """WordPiece over the sentences' words, some pieces of words, single letters, and words no sentence has."""
    words = [*FILLERS, *(word for some in CLASSES.values() for word in some)]
    pieces = ["un", "##ing", "##ed", "##er", "kit", "##chen", "lamp", *extra]
    vocabulary = [*SPECIAL, *LETTERS, *(f"##{letter}" for letter in LETTERS), *words, *pieces]
    numbers = {piece: number for number, piece in enumerate(dict.fromkeys(vocabulary))}
    tokenizer = Tokenizer(models.WordPiece(numbers, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", numbers["[CLS]"]), ("[SEP]", numbers["[SEP]"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=32,
        **{f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")},
    )


def make_rows(count, seed):
    """(text, label) pairs that differ from one another; the label is told by one word."""
    rng = random.Random(seed)
    rows = {}
    names = sorted(CLASSES)
    while len(rows) < count:
        label = names[len(rows) % len(names)]
        words = rng.sample(FILLERS, rng.randint(2, 7))
        words.insert(rng.randrange(len(words) + 1), rng.choice(CLASSES[label]))
        rows.setdefault(" ".join(words), label)
    return list(rows.items())


def write_data(folder, counts=(120, 36, 48)):
    """train.csv, dev.csv and test.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = make_rows(sum(counts), seed=7)
    for name, count in zip(("train", "dev", "test"), counts, strict=True):
        taken, rows = rows[:count], rows[count:]
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label"), *taken])


def make_teacher(tokenizer, seed=0, labels=None, **changes):
    """A random BERT classifier of 2 layers and 32 units, in eval mode."""
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 32,
        "pad_token_id": tokenizer.pad_token_id,
        "initializer_range": 0.1,
    }
    names = (
        {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}} if labels else {}
    )
    return BertForSequenceClassification(BertConfig(**(sizes | names | changes))).eval()


def write_teacher(folder, **changes):
    """The random BERT's folder, with its tokenizer."""
    tokenizer = make_tokenizer()
    make_teacher(tokenizer, **changes).save_pretrained(str(folder), safe_serialization=True)
    save_tokenizer(tokenizer, folder)


TARGET = {
    "format": "onnx",
    "precision": "fp32",
    "options": {"inputs": "int64"},
    "runtime": "onnxruntime",
    "device": "local",
    "required": False,
    "budgets": {},
}


def make_settings(root, **changes):
    """Settings as params.yaml has them; `changes` replace whole sections, or single keys with `section__key`."""
    training = {"epochs": 14.0, "learning_rate": 5.0e-3, "batch_size": 16, "warmup_fraction": 0.1}
    settings = {
        "seed": 0,
        "threads": 1,
        "data": {
            "source": "files",
            "files": {"root": str(root), "train": "train.csv", "dev": "dev.csv", "test": "test.csv"},
            "max_length": 16,
            "near_duplicates": {"similarity": 0.999, "max_share": 1.0},
        },
        "teacher": {"model": str(Path(root) / "model"), "training": training},
        "student": {"layers": 1},
        "distill": {
            "training": training | {"epochs": 12.0},
            "losses": {"logit_kl": {"temperature": 2.0}, "attention_kl": {"map": "last_only"}},
        },
        "quantize": {},
        "targets": {"cpu_fp32": TARGET, "cpu": TARGET | {"precision": "int8"}},
        "measure": {"processes": 1, "pairs": 2, "max_rounds": 1, "warmup": 1, "lengths": [8]},
    }
    for path, value in changes.items():
        *sections, last = path.split("__")
        place = settings
        for section in sections:
            place = place[section]
        place[last] = value
    return settings


def write_project(folder, **changes):
    """Data, teacher and params.yaml in `folder`, paths relative to it; gives the settings and the workspace."""
    write_data(folder / "inputs")
    write_teacher(folder / "inputs" / "model")
    workspace = Workspace(folder)
    return write_settings(workspace, **changes), workspace


def write_settings(workspace, **changes):
    """Another params.yaml; gives the settings as the stages read them."""
    settings = make_settings("inputs", **changes)
    workspace.params.write_text(yaml.safe_dump(settings, sort_keys=False), "utf-8")
    return load(workspace.params)


def flip_bit(file, position=None):
    """Turns one bit of a file over, in the middle unless told."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2 if position is None else position] ^= 1
    file.write_bytes(bytes(content))
