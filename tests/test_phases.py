"""Which losses are trained in which phase, and on which rows."""

import pytest
import torch
from tiny_project import write_project

from pipeline.base.errors import SettingsError
from pipeline.distillation import distil
from pipeline.distillation.distil import Distillation
from pipeline.distillation.phases import phases_of
from pipeline.distillation.variants import variants_of
from pipeline.losses.cross_entropy import UNLABELLED
from pipeline.settings.distill import DistillSettings
from stages import machine, prepare, teach

LOSSES = {"attention_kl": {"map": "last_only"}, "logit_kl": {}}


def phases(losses, **changes):
    """The phases, each as its losses, epochs and what it keeps."""
    settings = DistillSettings.model_validate({"phases": "two", "losses": losses, "signal_epochs": 2.0} | changes)
    return [(list(phase.losses), phase.training.epochs, phase.keep) for phase in phases_of(losses, settings)]


def test_signal_losses_come_first():
    """With their own epochs; one phase has all of them."""
    assert phases(LOSSES) == [(["attention_kl"], 2.0, "last"), (["logit_kl"], 6.0, "best")]
    assert phases(LOSSES, phases="one") == [(["attention_kl", "logit_kl"], 6.0, "best")]


def test_a_control_without_signal_losses_takes_as_many_steps():
    """Its own losses in both phases."""
    assert phases({"cross_entropy": {}}) == [(["cross_entropy"], 2.0, "last"), (["cross_entropy"], 6.0, "best")]


def test_a_second_phase_without_losses_is_refused():
    """A past fault: logit_kl was added without a word."""
    with pytest.raises(SettingsError, match=r"found 'two', but of distill.losses \(attention_kl\) none is on logits"):
        phases({"attention_kl": {"map": "last_only"}})


def test_only_losses_that_read_the_teacher_see_augmented_text(tmp_path, monkeypatch):
    """A past fault: the control's batches were mostly rows whose labels it has not; the number of steps stays."""
    params, workspace = write_project(
        tmp_path,
        distill__augment={"methods": ["replace"], "copies": 3},
        distill__controls={"no_teacher": 1, "logits_only": 1},
        distill__training={"epochs": 1.0, "learning_rate": 5.0e-3, "batch_size": 16},
    )
    before = torch.get_num_threads()
    monkeypatch.chdir(tmp_path)
    for stage in (machine, prepare, teach):
        stage.run(params, workspace)
    seen = {}
    original = distil.fit

    def fit(distiller, train, *arguments, **keywords):
        run = original(distiller, train, *arguments, **keywords)
        seen[arguments[5]] = (train, run.steps)
        return run

    monkeypatch.setattr(distil, "fit", fit)
    monkeypatch.setattr(distil, "check_learned", lambda *_: None)  # one epoch need not be enough
    distillation = Distillation(params, workspace)
    for variant in variants_of(params.distill, "cross_entropy", params.seed):
        distillation.train(variant, tmp_path / "students" / variant.name)
    torch.set_num_threads(before)
    rows = {name: len(train) for name, (train, _) in seen.items()}
    assert rows["no_teacher-0"] == 120
    assert rows["distilled-0"] == rows["logits_only-0"] > 200
    assert UNLABELLED not in seen["no_teacher-0"][0].targets
    assert {steps for _, steps in seen.values()} == {8}
