"""Laws that every distillation loss obeys, and proof that each check catches the fault it is there for.

Every file in `pipeline/losses` is covered, with its default settings and with each switch and temperature moved, so a
new loss needs no test of its own for these. What a law depends on is read from the loss file: KIND, NEEDS,
TEACHER_ONLY, IS_CROSS_ENTROPY, IS_BATCH_STATISTIC and whether it has an auxiliary module.
"""

from dataclasses import replace
from types import SimpleNamespace
from typing import Literal, get_args, get_origin

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import nn
from toy_models import marked_batch, toy_model

from pipeline.base import plugins
from pipeline.base.errors import SettingsError, SignalError
from pipeline.families import DISTILLATION_TOKEN, Shape, shape_of
from pipeline.losses import LayerLossParams, LossParams
from pipeline.losses import minilm_v2 as minilm_v2_file
from pipeline.signals.divergences import masked_log_probs, mean_over_examples, row_kl
from pipeline.signals.reader import LAYERED, SIGNALS, TOKEN_POSITION, SignalReader, Signals, attention_scores
from pipeline.training.needs import needs_of

# 48 relation heads, the default, divide both widths
TEACHER = Shape(layers=4, hidden=96, heads=4, ffn=0, choices=3)
# with a distillation token, which the losses that do not read it must not mind
STUDENT = Shape(layers=2, hidden=48, heads=4, ffn=0, choices=3, distillation_token=True)
WIDE_STUDENT = replace(TEACHER, distillation_token=True)
LENGTHS = (6, 4, 1)
OVER_TOKENS = ("hidden", "queries", "keys", "values")
TENSORS = ("logits", "token", "output_weights", *OVER_TOKENS)  # all that can carry a gradient
READS = {name: (name,) for name in TENSORS} | {"attention": ("queries", "keys")}


def variants(file):
    """The default settings, then each switch, each choice and each temperature moved away from its default."""
    yield file.Params()
    for name, field in file.Params.model_fields.items():
        # what all losses share, such as decay, is none of the file's own choices
        if get_origin(field.annotation) is Literal and name not in LossParams.model_fields:
            yield from (file.Params(**{name: word}) for word in get_args(field.annotation) if word != field.default)
        if field.annotation is bool:
            yield file.Params(**{name: not field.default})
        if "temperature" in name:
            yield file.Params(**{name: field.default * 1.5})


def catalogue():
    """Every loss file with every variant of its settings, named after what differs."""
    for name in plugins.names("loss"):
        file = plugins.load("loss", name)
        for params in variants(file):
            changed = {key: value for key, value in params if value != type(params).model_fields[key].default}
            yield pytest.param(file, params, id=f"{name}-{changed}" if changed else name)


every_loss = pytest.mark.parametrize(("file", "params"), list(catalogue()))


