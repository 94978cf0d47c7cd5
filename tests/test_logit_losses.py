"""The losses on class probabilities: worked numbers, float64 loops, limits, two classes, missing labels, extremes.

The literals were worked in float64 from the published formulas; the loops know nothing of the code. What every loss
obeys is in test_losses.py.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.base import plugins
from pipeline.families import Shape
from pipeline.losses.cross_entropy import UNLABELLED, cross_entropy
from pipeline.losses.dist import dist, pearson_distance
from pipeline.losses.dkd import dkd
from pipeline.losses.logit_jsd import logit_jsd
from pipeline.losses.logit_kl import logit_kl, standardized
from pipeline.losses.logit_mse import logit_mse
from pipeline.losses.logit_reverse_kl import logit_reverse_kl
from pipeline.losses.logit_total_variation import logit_total_variation
from pipeline.signals.reader import Signals

LOGIT_LOSSES = [
    name
    for name in plugins.names("loss")
    if plugins.load("loss", name).KIND == "logit" and set(plugins.load("loss", name).NEEDS) <= {"logits", "targets"}
]
COMPARING = [name for name in LOGIT_LOSSES if not getattr(plugins.load("loss", name), "IS_CROSS_ENTROPY", False)]
SHARP, UNIFORM = torch.tensor([[2.0, 0.0, 0.0]]), torch.zeros(1, 3)
RISING, FALLING = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[2.0, 1.0, 0.0]])


def shape(classes):
    """A model with so many classes."""
    return Shape(layers=2, hidden=8, heads=2, ffn=8, choices=classes)


def gradient(function, logits):
    """Gradient of a loss with respect to the student's logits."""
    student = logits.clone().requires_grad_()
    function(student).backward()
    return student.grad


def run(name, student, teacher, labels=None, **changed):
    """A loss file's value and the student's gradient."""
    file = plugins.load("loss", name)
    student = student.clone().requires_grad_()
    mask = torch.ones(len(student), 1, dtype=torch.bool)
    labels = torch.zeros(len(student), dtype=torch.long) if labels is None else labels
    result = file.loss(
        Signals(logits=student, mask=mask, targets=labels), Signals(logits=teacher, mask=mask), file.Params(**changed)
    )
    result.backward()
    return result.item(), student.grad


# --- worked numbers ---


def test_reverse_kl():
    """Teacher softmax(2,0,0), student uniform: 0.474266 where logit_kl gives 0.433040."""
    assert logit_reverse_kl(UNIFORM, SHARP, 1.0).item() == pytest.approx(0.474266, abs=1e-6)
    assert logit_kl(UNIFORM, SHARP, 1.0).item() == pytest.approx(0.433040, abs=1e-6)


@pytest.mark.parametrize(("beta", "expected"), [(0.5, 0.108673), (0.1, 0.038768), (0.9, 0.041573)])
def test_jsd(beta, expected):
    """The same two distributions; beta belongs to the teacher, or the last two would be exchanged."""
    assert logit_jsd(UNIFORM, SHARP, 1.0, beta).item() == pytest.approx(expected, abs=1e-6)


def test_the_early_gkd_mixture_would_be_noticed():
    """Planted fault: log-probabilities mixed linearly give 0.226826 for the same two, a quarter of both KLs' sum."""
    log_student, log_teacher = (logits.double().log_softmax(-1) for logits in (UNIFORM, SHARP))
    faulty_mixture = 0.5 * log_student + 0.5 * log_teacher
    faulty = sum(0.5 * (side.exp() * (side - faulty_mixture)).sum().item() for side in (log_student, log_teacher))
    assert faulty == pytest.approx(0.226826, abs=1e-6)
    assert faulty == pytest.approx((0.433040 + 0.474266) / 4, abs=1e-6)
    assert logit_jsd(UNIFORM, SHARP, 1.0, 0.5).item() != pytest.approx(faulty, abs=0.1)


