"""What the teacher said once, read from disk, is what it would say again, and a training cannot tell the difference."""

from contextlib import closing

import numpy as np
import pytest
import torch
from tiny_project import flip_bit
from toy_models import FAMILIES, toy_model

from pipeline.base.errors import TrainingError
from pipeline.data.batches import Collator, pad
from pipeline.data.prepared import EncodedSplit, spread_rows
from pipeline.families import shape_of
from pipeline.signals.reader import SignalReader
from pipeline.training.distiller import Distiller, loss_params
from pipeline.training.needs import needs_of
from pipeline.training.teacher_signals import as_kept, cached_teacher_signals, size_bytes

NEEDS = {"hidden": frozenset({0, 2}), "attention": frozenset({1, 3}), "values": frozenset({3})}


def make_split(rows=9):
    """Texts of 1 to 11 tokens; the teacher reads other ids than the student."""
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(4, 60, (1 + row % 11,), generator=generator).tolist() for row in range(rows)]
    return EncodedSplit(
        names=tuple(f"row-{i}" for i in range(rows)),
        ids=ids,
        targets=tuple(i % 3 for i in range(rows)),
        pad_id=0,
        teacher_ids=[[63 - token for token in row] for row in ids],
        teacher_pad_id=1,
    )


SPLIT = make_split()


def batch_of(rows):
    """A batch as the training loop makes it, and its mask."""
    batch = Collator(SPLIT)(rows)
    return batch, batch["attention_mask"].bool()


def masked(tensor, mask):
    """The valid tokens of a signal over (.., length, width)."""
    return tensor[mask] if tensor.dim() == 3 else tensor.transpose(1, 2)[mask]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_signals_from_disk_are_those_of_the_teacher(tmp_path, family):
    """Whatever the batch; padded positions are zero, and layers that nobody needs are not there."""
    teacher = toy_model(family, vocab_size=64)
    known = cached_teacher_signals(teacher, NEEDS, SPLIT, tmp_path, "key")
    with SignalReader(teacher, NEEDS, frozen=True) as reader:
        for rows in ([0], [8, 3, 5], [2, 2, 7]):
            batch, mask = batch_of(rows)
            expected = reader.read({"input_ids": batch["teacher_input_ids"], "attention_mask": batch["attention_mask"]})
            found = known.read(batch["rows"], mask, expected.logits)
            for name in ("hidden", "queries", "keys", "values"):
                pairs = zip(getattr(found, name), getattr(expected, name), strict=True)
                for ours, theirs in pairs:
                    assert (ours is None) == (theirs is None)
                    if ours is not None:
                        # half precision has eleven bits
                        torch.testing.assert_close(masked(ours, mask), masked(theirs, mask), atol=1e-5, rtol=2**-11)
                        assert not masked(ours, ~mask).any()
            for ours, theirs in zip(found.biases, expected.biases, strict=True):
                assert (ours is None) == (theirs is None)
                assert ours is None or torch.equal(ours, theirs)


def test_the_teacher_is_run_once_and_only_as_deep_as_needed(tmp_path):
    """More needs add files and compute no file again; another key shares nothing."""
    teacher, ran = toy_model(vocab_size=64), []
    for layer in teacher.bert.encoder.layer:
        layer.register_forward_hook(lambda module, *_: ran.append(module))
    first = {"hidden": frozenset({1})}
    cached_teacher_signals(teacher, first, SPLIT, tmp_path, "key")
    assert set(ran) == {teacher.bert.encoder.layer[0]}
    ran.clear()
    cached_teacher_signals(teacher, first, SPLIT, tmp_path, "key")
    assert not ran
    cached_teacher_signals(teacher, NEEDS, SPLIT, tmp_path, "key")
    assert ran
    ran.clear()
    cached_teacher_signals(teacher, first, SPLIT, tmp_path, "another")
    assert ran