def make_signals(shape, seed, lengths=LENGTHS):
    """Random signals with padding behind each example; the labels are the same whatever the seed."""
    generator = torch.Generator().manual_seed(seed)
    batch, length = len(lengths), max(*lengths, 1)
    mask = torch.arange(length)[None, :] < torch.tensor(lengths)[:, None]
    head = (batch, shape.heads, length, shape.hidden // shape.heads)

    def draw(count, size):
        return tuple(torch.randn(size, generator=generator) for _ in range(count))

    return Signals(
        logits=2 * torch.randn((batch, shape.choices), generator=generator),
        mask=mask,
        hidden=draw(shape.layers + 1, (batch, length, shape.hidden)),
        queries=draw(shape.layers, head),
        keys=draw(shape.layers, head),
        values=draw(shape.layers, head),
        targets=torch.arange(batch) % shape.choices,
        output_weights=draw(shape.layers, (shape.hidden, shape.hidden)),
        token=draw(1, (batch, shape.hidden))[0] if shape.distillation_token else None,
        delimiters=mask & ((torch.arange(length) == 0) | (mask.cumsum(1) == mask.sum(1, keepdim=True))),
    )


def change(signals, function, **others):
    """The signals with `function` applied to every tensor over tokens, whose last axis but one is the token."""
    changed = {name: tuple(function(tensor) for tensor in getattr(signals, name)) for name in OVER_TOKENS}
    return replace(signals, **changed, **others)


def change_all(signals, function):
    """The signals with `function` applied to every tensor that can carry a gradient."""
    weights = tuple(function(tensor) for tensor in signals.output_weights)
    token = None if signals.token is None else function(signals.token)
    return change(signals, function, logits=function(signals.logits), output_weights=weights, token=token)


def take(signals, examples):
    """Some examples of a batch, cropped to the longest of them when it is one."""
    length = int(signals.mask[examples].sum(1).max())
    return change(
        signals,
        lambda tensor: tensor[examples][..., :length, :],
        logits=signals.logits[examples],
        mask=signals.mask[examples, :length],
        targets=signals.targets[examples],
        token=None if signals.token is None else signals.token[examples],
        delimiters=signals.delimiters[examples, :length],
    )


def with_gradient(signals):
    """The same values as leaves that collect a gradient."""
    return change_all(signals, lambda tensor: tensor.clone().requires_grad_())


def tensors_of(signals, names=TENSORS):
    """Every tensor of the named fields, in a list."""
    found = [getattr(signals, name) for name in names]
    return [tensor for entry in found if entry is not None for tensor in (entry if type(entry) is tuple else (entry,))]


def name_of(file):
    """The loss's name in params.yaml."""
    return file.__name__.rpartition(".")[2]


def auxiliary_of(file, student, teacher, params):
    """The module the loss learns with, or None."""
    torch.manual_seed(0)
    return file.auxiliary(student, teacher, params) if hasattr(file, "auxiliary") else None


def value(file, params, student, teacher, module=None):
    """The loss as a number."""
    with torch.no_grad():
        return file.loss(student, teacher, params, module).item()


def two_models(file, params, lengths=LENGTHS, student_shape=STUDENT):
    """Student and teacher signals of different shape, with the module they need."""
    return (
        make_signals(student_shape, 1, lengths),
        make_signals(TEACHER, 2, lengths),
        auxiliary_of(file, student_shape, TEACHER, params),
    )


# --- the checks; each takes a loss file, or something that looks like one ---


def check_zero_on_identical(file, params):
    """A student that equals its teacher has nothing to learn, unless the target's entropy is part of the loss.

    A loss that learns a module even between equal shapes looks at what that module makes of the signals, and equal
    signals do not make a module that has learned nothing right; it is left out.
    """
    if auxiliary_of(file, WIDE_STUDENT, TEACHER, params) is None:
        signals = make_signals(TEACHER, 1)
        assert abs(value(file, params, signals, signals)) <= 1e-6 or getattr(file, "IS_CROSS_ENTROPY", False)


def check_positive_on_different(file, params):
    """No divergence is negative, and none is blind."""
    assert value(file, params, *two_models(file, params)) > 1e-3


def check_padding(file, params):
    """Neither what stands in the padded area nor how large it is changes the loss."""
    student, teacher, module = two_models(file, params)
    expected = value(file, params, student, teacher, module)
    for fill_student, fill_teacher in ((1e3, -1e3), (-1e3, 1e3), (1e3, 1e3)):
        for extra in (0, 3):
            garbage = (pad(student, fill_student, extra), pad(teacher, fill_teacher, extra))
            assert value(file, params, *garbage, module) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def pad(signals, fill, extra):
    """The signals with `extra` more padded positions and `fill`, in alternating signs, in all padded ones."""
    mask = nn.functional.pad(signals.mask, (0, extra))

    def refill(tensor):
        longer = nn.functional.pad(tensor, (0, 0, 0, extra))
        valid = mask[:, :, None] if longer.dim() == 3 else mask[:, None, :, None]
        garbage = torch.full_like(longer, fill)
        garbage[..., ::2, 1::2] *= -1
        return torch.where(valid, longer, garbage)

    return change(signals, refill, mask=mask, delimiters=nn.functional.pad(signals.delimiters, (0, extra)))


def check_batch_composition(file, params):
    """An example weighs the same in any company: the batch's loss is the mean of its examples' losses."""
    student, teacher, module = two_models(file, params)
    alone = [
        value(file, params, take(student, [index]), take(teacher, [index]), module) for index in range(len(LENGTHS))
    ]
    assert value(file, params, student, teacher, module) == pytest.approx(sum(alone) / len(alone), rel=1e-5)


def check_gradient(file, params):
    """The student and the auxiliary module learn, from all that the loss reads; the teacher gets no gradient.

    Of what the file calls TEACHER_ONLY the student's side is not read.
    """
    student, teacher, module = two_models(file, params)
    student, teacher = with_gradient(student), with_gradient(teacher)
    file.loss(student, teacher, params, module).backward()
    assert all(tensor.grad is None for tensor in tensors_of(teacher)), "gradient into the teacher"
    for need in file.NEEDS:
        for name in READS.get(need, ()):
            learns = any(tensor.grad is not None and tensor.grad.any() for tensor in tensors_of(student, [name]))
            assert learns == (need not in getattr(file, "TEACHER_ONLY", ())), name
    for parameter in module.parameters() if module is not None else ():
        assert parameter.grad is not None
        assert parameter.grad.any()


def check_finite(file, params, lengths):
    """Value and gradient are finite, also in padded positions full of garbage."""
    student, teacher, module = two_models(file, params, lengths)
    student, teacher = with_gradient(pad(student, 1e3, 2)), pad(teacher, -1e3, 2)
    result = file.loss(student, teacher, params, module)
    result.backward()
    assert torch.isfinite(result)
    assert all(torch.isfinite(tensor.grad).all() for tensor in tensors_of(student) if tensor.grad is not None)


def check_float32_under_autocast(file, params, dtype):
    """Autocast changes nothing about the arithmetic, and half-precision signals are taken up to float32 first."""
    student, teacher, module = two_models(file, params)
    expected = value(file, params, student, teacher, module)
    with torch.autocast("cpu", dtype=dtype):
        result = file.loss(student, teacher, params, module)
        assert result.dtype == torch.float32
        assert result.item() == expected
        rounded = [change_all(signals, lambda tensor: tensor.to(dtype)) for signals in (student, teacher)]
        result = file.loss(*rounded, params, module)
    assert result.dtype == torch.float32
    assert result.item() == value(
        file, params, *(change_all(signals, torch.Tensor.float) for signals in rounded), module
    )


def check_head_permutation(file, params):
    """Reordering the heads of both models changes nothing; of one, it does."""
    student, teacher, module = two_models(file, params)
    expected = value(file, params, student, teacher, module)

    def permute(signals):
        return change(signals, lambda tensor: tensor[:, [2, 0, 3, 1]] if tensor.dim() == 4 else tensor)

    assert value(file, params, permute(student), permute(teacher), module) == pytest.approx(expected, rel=1e-5)
    assert value(file, params, permute(student), teacher, module) != pytest.approx(expected, rel=1e-4)


def check_asked(file, params):
    """The value is that of all signals, and nothing is missed."""
    student, teacher, module = two_models(file, params)
    ours, theirs = needs_of({name_of(file): params}, STUDENT, TEACHER)
    asked = (only(student, ours), only(teacher, theirs))
    assert value(file, params, *asked, module) == value(file, params, student, teacher, module)


def only(signals, needs):
    """What a reader gives that was asked for these layers of these signals; logits always."""
    kept = {}
    for need, layers in needs.items():
        for name in READS.get(need, (need,)):
            kept[name] = getattr(signals, name)
            if need in LAYERED:
                kept[name] = tuple(t if i in layers else None for i, t in enumerate(kept[name], need != "hidden"))
    return replace(Signals(logits=signals.logits, mask=signals.mask), **kept)


def check_descent(file, params, student_shape=WIDE_STUDENT):
    """Fifty Adam steps on signals that are free to move take off more than nine tenths.

    The rate falls to 0, as in training: a loss with a kink at its minimum, such as an absolute difference, has a
    gradient that does not fade, and steps of constant length would circle around it. An alignment that is learned
    together with the heads settles early, short of the best, and fewer heads cannot make up more: half must do.
    """
    student, teacher, module = two_models(file, params, student_shape=student_shape)
    student = with_gradient(student)
    free = tensors_of(student) + (list(module.parameters()) if module is not None else [])
    optimizer = torch.optim.Adam(free, lr=0.2)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=50)
    first = value(file, params, student, teacher, module)
    for _ in range(50):
        optimizer.zero_grad()
        file.loss(student, teacher, params, module).backward()
        optimizer.step()
        decay.step()
    left = 0.5 if getattr(file, "LEARNS_ALIGNMENT", False) else 0.1
    assert value(file, params, student, teacher, module) < left * first