def test_total_variation():
    """The same two: all that moves is what the first class has above a third."""
    result = logit_total_variation(UNIFORM, SHARP, 1.0).item()
    assert result == pytest.approx(0.453653, abs=1e-6)
    assert result == pytest.approx(SHARP.softmax(-1)[0, 0].item() - 1 / 3, abs=1e-6)


def test_dkd_parts_add_up_to_kl():
    """Teacher (2,0,0), student (0,1,0), label 0: 0.753779 + 0.213014 x 0.120115 = 0.779365."""
    student, label = torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([0])
    target_kl, rest_kl = (dkd(student, SHARP, label, 1.0, *factors).item() for factors in ((1.0, 0.0), (0.0, 1.0)))
    doubt = 1 - SHARP.softmax(-1)[0, 0].item()
    assert target_kl == pytest.approx(0.753779, abs=1e-6)
    assert rest_kl == pytest.approx(0.120115, abs=1e-6)
    assert doubt == pytest.approx(0.213014, abs=1e-6)
    assert dkd(student, SHARP, label, 1.0, 1.0, doubt).item() == pytest.approx(0.779365, abs=1e-6)
    assert logit_kl(student, SHARP, 1.0).item() == pytest.approx(0.779365, abs=1e-6)


def test_dist_over_classes():
    """Two examples given as probabilities: 0.043394; the part over examples does not count for two."""
    student, teacher = (
        torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]]),
        torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3]]),
    )
    assert pearson_distance(student, teacher).mean().item() == pytest.approx(0.043394, abs=1e-6)
    assert dist(student.log(), teacher.log(), 1.0, 1.0, 1.0).item() == pytest.approx(0.043394, abs=1e-6)


def test_kl_is_not_the_soft_cross_entropy():
    """That is larger by the teacher's entropy, 1.982832, and in TinyBERT's code a third of it, 0.660944."""
    teacher, log_student = FALLING.double().softmax(-1), RISING.double().log_softmax(-1)
    surprise = -(teacher * log_student).sum().item()
    entropy = -(teacher * teacher.log()).sum().item()
    assert surprise == pytest.approx(1.9828, abs=1e-4)
    assert surprise / 3 == pytest.approx(0.6609, abs=1e-4)
    assert logit_kl(RISING, FALLING, 1.0).item() == pytest.approx(surprise - entropy, abs=1e-6)


@pytest.mark.parametrize(("temperature", "raw"), [(2.0, 0.320157), (4.0, 0.082477)])
def test_kl_without_the_temperature_factor(temperature, raw):
    """What the loss would be, and how fast it would fade, without the square."""
    assert logit_kl(RISING, FALLING, temperature).item() / temperature**2 == pytest.approx(raw, abs=1e-6)


HOT = 30.0  # float32 still resolves the difference of the probabilities, and the next order is below 1e-3


@pytest.mark.parametrize(
    ("name", "function", "limit"),
    [
        ("kl", lambda s, t: logit_kl(s, t, HOT), 4 / 3),
        ("reverse_kl", lambda s, t: logit_reverse_kl(s, t, HOT), 4 / 3),
        ("jsd", lambda s, t: logit_jsd(s, t, HOT, 0.5), 4 / 3 / 4),
        ("jsd of 0.1", lambda s, t: logit_jsd(s, t, HOT, 0.1), 4 / 3 * 0.1 * 0.9),
        ("half of mse", lambda s, t: logit_mse(s, t) / 2, 4 / 3),
        ("total_variation", lambda s, t: logit_total_variation(s, t, HOT), 2 / 3),
        ("dist", lambda s, t: dist(s, t, HOT, 1.0, 0.0) / HOT**2, 2.0),
    ],
)
def test_limit_of_high_temperature(name, function, limit):
    """Centred logits differ by 2, 0, -2 over 3 classes: squares / 6, absolute values / 6, and opposite order."""
    assert function(RISING, FALLING).item() == pytest.approx(limit, abs=1e-3), name


def test_limit_of_dkd_at_high_temperature():
    """The label is one class of three by then, so beta 2/3 makes up logit_kl."""
    assert dkd(RISING, FALLING, torch.tensor([0]), HOT, 1.0, 2 / 3).item() == pytest.approx(4 / 3, abs=0.02)


