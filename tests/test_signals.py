"""What the reader takes out of a model equals what the model computes, and nothing goes missing in silence."""

import pytest
import torch
from torch import nn
from toy_models import FAMILIES, FUSED, marked_batch, toy_batch, toy_model

from pipeline.base.errors import SignalError
from pipeline.families import family_of, layers_of
from pipeline.signals.divergences import masked_log_probs
from pipeline.signals.reader import SIGNALS, SignalReader, attention_scores


def attention_maps(signals):
    """The maps recomputed from queries and keys, one for each layer."""
    layers = range(1, len(signals.queries) + 1)
    return [masked_log_probs(attention_scores(signals, layer), signals.mask).exp() for layer in layers]


def read(model, needs=SIGNALS, **settings):
    """One batch through a reader that is closed again."""
    with SignalReader(model, needs, **settings) as reader:
        return reader.read(marked_batch())


@pytest.mark.parametrize("family", FAMILIES)
def test_recomputed_maps_equal_the_models_own(family):
    """In eval mode eager attention has no dropout, so its maps are the truth."""
    model = toy_model(family)
    inputs = {name: tensor for name, tensor in toy_batch().items() if name != "labels"}
    with torch.no_grad():
        expected = model(**inputs, output_attentions=True).attentions
        maps = attention_maps(read(model))
    assert len(expected) == len(maps) == 3
    queries = inputs["attention_mask"].bool()[:, None, :, None]
    for own, recomputed in zip(expected, maps, strict=True):
        torch.testing.assert_close(recomputed * queries, own * queries, atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_values_and_logits_are_the_models_own(family):
    """Hidden state 0 is what enters layer 1, l what layer l gave; values are a projection of the state below."""
    model = toy_model(family)
    inputs = {name: tensor for name, tensor in toy_batch().items() if name != "labels"}
    signals, parts, given = read(model), family_of(model.config), []
    for layer in set(layers_of(model)):
        module = layer.get_submodule(parts.module_of("value"))
        module.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    expected = model(**inputs, output_hidden_states=True)
    torch.testing.assert_close(signals.logits, expected.logits)
    torch.testing.assert_close(signals.hidden, expected.hidden_states)
    assert torch.equal(signals.mask, inputs["attention_mask"] == 1)
    assert torch.equal(signals.labels, toy_batch()["labels"])
    for number, states in enumerate(given):
        value = nn.functional.linear(states, *parts.linear(model, number, "value"))  # (B, L, D)
        torch.testing.assert_close(signals.values[number].transpose(1, 2).flatten(2), value)


@pytest.mark.parametrize("family", FUSED)
def test_fused_attention_in_train_mode_gives_maps_without_dropout(family):
    """Attention dropout comes after what the hooks see: rows sum to 1, and layer 1 equals eval mode exactly."""
    rates = family_of(toy_model(family).config).dropouts
    model = toy_model(family, "sdpa", **{name: 0.5 if name.startswith("attention") else 0.0 for name in rates})
    expected = attention_maps(read(model))
    model.train()
    maps = attention_maps(read(model))
    assert model.training
    for recomputed in maps:
        torch.testing.assert_close(recomputed.sum(-1), torch.ones_like(recomputed.sum(-1)))
    torch.testing.assert_close(maps[0], expected[0], atol=1e-6, rtol=0)
    assert not torch.equal(maps[1], expected[1])  # dropout was really on: the layers above saw it


@pytest.mark.parametrize("family", FUSED)
def test_fused_attention_gives_the_maps_that_eager_attention_gives(family):
    """The same weights under either implementation, whose own rounding differs from the second layer on."""
    eager, fused = attention_maps(read(toy_model(family))), attention_maps(read(toy_model(family, "sdpa")))
    torch.testing.assert_close(eager, fused, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("part", "needs"), [("query", "attention"), ("key", "attention"), ("value", "values")])
def test_a_layer_that_gives_nothing_is_an_error(part, needs):
    """Planted fault: layer 2 computes with another module than the one that was hooked."""
    model = toy_model()
    with SignalReader(model, [needs]) as reader:
        reader.read(toy_batch())
        setattr(layers_of(model)[1].attention.self, part, nn.Linear(32, 32))
        with pytest.raises(SignalError, match=f"layer 2 of the student gave no {part}"):
            reader.read(toy_batch())


def test_signals_of_an_earlier_batch_are_never_taken_for_this_one():
    """A run between two reads leaves nothing behind."""
    model = toy_model()
    with SignalReader(model, ["attention"], frozen=True) as reader:
        model(**toy_batch())
        for layer in layers_of(model):
            layer.attention.self.query = nn.Linear(32, 32)
        with pytest.raises(SignalError, match="layer 1 of the teacher gave no query"):
            reader.read(toy_batch())


def test_missing_hidden_states_are_an_error():
    """Planted fault: a layer that was taken out of the model after it was hooked."""
    model = toy_model()
    with SignalReader(model, ["hidden"]) as reader:
        model.bert.encoder.layer = model.bert.encoder.layer[:2]
        with pytest.raises(SignalError, match="layer 3 of the student gave no hidden state"):
            reader.read(toy_batch())


def test_a_closed_reader_raises_and_leaves_the_model_as_it_was():
    """No hook stays behind, and reading after closing is an error rather than an empty signal."""
    model = toy_model()
    names = list(model.state_dict())
    with SignalReader(model, SIGNALS) as reader:
        assert any(module._forward_hooks for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
    assert list(model.state_dict()) == names
    with pytest.raises(SignalError, match="the reader is closed"):
        reader.read(marked_batch())


def test_only_what_is_needed_is_read():
    """Hooks cost memory, so a signal nobody asked for is an empty tuple."""
    signals = read(toy_model(), ["logits"])
    assert (signals.hidden, signals.queries, signals.keys, signals.values, signals.labels) == ((), (), (), (), None)


def test_a_frozen_model_is_read_in_eval_mode_without_gradient():
    """Even when a wrapper that owns both models was put into train mode."""
    teacher = toy_model("bert", "sdpa")
    with SignalReader(teacher, SIGNALS, frozen=True) as reader:
        expected = reader.read(marked_batch())
        nn.ModuleDict({"teacher": teacher}).train()
        signals = reader.read(marked_batch())
    assert not teacher.training
    assert torch.equal(signals.logits, expected.logits)
    for tensor in (signals.logits, *signals.hidden, *signals.queries, *signals.keys, *signals.values):
        assert not tensor.requires_grad
        assert not tensor.is_inference()  # autograd could not save it for the student's backward pass


def test_gradient_reaches_the_student_through_every_signal():
    """A signal that was detached on the way would train nothing."""
    signals = read(toy_model().train())
    for tensor in (signals.logits, *signals.hidden, *signals.queries, *signals.keys, *signals.values):
        assert tensor.requires_grad


def test_gradient_checkpointing_is_refused_where_it_hides_gradients():
    """Planted fault: with reentrant checkpointing the hooks would see tensors without gradient."""
    model = toy_model().train()
    model.gradient_checkpointing_enable()
    with SignalReader(model, ["attention"]) as reader, pytest.raises(SignalError, match="gradient checkpointing is on"):
        reader.read(toy_batch())
    with SignalReader(model, ["logits"]) as reader:
        assert reader.read(toy_batch()).logits.requires_grad


def test_labels_are_not_shown_to_the_model():
    """The model would compute its own loss; ours are the only ones."""
    seen = []
    model = toy_model()
    handle = model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True)
    read(model)
    handle.remove()
    assert "labels" not in seen[0]


@pytest.mark.parametrize(
    ("needs", "missing", "message"),
    [
        (["logits"], "attention_mask", "the batch has no 'attention_mask'"),
        (["labels"], "labels", "the batch has no 'labels'"),
    ],
)
def test_a_batch_that_lacks_something_is_an_error(needs, missing, message):
    """Padding that is not marked, or labels that are not there, must not be guessed."""
    batch = {name: tensor for name, tensor in toy_batch().items() if name != missing}
    with SignalReader(toy_model(), needs) as reader, pytest.raises(SignalError, match=message):
        reader.read(batch)


def test_an_unknown_signal_is_an_error():
    """A typing mistake in a loss's NEEDS is found before training."""
    with pytest.raises(SignalError, match=r"no signal \['atention'\]; known: logits"):
        SignalReader(toy_model(), ["atention"])


def test_layers_that_no_loss_looks_at_are_none():
    """The tuple is as long as the model is deep all the same, for the layer maps count it."""
    signals = read(toy_model(), {"attention": {2}, "hidden": {0, 3}})
    assert [tensor is None for tensor in signals.queries] == [True, False, True]
    assert [tensor is None for tensor in signals.hidden] == [False, True, True, False]
    with pytest.raises(SignalError, match="was not read"):
        attention_scores(signals, 1)
    with pytest.raises(SignalError, match="no layer 4 to read attention from: the model has 3 layers"):
        SignalReader(toy_model(), {"attention": {4}})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("needs", [{"attention": {2}}, {"hidden": {0}}, {"hidden": {1}, "values": {2}}], ids=str)
def test_known_logits_spare_the_layers_above(family, needs):
    """The signals are the same to the last bit, and the last layer is not run."""
    model, ran = toy_model(family), []
    for layer in set(layers_of(model)):  # a shared one is called three times
        layer.register_forward_hook(lambda *_: ran.append(True))
    with SignalReader(model, needs, frozen=True) as reader:
        whole = reader.read(toy_batch())
        assert len(ran) == 3
        ran.clear()
        part = reader.read(toy_batch(), logits=whole.logits)
    assert len(ran) < 3
    for name in ("hidden", "queries", "keys", "values"):
        for one, other in zip(getattr(whole, name), getattr(part, name), strict=True):
            assert (one is None and other is None) or torch.equal(one, other)


def test_known_logits_and_no_other_need_spare_the_model():
    """Nothing at all is run."""
    model = toy_model()
    model.forward = None
    with SignalReader(model, ["logits"], frozen=True) as reader:
        assert reader.read(toy_batch(), logits=torch.ones(3, 3)).logits.sum() == 9


def test_output_weights_are_the_projections_own():
    """The columns of one head's slice take that head's values."""
    model = toy_model()
    signals = read(model, {"output_weights": {3}})
    assert signals.output_weights[0] is None
    assert signals.output_weights[2] is model.bert.encoder.layer[2].attention.output.dense.weight


@pytest.mark.parametrize("family", FAMILIES)
def test_a_distillation_token_is_taken_out_of_every_signal(family):
    """What is left is the other positions; the token's own last state is a signal of its own."""
    plain, marked = toy_model(family), toy_model(family)
    marked.config.decant_distillation_token = True
    needs = ("hidden", "attention", "values", "delimiters", "token")
    whole, part = read(plain, needs), read(marked, needs)
    kept = [0, 2, 3, 4, 5, 6]
    assert torch.equal(part.mask, whole.mask[:, kept])
    assert torch.equal(part.delimiters, whole.delimiters[:, kept])
    assert whole.token is None
    assert torch.equal(part.token, whole.hidden[3][:, 1])
    for layer in range(4):
        assert torch.equal(part.hidden[layer], whole.hidden[layer][:, kept])
    for name in ("queries", "keys", "values"):
        for ours, theirs in zip(getattr(part, name), getattr(whole, name), strict=True):
            assert torch.equal(ours, theirs[:, :, kept])