# --- the checks on every loss ---


@every_loss
def test_loss_file_keeps_its_contract(file, params):
    """What the rest of the pipeline relies on without asking."""
    assert file.KIND in ("logit", "signal")
    assert file.NEEDS
    assert set(file.NEEDS) <= set(SIGNALS)
    assert file.KIND == "signal" or set(file.NEEDS) <= {"logits", "targets"}
    assert issubclass(file.Params, LossParams)
    for student in (STUDENT, WIDE_STUDENT):
        assert not hasattr(file, "misfit") or file.misfit(student, TEACHER, params) is None


@every_loss
def test_loss_is_zero_on_identical_signals(file, params):
    """Unless the file says that it is a cross-entropy."""
    check_zero_on_identical(file, params)


@every_loss
def test_loss_is_positive_on_different_signals(file, params):
    """Student and teacher drawn apart."""
    check_positive_on_different(file, params)


@every_loss
def test_padding_does_not_change_the_loss(file, params):
    """Filled with 1e3 of either sign, and made longer."""
    check_padding(file, params)


@every_loss
def test_batch_composition_does_not_change_the_loss(file, params):
    """Examples of different length; a loss that compares the examples with each other says so and is left out."""
    if not getattr(file, "IS_BATCH_STATISTIC", False):
        check_batch_composition(file, params)