# --- against float64 loops ---


def draw(seed):
    """Seven examples of four classes."""
    return np.random.default_rng(seed).normal(size=(7, 4)) * 2


def softmax(row):
    """Probabilities of one row."""
    powers = np.exp(row - row.max())
    return powers / powers.sum()


def kl(p, q):
    """Divergence of two rows of probabilities."""
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def pearson(p, q):
    """Correlation of two rows."""
    return np.corrcoef(p, q)[0, 1]


def dkd_of_one(p, q, label, alpha, beta):
    """Both parts for one example given as probabilities."""
    others = [c for c in range(len(p)) if c != label]
    target_kl = kl([p[label], 1 - p[label]], [q[label], 1 - q[label]])
    return alpha * target_kl + beta * kl(p[others] / p[others].sum(), q[others] / q[others].sum())


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_losses_agree_with_float64(temperature):
    """Example by example, for dist also class by class."""
    student, teacher, labels = draw(1), draw(2), [0, 1, 2, 3, 0, 1, 2]
    ours, theirs = torch.tensor(student, dtype=torch.float32), torch.tensor(teacher, dtype=torch.float32)
    pairs = [(softmax(t / temperature), softmax(s / temperature)) for t, s in zip(teacher, student, strict=True)]
    square = temperature**2

    def check(result, expected):
        assert result.item() == pytest.approx(expected, abs=2e-6)

    check(logit_reverse_kl(ours, theirs, temperature), square * np.mean([kl(q, p) for p, q in pairs]))
    for beta in (0.5, 0.2):
        per_example = [
            beta * kl(p, beta * p + (1 - beta) * q) + (1 - beta) * kl(q, beta * p + (1 - beta) * q) for p, q in pairs
        ]
        check(logit_jsd(ours, theirs, temperature, beta), square * np.mean(per_example))
    moved = [np.abs(p - q).sum() / 2 for p, q in pairs]
    check(logit_total_variation(ours, theirs, temperature), temperature * np.mean(moved))
    per_example = [dkd_of_one(p, q, label, 0.7, 1.3) for (p, q), label in zip(pairs, labels, strict=True)]
    check(dkd(ours, theirs, torch.tensor(labels), temperature, 0.7, 1.3), square * np.mean(per_example))
    rows = [1 - pearson(p, q) for p, q in pairs]
    columns = [1 - pearson([p[c] for p, _ in pairs], [q[c] for _, q in pairs]) for c in range(4)]
    check(dist(ours, theirs, temperature, 0.7, 1.3), square * (0.7 * np.mean(rows) + 1.3 * np.mean(columns)))


def test_standardized_kl_agrees_with_float64():
    """The deviation counts classes - 1."""
    student, teacher = draw(1), draw(2)

    def standard(row):
        return softmax((row - row.mean()) / row.std(ddof=1) / 2)

    expected = np.mean([4 * kl(standard(t), standard(s)) for s, t in zip(student, teacher, strict=True)])
    ours, theirs = torch.tensor(student, dtype=torch.float32), torch.tensor(teacher, dtype=torch.float32)
    assert logit_kl(ours, theirs, 2.0, standardize=True).item() == pytest.approx(expected, abs=1e-5)
    assert logit_kl(5 * ours + 3, theirs, 2.0, standardize=True).item() == pytest.approx(expected, abs=1e-5)


# --- models that do not fit ---


@pytest.mark.parametrize("name", COMPARING)
def test_models_with_different_classes_do_not_fit(name):
    """The message names both counts, also where one of them is two."""
    file = plugins.load("loss", name)
    for ours, theirs in ((3, 4), (2, 3), (3, 2)):
        message = file.misfit(shape(ours), shape(theirs), file.Params())
        assert message == f"the student has {ours} classes and the teacher {theirs}; they must be the same"


