"""Fitting only the upper part of a model: what stays, what is not computed again, and that it changes nothing."""

from types import SimpleNamespace

import pytest
import torch
from fakes import slow_but
from test_training import DEV, TRAIN, settings
from toy_models import FAMILIES, TASK, toy_model

from pipeline.base import files
from pipeline.base.errors import SettingsError, TrainingError
from pipeline.data.batches import pad
from pipeline.families import layers_of
from pipeline.training.answers import predict
from pipeline.training.distiller import Distiller
from pipeline.training.freezing import FrozenStates, freeze_below, frozen_layers
from pipeline.training.judges import OnDev
from pipeline.training.loop import fit

FREEZE = "teacher.training.freeze"
# every layer of a family that shares them is the same module
UNSHARED = [family for family in FAMILIES if family != "albert"]


def model_of(family="bert", **changes):
    """Without dropout, so that computing a layer again says the same."""
    rates = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "mlp_dropout"), 0.0)
    config = FAMILIES[family][0]
    return toy_model(family, **{name: rate for name, rate in rates.items() if hasattr(config(), name)}, **changes)


def trained(tmp_path, model, layers, *, is_whole=False, known=True, steps=12, rate=1.0e-3):
    """The weights before, and the model after a short training above so many layers."""
    freeze_below(model, layers, is_whole=is_whole)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    states = FrozenStates(model, layers, TRAIN, tmp_path / "states", "base", FREEZE) if known else None
    distiller = Distiller(model, None, {"cross_entropy": {}}, units=TASK.units, frozen=states)
    changed = settings(steps=steps, evaluations=2, learning_rate=rate)
    if states is None:
        fit(distiller, TRAIN, OnDev(DEV, TASK), changed, tmp_path / "work", "key", 0, "teacher", "last")
    else:
        with states.in_place():
            fit(distiller, TRAIN, OnDev(DEV, TASK), changed, tmp_path / "work", "key", 0, "teacher", "last")
    return before, model


def moved(before, model):
    """Names of the weights that training changed."""
    return {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}


@pytest.mark.parametrize("family", slow_but(UNSHARED, "bert", "mpnet"))
def test_frozen_layers_stay_and_the_others_learn(tmp_path, family):
    """Words and positions stay too; each layer above moves, and so does the head."""
    model = model_of(family)
    layers = layers_of(model)
    below = {id(weight) for layer in layers[:2] for weight in layer.parameters()}
    names = {id(weight): name for name, weight in model.named_parameters()}
    before, _ = trained(tmp_path, model, 2)
    changed = moved(before, model)
    assert not changed & {names[one] for one in below}
    assert not [name for name in changed if "embeddings" in name]
    for module in (layers[2], *[m for name, m in model.named_children() if name in ("classifier", "head")]):
        assert changed & {names[id(weight)] for weight in module.parameters()}


@pytest.mark.parametrize("family", slow_but(UNSHARED, "bert", "mpnet"))
@pytest.mark.parametrize("layers", [1, 3])
def test_states_that_are_kept_train_as_computing_them_would(tmp_path, family, layers):
    """But for half precision; the planted fault below shows that it would be seen."""
    kept = trained(tmp_path / "kept", model_of(family), layers)[1].state_dict()
    computed = trained(tmp_path / "computed", model_of(family), layers, known=False)[1].state_dict()
    furthest = max(float((kept[name] - computed[name]).abs().max()) for name in kept)
    # Adam moves a weight whose gradient is nearly 0 by its sign, which half precision may turn
    assert furthest < 12 * 1.0e-3 * 2
    answers = [predict(model_of(family), DEV.ids, DEV.pad_id, "x")["logits"] for _ in range(2)]
    assert torch.equal(*answers)


def test_states_of_other_rows_would_be_seen(tmp_path, monkeypatch):
    """Planted: each row is given the states of the one before it, and what is learned is another thing."""
    changes = {"steps": 90, "rate": 5.0e-3}
    right = trained(tmp_path / "right", model_of(), 1, **changes)[1]
    real = FrozenStates.show
    monkeypatch.setattr(FrozenStates, "show", lambda self, rows, mask: real(self, (rows - 1) % len(TRAIN), mask))
    wrong = trained(tmp_path / "wrong", model_of(), 1, **changes)[1]
    scores = [OnDev(TRAIN, TASK).score(Distiller(model, None, {"cross_entropy": {}})) for model in (right, wrong)]
    assert scores[0] > scores[1] + 0.2