@every_loss
def test_gradient_reaches_the_student_only(file, params):
    """Even when the teacher's signals come with a graph."""
    check_gradient(file, params)


@every_loss
@pytest.mark.parametrize("lengths", [(1, 1), (4, 0, 2), (0, 0), (5, 1)], ids=str)
def test_loss_is_finite_at_the_edges(file, params, lengths):
    """One token in all, one valid token, an example that is all padding, a batch that is."""
    check_finite(file, params, lengths)


@every_loss
def test_an_example_without_tokens_is_skipped(file, params):
    """It adds nothing and is not counted; losses on logits still see its logits."""
    if file.KIND == "logit":
        return
    student, teacher, module = two_models(file, params, (4, 0, 2))
    kept = [take(student, [0, 2]), take(teacher, [0, 2])]
    assert value(file, params, student, teacher, module) == pytest.approx(value(file, params, *kept, module))


@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_loss_is_float32_under_autocast(file, params, dtype):
    """To the last bit the number without autocast."""
    check_float32_under_autocast(file, params, dtype)


@every_loss
def test_what_is_not_asked_for_is_not_looked_at(file, params):
    """Signals that NEEDS does not name are absent, and so are the layers that `pipeline.training.needs` leaves out."""
    check_asked(file, params)


@every_loss
def test_head_order_matters_on_one_side_only(file, params):
    """For losses on attention; one that learns an alignment may undo a permutation, and one may average it away."""
    undone = hasattr(file, "auxiliary") or getattr(file, "IS_BLIND_TO_HEAD_ORDER", False)
    if "attention" in file.NEEDS and not undone:
        check_head_permutation(file, params)