@pytest.mark.parametrize(
    ("name", "dead", "alive", "advice"),
    [
        ("logit_kl", {"standardize": True}, {}, "set it to false"),
        ("dkd", {"beta": 2.0}, {"beta": 0.0}, "set beta to 0, or use logit_kl"),
        ("dist", {"inter_weight": 1.0}, {"inter_weight": 0.0}, "set inter_weight to 0, or use logit_kl"),
    ],
)
def test_two_classes_do_not_fit_what_dies_there(name, dead, alive, advice):
    """The message says what to change; then, and with three classes, they fit."""
    file = plugins.load("loss", name)
    assert advice in file.misfit(shape(2), shape(2), file.Params(**dead))
    assert file.misfit(shape(2), shape(2), file.Params(**alive)) is None
    assert file.misfit(shape(3), shape(3), file.Params(**dead)) is None


TWO = torch.tensor([[1.5, -0.5], [0.2, 0.9], [-2.0, 3.0], [0.4, -0.1]])
TWO_OTHER = torch.tensor([[0.3, 0.1], [1.0, -2.0], [-0.7, 0.6], [2.0, 1.0]])


def test_why_two_classes_are_refused():
    """Each refused part is a constant there: the correlation is 1 or -1, the rest has one class, the rows are alike."""
    labels = torch.tensor([0, 1, 1, 0])
    assert gradient(lambda s: dist(s, TWO_OTHER, 1.0, 1.0, 0.0), TWO).abs().max() < 1e-5
    assert dist(TWO, TWO_OTHER, 1.0, 1.0, 0.0).item() == pytest.approx(0.5, abs=1e-5)  # one of four is opposite
    assert gradient(lambda s: dkd(s, TWO_OTHER, labels, 1.0, 0.0, 1.0), TWO).abs().max() == 0
    assert dkd(TWO, TWO_OTHER, labels, 1.0, 0.0, 1.0).item() == 0
    torch.testing.assert_close(standardized(TWO).abs(), torch.full((4, 2), 0.5**0.5), atol=1e-5, rtol=0)
    assert gradient(lambda s: logit_kl(s, TWO_OTHER, 1.0, standardize=True), TWO).abs().max() < 1e-5


def test_what_two_classes_are_left_with_learns():
    """The gradients of what the messages advise, so that the test above would notice a loss that is dead throughout."""
    labels = torch.tensor([0, 1, 1, 0])
    for function in (
        lambda s: dist(s, TWO_OTHER, 1.0, 0.0, 1.0),
        lambda s: dkd(s, TWO_OTHER, labels, 1.0, 1.0, 0.0),
        lambda s: logit_kl(s, TWO_OTHER, 1.0),
    ):
        assert gradient(function, TWO).abs().max() > 1e-2


def test_dkd_without_its_second_part_is_kl_for_two_classes():
    """A class and its opposite are all there is."""
    labels = torch.tensor([0, 1, 1, 0])
    expected = logit_kl(TWO, TWO_OTHER, 2.0).item()
    assert dkd(TWO, TWO_OTHER, labels, 2.0, 1.0, 0.0).item() == pytest.approx(expected, abs=1e-6)


def test_dkd_sees_the_other_classes_of_a_student_that_is_sure():
    """The authors' 1000 off the label's logit would leave it all the probability, and log(0) in the other part."""
    student, teacher, label = torch.tensor([[1e4, 0.0, 1.0]]), torch.tensor([[1e4, 1.0, 0.0]]), torch.tensor([0])
    # log-probabilities of -1e4 are a thousandth apart in float32
    assert dkd(student, teacher, label, 1.0, 0.0, 1.0).item() == pytest.approx(math.tanh(0.5), abs=2e-3)
    assert dkd(student, FALLING, label, 1.0, 1.0, 0.0).item() == pytest.approx(1e4 * 0.334759, rel=1e-3)
    certain = (student.softmax(-1)[:, :1], student.softmax(-1)[:, 1:].sum(-1, keepdim=True))
    assert torch.cat(certain, -1).log().isneginf().any()


# --- settings and arguments ---


