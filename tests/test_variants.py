"""Which students one distillation trains, and under which key."""

import pytest
from tiny_project import make_settings

from pipeline.base.dependencies import Trace
from pipeline.data.prepared import EncodedSplit
from pipeline.distillation.variants import Variant, run_key, variants_of
from pipeline.settings.distill import DistillSettings
from pipeline.settings.params import Params

LOSSES = {
    "logit_kl": {"weight": 1.0, "temperature": 2.0},
    "attention_kl": {"weight": 0.5, "map": "uniform"},
    "cross_entropy": {"weight": 0.1},
}
SPLIT = EncodedSplit(("a", "b"), [[1, 5, 2], [1, 6, 7, 2]], (0, 1), pad_id=0)
SETTINGS = {"student": {"layers": 3}, "losses": LOSSES, "variant": "distilled-0"}
PARAMS = Params.model_validate(make_settings("/nowhere"), strict=False)


def variants(seed=0, **changes):
    """The variants of some settings."""
    return variants_of(DistillSettings.model_validate({"losses": LOSSES} | changes), "cross_entropy", seed)


def test_one_student_and_no_control_unless_asked():
    """With all losses and the seed of the settings."""
    assert variants(seed=3) == [Variant("distilled", 3, LOSSES)]
    assert variants(seed=3)[0].name == "distilled-3"


def test_seeds_are_counted_on_for_each_kind():
    """Distilled ones first; the same seeds in each kind, so that students can be compared in pairs."""
    found = variants(seed=5, seeds=2, controls={"no_teacher": 3, "logits_only": 1})
    names = ["distilled-5", "distilled-6", "logits_only-5", "no_teacher-5", "no_teacher-6", "no_teacher-7"]
    assert [variant.name for variant in found] == names


def test_controls_leave_losses_out():
    """Logit losses keep their settings; without a teacher there are only labels."""
    by_kind = {v.kind: v.losses for v in variants(controls={"no_teacher": 1, "logits_only": 1})}
    assert by_kind["logits_only"] == {name: LOSSES[name] for name in ("logit_kl", "cross_entropy")}
    assert by_kind["no_teacher"] == {"cross_entropy": {}}


def test_control_without_logit_losses_gets_one():
    """A student of signal losses alone still has something to be compared with."""
    found = variants(losses={"attention_kl": {}}, controls={"no_teacher": 0, "logits_only": 1})
    assert found[1].losses == {"logit_kl": {}}


CODE = Trace({"pipeline/training/loop.py": "ab"}, {"torch": "1"})


def key(settings=SETTINGS, code=CODE, params=PARAMS, train=SPLIT, dev=SPLIT, contents=("ab", "labels")):
    """The key of a run, changed in one place by the tests."""
    return run_key(settings, code, params, train, dev, *contents)


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": SETTINGS | {"variant": "distilled-1"}},
        {"settings": SETTINGS | {"losses": LOSSES | {"logit_kl": {"weight": 1.0, "temperature": 2.5}}}},
        {"params": PARAMS.model_copy(update={"seed": 1})},
        {"params": PARAMS.model_copy(update={"threads": 2})},
        {"train": EncodedSplit(("a", "b"), [[1, 5, 2], [1, 6, 8, 2]], (0, 1), pad_id=0)},
        {"train": EncodedSplit(("a", "b"), SPLIT.ids, (1, 1), pad_id=0)},
        {"train": EncodedSplit(("a", "b"), SPLIT.ids, (0, 1), pad_id=0, teacher_ids=SPLIT.ids)},
        {"dev": EncodedSplit(("a", "b"), SPLIT.ids, (1, 1), pad_id=0)},
        {"contents": ("ac", "labels")},
        {"contents": ("ab", "other labels")},
    ],
)
def test_whatever_decides_the_weights_is_in_the_key(changes):
    """Faults rows 22 and 38: settings, seed, threads, token ids, labels, teacher."""
    assert key(**changes) != key()


def test_key_does_not_depend_on_the_order_of_settings():
    """Two processes write a dictionary in two orders."""
    settings = {"b": 1, "a": [1.5, "é"]}
    assert key(settings) == key(dict(reversed(settings.items())))


def test_edited_code_has_another_key():
    """Or the old student would be shipped as the new code's. So has another version of a package."""
    assert key(code=Trace({"pipeline/training/loop.py": "edited"}, CODE.packages)) != key()
    assert key(code=Trace(CODE.code, {"torch": "2"})) != key()


def test_targets_and_measuring_are_not_in_the_key():
    """Changing a budget trains nothing again."""
    assert key(params=PARAMS.model_copy(update={"measure": PARAMS.measure.model_copy(update={"pairs": 7})})) == key()