@every_loss
def test_fifty_steps_lower_the_loss(file, params):
    """With a student as wide as the teacher, which can reach 0, and a narrower one where the loss brings a map."""
    check_descent(file, params)
    if hasattr(file, "auxiliary"):
        check_descent(file, params, STUDENT)


@every_loss
def test_ten_training_steps_leave_the_teacher_alone(file, params):
    """Real models under fused attention: the teacher's bytes and mode stay, the student learns and keeps its names."""
    teacher = toy_model("bert", "sdpa", num_hidden_layers=4, hidden_size=96)
    student = toy_model("bert", "sdpa", seed=1, num_hidden_layers=2, hidden_size=48, **{DISTILLATION_TOKEN: True})
    batch = marked_batch()
    # the same text from a tokenizer that sets no distillation token, as the teacher's
    plain = {name: tensor[:, torch.arange(7) != TOKEN_POSITION] for name, tensor in batch.items() if name != "targets"}
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    names, start = list(student.state_dict()), student.bert.encoder.layer[0].attention.self.key.weight.clone()
    shapes = shape_of(student.config), shape_of(teacher.config)
    module, needs = auxiliary_of(file, *shapes, params), needs_of({name_of(file): params}, *shapes)
    both = nn.ModuleDict({"student": student, "teacher": teacher})
    trained = [*both.parameters(), *(module.parameters() if module is not None else ())]
    optimizer = torch.optim.SGD(trained, lr=1e-3, weight_decay=0.0)
    with SignalReader(student, needs[0]) as ours, SignalReader(teacher, needs[1], frozen=True) as theirs:
        for _ in range(10):
            both.train()
            optimizer.zero_grad()
            file.loss(ours.read(batch), theirs.read(plain), params, module).backward()
            optimizer.step()
    assert not teacher.training
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    assert not torch.equal(start, student.bert.encoder.layer[0].attention.self.key.weight)
    assert list(student.state_dict()) == names


# --- each check catches its fault ---


def wrong(loss, kind="signal", needs=("attention",)):
    """Something that looks like a loss file."""
    return SimpleNamespace(KIND=kind, NEEDS=needs, Params=LossParams, loss=loss)


def last_scores(student, teacher):
    """The scores of both last layers."""
    return attention_scores(student, len(student.queries)), attention_scores(teacher, len(teacher.queries))


def right(student, teacher, params, module=None):
    """No fault: shows that a check which fails below fails for the fault alone."""
    return row_kl(*last_scores(student, teacher), student.mask)


def forgets_the_key_mask(student, teacher, params, module=None):
    ours, theirs = last_scores(student, teacher)
    terms = theirs.softmax(-1) * (theirs.log_softmax(-1) - ours.log_softmax(-1))
    rows = torch.where(student.mask[:, None, :], terms.sum(-1), 0.0).sum((1, 2))
    return mean_over_examples(rows / (ours.shape[1] * student.mask.sum(1)), student.mask)


def keeps_padded_rows(student, teacher, params, module=None):
    ours, theirs = (masked_log_probs(scores, student.mask) for scores in last_scores(student, teacher))
    return (theirs.exp() * (theirs - ours)).sum(-1).mean()


def mean_reduction(student, teacher, params, module=None):
    ours, theirs = (masked_log_probs(scores, student.mask) for scores in last_scores(student, teacher))
    valid = student.mask[:, None, :, None] & student.mask[:, None, None, :]
    return torch.where(valid, theirs.exp() * (theirs - ours), 0.0).mean()


def global_mean(student, teacher, params, module=None):
    ours, theirs = (masked_log_probs(scores, student.mask) for scores in last_scores(student, teacher))
    rows = torch.where(student.mask[:, None, :], (theirs.exp() * (theirs - ours)).sum(-1), 0.0)
    return rows.sum() / (student.mask.sum() * ours.shape[1])