def test_settings_that_would_learn_nothing_are_refused():
    """Where all the factors of a loss are 0."""
    with pytest.raises(ValidationError, match="alpha and beta are both 0"):
        plugins.load("loss", "dkd").Params(alpha=0.0, beta=0.0)
    with pytest.raises(ValidationError, match="inter_weight and intra_weight are both 0"):
        plugins.load("loss", "dist").Params(inter_weight=0.0, intra_weight=0.0)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_that_is_not_positive_is_refused(temperature):
    """By the functions themselves, for callers without settings."""
    for function in (
        lambda: logit_reverse_kl(RISING, FALLING, temperature),
        lambda: logit_jsd(RISING, FALLING, temperature, 0.5),
        lambda: logit_total_variation(RISING, FALLING, temperature),
        lambda: dkd(RISING, FALLING, torch.tensor([0]), temperature, 1.0, 1.0),
        lambda: dist(RISING, FALLING, temperature, 1.0, 1.0),
    ):
        with pytest.raises(ValueError, match="must be above 0"):
            function()


@pytest.mark.parametrize("beta", [0.0, 1.0, -0.5, float("nan")])
def test_a_mixture_of_one_side_alone_is_refused(beta):
    """It would be 0 whatever the student does."""
    with pytest.raises(ValueError, match="must be between 0 and 1"):
        logit_jsd(RISING, FALLING, 1.0, beta)
    with pytest.raises(ValidationError, match="beta"):
        plugins.load("loss", "logit_jsd").Params(beta=beta)


# --- examples without a label ---

NEED_LABELS = [name for name in LOGIT_LOSSES if "targets" in plugins.load("loss", name).NEEDS]
SMOOTHING = {"cross_entropy": [{}, {"label_smoothing": 0.2}]}


@pytest.mark.parametrize(
    ("name", "changed"), [(name, changed) for name in NEED_LABELS for changed in SMOOTHING.get(name, [{}])]
)
def test_an_example_without_label_adds_nothing(name, changed):
    """It counts as a row, so that a labelled one weighs the same whatever it meets; it gets no gradient."""
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 3), torch.randn(5, 3)
    labels = torch.tensor([2, UNLABELLED, 0, UNLABELLED, 1])
    kept = labels != UNLABELLED
    result, slope = run(name, student, teacher, labels, **changed)
    expected, expected_slope = run(name, student[kept], teacher[kept], labels[kept], **changed)
    assert result == pytest.approx(3 / 5 * expected, rel=1e-6)
    torch.testing.assert_close(slope[kept], 3 / 5 * expected_slope)
    assert (slope[~kept] == 0).all()
    result, slope = run(name, student, teacher, torch.full((5,), UNLABELLED), **changed)
    assert result == 0
    assert (slope == 0).all()


def test_a_missing_label_would_be_noticed():
    """Planted fault: torch's own mean divides by the labels that there are: by none, or by fewer than rows."""
    none = torch.full((2,), UNLABELLED)
    assert torch.nn.functional.cross_entropy(torch.zeros(2, 3), none).isnan()
    assert cross_entropy(torch.zeros(2, 3), none, 0.0).item() == 0
    one = torch.tensor([1, UNLABELLED])
    assert torch.nn.functional.cross_entropy(torch.zeros(2, 3), one).item() == pytest.approx(math.log(3))
    assert cross_entropy(torch.zeros(2, 3), one, 0.0).item() == pytest.approx(math.log(3) / 2)


# --- extremes ---

FAR = 1e4
EXTREMES = {
    "opposite and certain": ([[FAR, -FAR, 0.0], [-FAR, FAR, 0.0]], [[-FAR, FAR, 0.0], [FAR, 0.0, -FAR]]),
    "a batch of certain ones": ([[FAR, 0.0, 0.0]] * 4, [[0.0, FAR, 0.0]] * 4),
    "certain beside uniform": ([[FAR, -FAR, FAR]] * 3, [[0.0, 0.0, 0.0]] * 3),
    "uniform beside certain": ([[0.0, 0.0, 0.0]] * 3, [[FAR, -FAR, FAR], [0.0, FAR, 0.0], [1.0, 2.0, 3.0]]),
    "uniform, all alike": ([[FAR, FAR, FAR]] * 3, [[0.0, 0.0, 0.0]] * 3),
    "one example": ([[0.0, 1.0, 2.0]], [[2.0, 1.0, 0.0]]),
    "one uniform example": ([[0.0, 0.0, 0.0]], [[2.0, 1.0, 0.0]]),
    "all classes but one unlikely": ([[FAR, 0.0, 0.0], [FAR, 1.0, 0.0], [FAR, 0.0, 2.0]], [[3.0, 0.0, 0.0]] * 3),
}