def test_a_damaged_file_is_made_again(tmp_path, caplog):
    """One turned bit would otherwise teach for ever."""
    teacher = toy_model(vocab_size=64)
    known = cached_teacher_signals(teacher, NEEDS, SPLIT, tmp_path, "key")
    before = known.vectors["hidden", 2].clone()
    flip_bit(next(tmp_path.rglob("hidden-2/vectors.npy")))
    again = cached_teacher_signals(teacher, NEEDS, SPLIT, tmp_path, "key")
    assert "computing the teacher's signals again" in caplog.text
    assert torch.equal(before, again.vectors["hidden", 2])


@pytest.mark.parametrize("known", [True, False], ids=["kept", "live"])
def test_signals_too_large_for_half_precision_are_said_so(tmp_path, known):
    """Whether they would be kept or not: else a loss is infinite, and the learning rate is blamed."""
    teacher = toy_model(vocab_size=64)
    with torch.no_grad():
        teacher.bert.encoder.layer[0].output.LayerNorm.bias.fill_(1e5)
    with pytest.raises(TrainingError, match=r"hidden of layer 1 are too large for half precision.*leave out the"):
        if known:
            cached_teacher_signals(teacher, {"hidden": frozenset({1})}, SPLIT, tmp_path, "key")
        else:
            with closing(SignalReader(teacher, {"hidden": {1}}, frozen=True)) as reader:
                as_kept(reader.read(pad(SPLIT.ids[:2], SPLIT.pad_id)))


def test_the_size_is_known_before_anything_is_computed(tmp_path):
    """Float16 of every token, layer and vector."""
    teacher = toy_model(vocab_size=64)
    cached_teacher_signals(teacher, NEEDS, SPLIT, tmp_path, "key")
    files = list(tmp_path.rglob("vectors.npy"))
    assert len(files) == 2 + 2 * 2 + 1
    data = sum(np.load(file, mmap_mode="r").nbytes for file in files)
    assert size_bytes(NEEDS, SPLIT, teacher) == data == 2 * sum(map(len, SPLIT.ids)) * 32 * 7
    assert size_bytes({"logits": frozenset()}, SPLIT, teacher) == 0


@pytest.mark.parametrize("losses", [("attention_kl", "hidden_mse"), ("minilm_v2",), ("shd",), ("a2d",)], ids=str)
def test_losses_on_known_signals_are_losses_on_the_teacher(tmp_path, losses):
    """Value and gradient of a step, and the teacher is not run for it."""
    settings = {name: {} for name in losses} | {"logit_kl": {}}
    if "minilm_v2" in losses:
        settings["minilm_v2"] = {"relation_heads": 4}
    logits = torch.randn(len(SPLIT), 3, generator=torch.Generator().manual_seed(1))
    split = EncodedSplit(**{**SPLIT.__dict__, "teacher_outputs": {"logits": logits}})
    batch = Collator(split)([4, 1, 7])
    results = []
    for use_known in (False, True):
        teacher = toy_model(vocab_size=64)
        student = toy_model(seed=1, vocab_size=64, num_hidden_layers=1)
        known = None
        if use_known:
            _, theirs = needs_of(loss_params(settings), shape_of(student.config), shape_of(teacher.config))
            known = cached_teacher_signals(teacher, theirs, split, tmp_path, "key")
            teacher.forward = None
        distiller = Distiller(student, teacher, settings, known=known)
        loss = distiller(**batch)["loss"]
        loss.backward()
        gradients = [weight.grad.flatten() for weight in distiller.parameters() if weight.grad is not None]
        results.append((loss.detach(), torch.cat(gradients)))
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("total", "count", "expected"), [(10, 5, [0, 2, 4, 6, 8]), (3, 5, [0, 1, 2]), (7, 3, [0, 2, 4])]
)
def test_probes_are_spread_over_a_file_that_may_be_sorted(total, count, expected):
    """The first rows of Banking77 are two of its 77 classes."""
    assert spread_rows(total, count) == expected