def infinite_mask(student, teacher, params, module=None):
    hidden = ~student.mask[:, None, None, :]
    ours, theirs = (s.masked_fill(hidden, -torch.inf).log_softmax(-1) for s in last_scores(student, teacher))
    rows = (theirs.exp() * (theirs - ours)).sum(-1).masked_fill(~student.mask[:, None], 0.0)  # trusts 0 * inf to be 0
    return (rows.sum((1, 2)) / (ours.shape[1] * student.mask.sum(1).clamp(min=1))).mean()


def scores_under_autocast(student, teacher, params, module=None):
    ours, theirs = (s.queries[-1] @ s.keys[-1].transpose(-1, -2) for s in (student, teacher))
    return row_kl(ours, theirs, student.mask)


def averages_the_heads(student, teacher, params, module=None):
    ours, theirs = (scores.mean(1, keepdim=True) for scores in last_scores(student, teacher))
    return row_kl(ours, theirs, student.mask)


def ignores_the_student(student, teacher, params, module=None):
    return row_kl(last_scores(student, teacher)[0].detach(), last_scores(student, teacher)[1], student.mask) + (
        0.0 * student.queries[-1].sum() + 0.0 * student.keys[-1].sum()
    )


def teacher_keeps_its_graph(student, teacher, params, module=None):
    return (student.logits - teacher.logits).square().mean()


def keeps_the_entropy(student, teacher, params, module=None):
    return nn.functional.cross_entropy(student.logits, teacher.logits.detach().softmax(-1))


def sign_is_wrong(student, teacher, params, module=None):
    return -right(student, teacher, params)


def check_finite_without_tokens(file, params):
    """`check_finite` with one example that is all padding."""
    check_finite(file, params, (4, 0, 2))


def check_float32_under_bfloat16(file, params):
    """`check_float32_under_autocast` for the type that CPUs use."""
    check_float32_under_autocast(file, params, torch.bfloat16)


LOGITS = {"kind": "logit", "needs": ("logits",)}
FAULTS = [
    (wrong(forgets_the_key_mask), check_padding),
    (wrong(keeps_padded_rows), check_padding),
    (wrong(mean_reduction), check_padding),
    (wrong(global_mean), check_batch_composition),
    (wrong(infinite_mask), check_finite_without_tokens),
    (wrong(scores_under_autocast), check_float32_under_bfloat16),
    (wrong(averages_the_heads), check_head_permutation),
    (wrong(ignores_the_student), check_gradient),
    (wrong(ignores_the_student), check_descent),
    (wrong(teacher_keeps_its_graph, **LOGITS), check_gradient),
    (wrong(keeps_the_entropy, **LOGITS), check_zero_on_identical),
    (wrong(sign_is_wrong), check_positive_on_different),
]


@pytest.mark.parametrize(
    ("file", "check"), [pytest.param(*fault, id=f"{fault[0].loss.__name__}-{fault[1].__name__}") for fault in FAULTS]
)
def test_a_planted_fault_is_caught(file, check):
    """A check that never fails proves nothing; the same check passes on the faultless loss."""
    check(wrong(right), LossParams())
    with pytest.raises(AssertionError):
        check(file, LossParams())


def test_a_look_at_a_layer_that_is_not_named_is_caught(monkeypatch):
    """A planted fault in `layers`: the loss reads the student's last."""
    file, params = load("minilm_v2")
    monkeypatch.setattr(file, "layers", lambda student, teacher, params: ({1}, {teacher.layers}))
    with pytest.raises(SignalError, match="was not read"):
        check_asked(file, params)


def test_a_wrong_shape_is_caught():
    """The annotations are really checked in tests: without the hook this would broadcast."""
    with pytest.raises(TypeCheckError, match="teacher"):
        plugins.load("loss", "logit_kl").logit_kl(torch.zeros(2, 3), torch.zeros(1, 3), 1.0)


# --- what single losses promise beyond the laws ---


def load(name, **settings):
    """A loss file and its settings."""
    file = plugins.load("loss", name)
    return file, file.Params(**settings)