@pytest.mark.parametrize("name", LOGIT_LOSSES)
@pytest.mark.parametrize("case", EXTREMES)
def test_extreme_logits_have_finite_loss_and_gradient(name, case):
    """Either way round, with every switch, whichever class the label is, in a type that carries them exactly."""
    student, teacher = (torch.tensor(side) for side in EXTREMES[case])
    switches = [
        key for key, field in plugins.load("loss", name).Params.model_fields.items() if field.annotation is bool
    ]
    for ours, theirs in ((student, teacher), (teacher, student)):
        for changed in ({}, *({switch: True} for switch in switches)):
            for label in range(3):
                result, slope = run(name, ours, theirs, torch.full((len(ours),), label), **changed)
                assert math.isfinite(result)
                assert slope.isfinite().all()


@pytest.mark.parametrize("name", COMPARING)
@pytest.mark.parametrize("case", EXTREMES)
def test_equal_logits_have_loss_0_and_no_gradient(name, case):
    """However extreme they are; a root or a norm would have no slope there."""
    for side in EXTREMES[case]:
        result, slope = run(name, torch.tensor(side), torch.tensor(side))
        assert abs(result) <= 1e-6
        torch.testing.assert_close(slope, torch.zeros_like(slope), atol=1e-6, rtol=0)


@pytest.mark.parametrize("classes", [3, 10, 77])
@pytest.mark.parametrize("batch", [3, 32, 256])
def test_rounding_is_not_taken_for_variation(classes, batch):
    """A uniform student has a correlation of none with every example and class, and the gradient of none."""
    torch.manual_seed(0)
    teacher = torch.randn(batch, classes)
    result, slope = run("dist", torch.full((batch, classes), 0.3), teacher)
    assert result == 2
    assert (slope == 0).all()
    assert run("dist", torch.full((batch, classes), 0.3), torch.full((batch, classes), -1.7))[0] == 0


# --- what single losses promise ---


@pytest.mark.parametrize("batch", [1, 2])
def test_too_few_examples_have_no_correlation_between_them(batch):
    """Nothing is added and nothing learned, and the backward pass still runs for a loss on its own."""
    result, slope = run("dist", TWO[:batch], TWO_OTHER[:batch], inter_weight=0.0)
    assert result == 0
    assert (slope == 0).all()
    torch.manual_seed(0)
    assert run("dist", torch.randn(3, 4), torch.randn(3, 4), inter_weight=0.0)[0] > 0.1


def test_dist_compares_the_examples_of_a_batch():
    """Which is why the file says so: the mean over parts of the batch is another number."""
    assert plugins.load("loss", "dist").IS_BATCH_STATISTIC
    torch.manual_seed(0)
    student, teacher = torch.randn(6, 4), torch.randn(6, 4)
    whole = dist(student, teacher, 1.0, 0.0, 1.0).item()
    halves = [dist(student[part], teacher[part], 1.0, 0.0, 1.0).item() for part in (slice(0, 3), slice(3, 6))]
    assert whole != pytest.approx(sum(halves) / 2, abs=1e-3)


def test_correlation_does_not_see_scale_and_shift_but_sign():
    """0, 1 and 2 are equal, unrelated and opposite."""
    rows = torch.tensor([[1.0, -1.0, 0.0, 0.0]])
    assert pearson_distance(3 * rows + 5, rows).item() == pytest.approx(0.0, abs=1e-6)
    assert pearson_distance(torch.tensor([[0.0, 0.0, 1.0, -1.0]]), rows).item() == pytest.approx(1.0, abs=1e-6)
    assert pearson_distance(-rows, rows).item() == pytest.approx(2.0, abs=1e-6)