def test_layers_below_are_run_once(tmp_path):
    """For the states; while training only the layer above them is, and dev asks the whole model."""
    model, ran = model_of(), []
    freeze_below(model, 2, is_whole=False)
    states = FrozenStates(model, 2, TRAIN, tmp_path, "base", FREEZE)
    for number, layer in enumerate(layers_of(model)):
        layer.attention.register_forward_hook(lambda *_, number=number: ran.append((number, model.training)))
    with states.in_place():
        model.train()
        rows = torch.tensor([0, 1])
        batch = pad([TRAIN.ids[i] for i in rows], TRAIN.pad_id)
        states.show(rows, batch["attention_mask"])
        model(**batch)
        assert ran == [(2, True)]
        ran.clear()
        model.eval()
        model(**batch)
        assert ran == [(0, False), (1, False), (2, False)]
    ran.clear()
    model.train()(**batch)
    assert [number for number, _ in ran] == [0, 1, 2]


def test_states_are_found_again_and_those_of_another_model_are_removed(tmp_path):
    """By what decides them: the model, the layers and the rows."""
    model, ran = model_of(), []
    layers_of(model)[0].register_forward_hook(lambda *_: ran.append(1))
    FrozenStates(model, 2, TRAIN, tmp_path, "base", FREEZE)
    assert ran
    ran.clear()
    FrozenStates(model, 2, TRAIN, tmp_path, "base", FREEZE)
    assert not ran
    kept = []
    for layers, rows, base in ((1, TRAIN, "base"), (2, DEV, "base"), (2, TRAIN, "other")):
        FrozenStates(model, layers, rows, tmp_path, base, FREEZE)
        [folder] = tmp_path.iterdir()
        kept.append(folder.name)
        assert ran
        ran.clear()
    assert len(set(kept)) == 3


def test_states_that_have_no_room_are_refused_by_the_settings_name(tmp_path, monkeypatch):
    """There is one cure that costs no disk."""
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(SettingsError, match=r"freeze: what frozen layers say is kept: .*1,000 bytes free.* to null"):
        FrozenStates(model_of(), 2, TRAIN, tmp_path, "base", FREEZE)


def test_states_too_large_for_half_precision_are_refused_by_the_settings_name(tmp_path):
    """Losses have nothing to do with them."""
    model = model_of()
    with torch.no_grad():
        layers_of(model)[1].output.LayerNorm.bias.fill_(1e5)
    with pytest.raises(TrainingError, match=r"hidden of layer 2 are too large for half precision.*freeze to null"):
        FrozenStates(model, 2, TRAIN, tmp_path, "base", FREEZE)


@pytest.mark.parametrize("family", slow_but(FAMILIES, "bert", "albert"))
def test_a_head_alone_can_be_trained(tmp_path, family):
    """Nothing of the encoder moves but what the head is made of."""
    model = model_of(family)
    layers = frozen_layers(model, "encoder", "teacher.training.freeze")
    assert layers == len(layers_of(model))
    before, _ = trained(tmp_path, model, layers, is_whole=True)
    changed = moved(before, model)
    assert changed and all("pooler" in name or not name.startswith(model.base_model_prefix) for name in changed)


def test_what_cannot_be_frozen_is_refused():
    """More layers than there are, and layers that are those above as well."""
    with pytest.raises(SettingsError, match=r"teacher\.training\.freeze: found 4, but the model has 3 layers"):
        frozen_layers(toy_model(), 4, "teacher.training.freeze")
    with pytest.raises(SettingsError, match="layers share their weights; use 'encoder', or null"):
        frozen_layers(toy_model("albert"), 1, "teacher.training.freeze")
    assert frozen_layers(toy_model(), None, "teacher.training.freeze") == 0