@pytest.mark.parametrize("name", ["logit_kl", "logit_mse"])
def test_models_with_different_classes_do_not_fit(name):
    """The message names both counts."""
    file, params = load(name)
    message = file.misfit(replace(STUDENT, choices=2), TEACHER, params)
    assert message == "the student has 2 classes and the teacher 3; they must be the same"


@pytest.mark.parametrize("name", ["attention_kl", "attention_score_mse", "minilm_v1"])
def test_models_with_different_heads_do_not_fit(name):
    """The message says which loss would do."""
    file, params = load(name)
    message = file.misfit(replace(STUDENT, heads=2), TEACHER, params)
    assert "the student has 2 attention heads and the teacher 4" in message
    assert "minilm_v2" in message


def test_relation_heads_that_do_not_divide_do_not_fit():
    """The message lists every number that would do."""
    file, params = load("minilm_v2", relation_heads=48)
    message = file.misfit(replace(STUDENT, hidden=312), replace(TEACHER, hidden=768), params)
    assert (
        "must divide the student's hidden size 312 and the teacher's 768; use one of 1, 2, 3, 4, 6, 8, 12, 24"
        in message
    )


def test_a_teacher_layer_that_is_not_there_does_not_fit():
    """Layers are counted from 1, so the last is allowed."""
    file, params = load("minilm_v2", teacher_layer=5)
    assert "the teacher has 4 layers" in file.misfit(STUDENT, TEACHER, params)
    assert file.misfit(STUDENT, replace(TEACHER, layers=5), params) is None


@pytest.mark.parametrize("name", ["attention_kl", "attention_score_mse", "hidden_mse", "hidden_cosine", "pkd", "cka"])
def test_a_map_outside_the_models_does_not_fit(name):
    """Reported by misfit before training, and refused by the loss should nobody ask."""
    file, params = load(name, map=[[1, 9]])
    assert isinstance(params, LayerLossParams)
    assert "no pair [1, 9]" in file.misfit(STUDENT, TEACHER, params)
    with pytest.raises(SettingsError, match=r"no pair \[1, 9\]"):
        file.loss(make_signals(STUDENT, 1), make_signals(TEACHER, 2), params)


@pytest.mark.parametrize("name", ["attention_kl", "attention_score_mse", "hidden_mse", "hidden_cosine", "pkd", "cka"])
def test_the_map_decides_which_layers_are_compared(name):
    """A student whose last layer alone equals teacher layer 3 is right under that pair only."""
    file, _ = load(name)
    teacher = make_signals(TEACHER, 2)
    student = make_signals(replace(TEACHER, layers=2), 1)
    copies = {field: (getattr(student, field)[0], getattr(teacher, field)[2]) for field in ("queries", "keys")}
    student = replace(student, **copies, hidden=(*student.hidden[:2], teacher.hidden[3]))
    assert value(file, file.Params(map=((2, 3),)), student, teacher) == pytest.approx(0.0, abs=1e-6)
    assert value(file, file.Params(map="last_only"), student, teacher) > 0.01


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_that_is_not_positive_is_refused(temperature):
    """By the functions themselves, for callers without settings."""
    signals = make_signals(TEACHER, 1)
    with pytest.raises(ValueError, match="must be above 0"):
        plugins.load("loss", "logit_kl").logit_kl(signals.logits, signals.logits, temperature)
    scores = attention_scores(signals, 1)
    with pytest.raises(ValueError, match="must be above 0"):
        plugins.load("loss", "attention_kl").attention_kl(scores, scores, signals.mask, temperature)


def test_chunks_of_relation_heads_give_the_same_loss_and_gradient(monkeypatch):
    """Including a last chunk that is smaller than the others."""
    file, params = load("minilm_v2")
    results = []
    for chunk_scores in (2**24, 7 * len(LENGTHS) * max(LENGTHS) ** 2):
        monkeypatch.setattr(minilm_v2_file, "CHUNK_SCORES", chunk_scores)
        student, teacher = with_gradient(make_signals(STUDENT, 1)), make_signals(TEACHER, 2)
        loss = file.loss(student, teacher, params)
        loss.backward()
        results.append((loss.detach(), [student.queries[-1].grad, student.keys[-1].grad, student.values[-1].grad]))
    torch.testing.assert_close(results[0], results[1])