def test_the_gradient_of_total_variation_does_not_fade():
    """It is as large a hundredth away as a tenth, where that of logit_kl falls by ten; at the optimum it is 0."""

    def slopes(function):
        near, far = (FALLING + step * torch.tensor([[1.0, 0.0, -1.0]]) for step in (0.01, 0.1))
        return (
            gradient(lambda s: function(s, FALLING, 1.0), near).norm()
            / gradient(lambda s: function(s, FALLING, 1.0), far).norm()
        )

    assert slopes(logit_total_variation).item() == pytest.approx(1.0, abs=0.1)
    assert slopes(logit_kl).item() == pytest.approx(0.1, abs=0.02)
    assert (gradient(lambda s: logit_total_variation(s, FALLING, 1.0), FALLING) == 0).all()


def test_reverse_kl_lets_the_student_choose_one_of_two():
    """Teacher torn between two classes: all on one costs less here than logit_kl asks, which punishes the other."""
    torn, settled, spread = (torch.tensor([row]) for row in ([3.0, 3.0, -6.0], [9.0, 0.0, -6.0], [3.0, 3.0, 1.5]))
    assert logit_reverse_kl(settled, torn, 1.0) < logit_kl(settled, torn, 1.0)
    assert logit_reverse_kl(spread, torn, 1.0) > logit_kl(spread, torn, 1.0)


logits = st.lists(st.floats(-20, 20, width=32), min_size=4, max_size=4).map(lambda row: torch.tensor([row]))


@given(logits, logits, st.floats(0.01, 0.99))
@settings(max_examples=100, deadline=None)
def test_jsd_is_bounded_and_symmetric(student, teacher, beta):
    """By the entropy of the mixture, which is ln 2 at one half; exchanging the sides exchanges beta and 1 - beta."""
    result = logit_jsd(student, teacher, 1.0, beta).item()
    assert -1e-6 <= result <= -(beta * math.log(beta) + (1 - beta) * math.log(1 - beta)) + 1e-6
    assert logit_jsd(teacher, student, 1.0, 1 - beta).item() == pytest.approx(result, abs=1e-5)
    half = logit_jsd(student, teacher, 1.0, 0.5).item()
    assert half <= math.log(2) + 1e-6
    assert logit_jsd(teacher, student, 1.0, 0.5).item() == pytest.approx(half, abs=1e-6)


@given(logits, logits)
@settings(max_examples=100, deadline=None)
def test_total_variation_is_a_share_and_below_the_root_of_kl(student, teacher):
    """0 to 1, the same from either side; Pinsker's inequality ties it to logit_kl."""
    result = logit_total_variation(student, teacher, 1.0).item()
    assert 0 <= result <= 1 + 1e-6
    assert logit_total_variation(teacher, student, 1.0).item() == pytest.approx(result, abs=1e-6)
    assert result <= math.sqrt(max(0.0, logit_kl(student, teacher, 1.0).item()) / 2) + 1e-3


@given(logits, logits, st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_dkd_with_the_teachers_doubt_is_kl(student, teacher, label):
    """The identity that the decoupling rests on, whatever the label."""
    doubt = 1 - teacher.double().softmax(-1)[0, label].item()
    result = dkd(student, teacher, torch.tensor([label]), 1.0, 1.0, doubt).item()
    assert result == pytest.approx(logit_kl(student, teacher, 1.0).item(), abs=1e-4)


@given(logits, logits)
@settings(max_examples=100, deadline=None)
def test_correlations_lie_between_0_and_2(student, teacher):
    """And a row's own is 0, exactly."""
    rows, others = student.softmax(-1), teacher.softmax(-1)
    assert 0 <= pearson_distance(rows, others).item() <= 2 + 1e-6
    assert pearson_distance(rows, rows).item() == 0