def test_minilm_does_not_ask_how_many_heads_the_student_has():
    """Heads are joined before they are split again."""
    file, params = load("minilm_v2")
    student, teacher = make_signals(STUDENT, 1), make_signals(TEACHER, 2)
    joined = [getattr(student, name)[-1].transpose(1, 2).flatten(2) for name in ("queries", "keys", "values")]
    two_heads = [(vectors.unflatten(-1, (2, -1)).transpose(1, 2),) for vectors in joined]
    other = replace(student, queries=two_heads[0], keys=two_heads[1], values=two_heads[2])
    assert value(file, params, other, teacher) == pytest.approx(value(file, params, student, teacher))


def test_rotating_the_vectors_of_a_relation_head_changes_nothing():
    """Relations are inner products, which an orthogonal map keeps."""
    file = plugins.load("loss", "minilm_v2")
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 5, 12), torch.randn(2, 5, 24)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    rotation = torch.linalg.qr(torch.randn(4, 4)).Q
    rotated = (student.unflatten(-1, (3, 4)) @ rotation).flatten(2)
    torch.testing.assert_close(file.relation_kl(rotated, teacher, mask, 3), file.relation_kl(student, teacher, mask, 3))


def test_a_constant_added_to_a_row_is_seen_by_plain_score_mse_alone():
    """The softmax does not see it, so neither attention_kl nor the centred variant punishes it."""
    kl, mse = plugins.load("loss", "attention_kl"), plugins.load("loss", "attention_score_mse")
    signals = make_signals(TEACHER, 1)
    scores = attention_scores(signals, 1)
    moved = scores + torch.randn(*scores.shape[:3], 1, generator=torch.Generator().manual_seed(0))
    assert kl.attention_kl(moved, scores, signals.mask, 1.0).item() == pytest.approx(0.0, abs=1e-6)
    assert mse.attention_score_mse(moved, scores, signals.mask, center_rows=True).item() == pytest.approx(0.0, abs=1e-6)
    assert mse.attention_score_mse(moved, scores, signals.mask).item() > 0.1


def test_hidden_states_are_compared_up_to_scale_and_shift():
    """Both sides are normalised token by token; opposite states are as far apart as can be."""
    hidden_mse = plugins.load("loss", "hidden_mse").hidden_mse
    signals = make_signals(TEACHER, 1)
    states = signals.hidden[1]
    assert hidden_mse(3 * states + 5, states, signals.mask).item() == pytest.approx(0.0, abs=1e-6)
    assert hidden_mse(-states, states, signals.mask).item() == pytest.approx(4.0, abs=1e-3)


def test_hidden_states_of_equal_width_need_no_projection():
    """And of different width one for each pair, the embeddings included where they are compared."""
    file, params = load("hidden_mse", embeddings=True)
    assert file.auxiliary(TEACHER, TEACHER, params) is None
    module = file.auxiliary(STUDENT, TEACHER, params)
    assert [tuple(parameter.shape) for parameter in module.parameters()] == [(96, 48)] * 3
    assert len(file.auxiliary(STUDENT, TEACHER, file.Params())) == 2


@pytest.mark.parametrize("file", [plugins.load("loss", name) for name in plugins.names("loss")])
def test_layer_maps_in_settings_may_be_written_as_lists(file):
    """As YAML gives them; what stands in the list stays strict."""
    if not issubclass(file.Params, LayerLossParams):
        return
    assert file.Params(map=[[1, 2], [2, 4]]).map == ((1, 2), (2, 4))
    with pytest.raises(ValueError, match="map"):
        file.Params(map=[["1", 2]])
