"""The arithmetic of 8 bits, the sensitivity of modules, and what may stay in fp32."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_models import TASK, toy_model

from pipeline.base.errors import DataError, ModelError, TrainingError
from pipeline.base.records import read, write
from pipeline.data.prepared import EncodedSplit
from pipeline.quantization import plan as quantization
from pipeline.quantization.calibration import BINS, Histogram
from pipeline.quantization.plan import (
    Scheme,
    activation_scale,
    calibrate,
    fake_quantize,
    fake_quantized,
    make_plan,
    quantizable_modules,
    quantize_weight,
)
from pipeline.settings.quantize import Calibration, QuantizeSettings
from pipeline.training.answers import predict

FAMILIES = ("bert", "distilbert", "roberta", "electra")
LOOSE = QuantizeSettings(allowed_drop=100)
EXAMPLE, TOKEN, FIXED, FLOAT = (Scheme(activations=name) for name in ("example", "token", "fixed", "float"))


def toy_examples(count: int, prefix: str, seed: int = 0) -> EncodedSplit:
    """Random sentences of 2 to 12 tokens."""
    rng = np.random.default_rng(seed)
    sequences = [rng.integers(2, 60, rng.integers(2, 13)).tolist() for _ in range(count)]
    return EncodedSplit([f"{prefix}-{i}" for i in range(count)], sequences, [i % 3 for i in range(count)], pad_id=0)


def answer(model, rows: EncodedSplit, batch_size: int = 32) -> torch.Tensor:
    """The logits of every row."""
    return predict(model, rows.ids, rows.pad_id, "dev", batch_size, quiet=True)["logits"]


def self_labelled(model, count: int) -> EncodedSplit:
    """Rows labelled by the model itself, so that fp32 is always right."""
    rows = toy_examples(count, "dev")
    return replace(rows, targets=answer(model, rows).argmax(-1).tolist())


def spoiled_model():
    """Layer 1's output has one huge weight in each row, multiplied with 0: it spoils 8 bits only."""
    model = toy_model()
    layer = model.bert.encoder.layer[1]
    with torch.no_grad():
        layer.output.dense.weight[:, 0] = 200
        layer.intermediate.dense.weight[0] = 0
        layer.intermediate.dense.bias[0] = 0
    return model


# --- arithmetic --------------------------------------------------------------------------------------------------


def test_weights_as_worked_by_hand():
    """The literal of methods.md, section 14."""
    quantized, scale = quantize_weight(torch.tensor([[0.5, -1.27, 0.003, 1.0]]), per_channel=True)
    assert scale.tolist() == pytest.approx([0.01])
    assert quantized.tolist() == [[50, -127, 0, 100]]


def test_activations_as_worked_by_hand():
    """The literal of methods.md, section 14: (-1, 0, 3) has scale 4/255 and zero point 64."""
    scale, zero = activation_scale(torch.tensor(-1.0), torch.tensor(3.0))
    assert scale.item() == pytest.approx(0.015686, abs=1e-6)
    assert zero.item() == 64


def test_per_channel_is_never_worse_than_one_scale():
    """Rows of different size keep more with a scale each."""
    torch.manual_seed(0)
    weight = torch.randn(8, 16) * torch.logspace(-3, 0, 8)[:, None]
    errors = []
    for per_channel in (True, False):
        quantized, scale = quantize_weight(weight, per_channel)
        error = (quantized.float() * scale[:, None] - weight).abs().amax(dim=1)
        assert (error <= scale / 2 * 1.0001).all()
        errors.append(error)
    assert (errors[0] <= errors[1]).all() and errors[0][0] < errors[1][0] / 100


def test_zero_is_always_exact():
    """Padding and rectified values stay zero, also when the range does not hold zero."""
    for low, high in ((-1.0, 3.0), (2.0, 5.0), (-5.0, -2.0)):
        assert fake_quantize(torch.zeros(3), torch.tensor(low), torch.tensor(high)).tolist() == [0, 0, 0]


def test_empty_ranges_and_zero_channels_have_finite_scales():
    """A constant channel divides by nothing."""
    quantized, scale = quantize_weight(torch.tensor([[0.0, 0.0], [1e-45, 0.0], [0.0, 2.54]]), per_channel=True)
    assert scale.tolist() == pytest.approx([1, 1, 0.02])
    assert quantized.tolist() == [[0, 0], [0, 0], [0, 127]]
    scale, zero = activation_scale(torch.tensor(0.0), torch.tensor(0.0))
    assert (scale.item(), zero.item()) == (1, 0)
    assert torch.isfinite(fake_quantize(torch.tensor([0.0, 7.0]), torch.tensor(0.0), torch.tensor(0.0))).all()


def test_values_beyond_a_fixed_range_are_clipped():
    """To its ends."""
    found = fake_quantize(torch.tensor([-9.0, 9.0]), torch.tensor(-1.0), torch.tensor(1.0))
    assert found.tolist() == pytest.approx([-1, 1], abs=0.01)


# --- calibration -------------------------------------------------------------------------------------------------


def test_a_histogram_keeps_counts_in_fixed_memory():
    """However many values come and however far they lie, it holds the same numbers as one made at once."""
    grown, rng = Histogram("x"), np.random.default_rng(0)
    parts = [torch.from_numpy(rng.normal(size=1000) * 4.0**k).float() for k in range(-2, 4)]
    for part in parts:
        grown.add(part)
    assert grown.counts.shape == (BINS,) and grown.counts.sum() == 6000
    values = torch.cat(parts).double().numpy()
    expected, _ = np.histogram(values, BINS, (-grown.limit, grown.limit))
    # only values on the edge of two bins may move, by rounding
    assert np.abs(grown.counts.numpy() - expected).sum() <= 4
    assert (grown.low, grown.high) == (pytest.approx(values.min()), pytest.approx(values.max()))


def test_minmax_keeps_everything():
    """Least and greatest value."""
    histogram = Histogram("x")
    histogram.add(torch.tensor([-2.0, 0.5]))
    histogram.add(torch.tensor([7.0]))
    assert histogram.range("minmax", 99.0) == (-2, 7)


def test_percentile_agrees_with_numpy():
    """To the width of a bin, on both sides."""
    histogram, values = Histogram("x"), np.random.default_rng(1).normal(size=50_000)
    histogram.add(torch.from_numpy(values).float())
    low, high = histogram.range("percentile", 99.0)
    width = 2 * histogram.limit / BINS
    assert low == pytest.approx(np.percentile(values, 0.5), abs=1.5 * width)
    assert high == pytest.approx(np.percentile(values, 99.5), abs=1.5 * width)
    assert histogram.range("percentile", 100.0) == pytest.approx((values.min(), values.max()))


def test_entropy_cuts_a_far_outlier_and_keeps_even_values():
    """One value at 1000 among a bell curve is given up; values spread evenly are all kept."""
    rng = np.random.default_rng(2)
    bell, even = Histogram("bell"), Histogram("even")
    bell.add(torch.from_numpy(rng.normal(size=200_000)).float())
    bell.add(torch.tensor([100.0]))
    even.add(torch.from_numpy(rng.uniform(-3, 3, size=200_000)).float())
    low, high = bell.range("entropy", 99.0)
    assert -25 < low < -2.5 and 2.5 < high < 25
    assert even.range("entropy", 99.0) == pytest.approx((-3, 3), abs=0.05)


@pytest.mark.parametrize("method", ["minmax", "entropy", "percentile"])
@pytest.mark.parametrize("constant", [0.0, 5.0, -1e-30])
def test_a_constant_input_has_a_range(method, constant):
    """Nothing divides by its width."""
    histogram = Histogram("x")
    histogram.add(torch.full((10,), constant))
    low, high = histogram.range(method, 99.99)
    scale, zero = activation_scale(torch.tensor(low), torch.tensor(high))
    assert torch.isfinite(scale) and scale > 0 and 0 <= zero <= 255


def test_zeros_before_the_first_value_are_counted():
    """The first batch may be all zero."""
    histogram = Histogram("x")
    histogram.add(torch.zeros(5))
    histogram.add(torch.tensor([-1.0, 1.0]))
    assert histogram.counts.sum() == 7 and histogram.counts[BINS // 2] == 5


def test_numbers_that_are_not_finite_stop_calibration():
    """The module is named."""
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ModelError, match=r"input of 'layer\.0' holds NaN or infinity"):
            Histogram("layer.0").add(torch.tensor([1.0, bad]))


def test_nothing_seen_has_no_range():
    """Nor does an empty tensor count."""
    histogram = Histogram("x")
    histogram.add(torch.zeros(0))
    with pytest.raises(DataError, match="saw no input of 'x'"):
        histogram.range("minmax", 99.0)


def test_calibration_leaves_padding_out():
    """The same rows alone and padded together give the same ranges."""
    model = toy_model()
    rows = toy_examples(6, "train")
    together = calibrate(model, rows, "minmax", 99.0)
    alone = [calibrate(model, EncodedSplit(["x"], [s], [0], pad_id=0), "minmax", 99.0) for s in rows.ids]
    for name, (low, high) in together.items():
        assert low == pytest.approx(min(part[name][0] for part in alone), rel=1e-4, abs=1e-5)
        assert high == pytest.approx(max(part[name][1] for part in alone), rel=1e-4, abs=1e-5)


# --- imitation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_every_linear_layer_and_table_is_listed(family):
    """Six linear layers in each of three layers, and the classifier's two."""
    model = toy_model(family)
    linear = quantizable_modules(model, embeddings=False)
    assert len(linear) == 3 * 6 + 2 + (family == "electra")
    tables = set(quantizable_modules(model, embeddings=True)) - set(linear)
    assert {name.rpartition(".")[2] for name in tables} == {"word_embeddings", "position_embeddings"}


def test_the_model_is_as_before_afterwards():
    """Weights and answers to the last bit, also after an error inside."""
    model, rows = toy_model(), toy_examples(5, "dev")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    expected = answer(model, rows)
    with pytest.raises(KeyError), fake_quantized(model, quantizable_modules(model, True), True, EXAMPLE):
        assert not torch.equal(answer(model, rows), expected)
        raise KeyError
    assert torch.equal(answer(model, rows), expected)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_padding_does_not_change_quantized_answers():
    """A row answered alone and in a padded batch: its own range, without the padding."""
    model, rows = toy_model(), toy_examples(8, "dev")
    with fake_quantized(model, quantizable_modules(model, True), True, EXAMPLE):
        torch.testing.assert_close(
            answer(model, rows, batch_size=8), answer(model, rows, batch_size=1), rtol=1e-4, atol=1e-4
        )


def test_eight_bits_lose_little():
    """A few per cent of the spread of the logits."""
    model, rows = toy_model(), toy_examples(40, "dev")
    whole = answer(model, rows)
    with fake_quantized(model, quantizable_modules(model, True), True, EXAMPLE):
        difference = (answer(model, rows) - whole).abs().max() / (whole.max() - whole.min())
    assert 0 < difference < 0.1


def test_answers_that_are_not_finite_are_refused():
    """No plan is made by them."""
    model = toy_model()
    torch.nn.init.constant_(model.classifier.bias, float("nan"))
    with pytest.raises(TrainingError, match="'logits' of row 0 is not finite"):
        make_plan(model, toy_examples(3, "dev"), None, TASK, LOOSE, EXAMPLE)


# --- the plan ----------------------------------------------------------------------------------------------------


def test_a_plan_survives_the_disk(tmp_path):
    """Written and read, it is the same; made twice, too."""
    model, dev, train = toy_model(), toy_examples(9, "dev"), toy_examples(120, "train")
    plan = make_plan(model, dev, train, TASK, LOOSE, FIXED)
    write(plan, tmp_path / "plan.json")
    assert read(quantization.Plan, tmp_path / "plan.json") == plan == make_plan(model, dev, train, TASK, LOOSE, FIXED)
    assert set(plan.ranges) == set(quantizable_modules(model, embeddings=False))
    assert len(plan.sensitivity) == len(quantizable_modules(model, embeddings=True))
    assert plan.calibration.examples == 120 and plan.calibration.percentile == 99.99
    assert plan.warnings == ()


def test_the_most_sensitive_module_stands_first():
    """A layer whose rows hold one huge weight each loses all others, and shows it."""
    model = spoiled_model()
    plan = make_plan(
        model, self_labelled(model, 60), None, TASK, QuantizeSettings(allowed_drop=0, max_exclusions=1), EXAMPLE
    )
    assert plan.sensitivity[0].module == "bert.encoder.layer.1.output.dense"
    assert plan.sensitivity[0].mean_kl > 10 * plan.sensitivity[1].mean_kl
    assert plan.exclude == ("bert.encoder.layer.1.output.dense",)
    assert plan.int8_score > 1 - plan.sensitivity[0].drop / 100
    assert any("all zero" in text and "layer.1.intermediate.dense" in text for text in plan.warnings)


def test_modules_are_excluded_until_the_drop_is_allowed():
    """The shortest list that suffices; none when nothing need be."""
    calls = []

    def drop(exclude):
        calls.append(tuple(exclude))
        return 50 - 10 * len(exclude)

    assert quantization._exclude(["a", "b", "c", "d"], drop, 30) == (["a", "b"], 30)
    assert calls == [(), ("a",), ("a", "b")]
    assert quantization._exclude(["a", "b"], drop, 60) == ([], 50)


def test_a_drop_that_stays_too_large_is_warned_of():
    """The best list is given, and a budget decides."""
    found = [50, 20, 40]
    assert quantization._exclude(["a", "b"], lambda names: found[len(names)], 10) == (["a"], 20)
    model = spoiled_model()
    plan = make_plan(
        model, self_labelled(model, 60), None, TASK, QuantizeSettings(allowed_drop=0, max_exclusions=0), EXAMPLE
    )
    assert plan.int8_score < 1 and plan.exclude == ()
    assert any("points on dev with 0 modules in fp32, allowed are 0.0" in text for text in plan.warnings)


@pytest.mark.parametrize("calibration", [None, EncodedSplit([], [], [], pad_id=0)])
def test_static_without_examples_is_refused(calibration):
    """And says what to give."""
    with pytest.raises(DataError, match="no calibration examples"):
        make_plan(toy_model(), toy_examples(3, "dev"), calibration, TASK, LOOSE, FIXED)


def test_calibrating_on_no_rows_is_refused():
    """Also when called directly."""
    with pytest.raises(DataError, match="no calibration examples"):
        calibrate(toy_model(), EncodedSplit([], [], [], pad_id=0), "minmax", 99.0)


def test_calibration_rows_that_are_also_selection_rows_are_named():
    """Or the measured drop would be too good."""
    dev = toy_examples(6, "dev")
    with pytest.raises(DataError, match="2 calibration examples are also selection examples, such as 'dev-0', 'dev-1'"):
        make_plan(
            toy_model(), dev, EncodedSplit(["x", "dev-1", "dev-0"], [[1]] * 3, [0] * 3, pad_id=0), TASK, LOOSE, FIXED
        )


def test_no_dev_rows_are_refused():
    """A plan needs something to choose by."""
    with pytest.raises(DataError, match="no dev examples"):
        make_plan(toy_model(), EncodedSplit([], [], [], pad_id=0), None, TASK, QuantizeSettings(), EXAMPLE)


def test_few_calibration_examples_are_warned_of():
    """One is possible, but said."""
    plan = make_plan(toy_model(), toy_examples(6, "dev"), toy_examples(1, "train"), TASK, LOOSE, FIXED)
    assert any("calibrated on 1 examples, fewer than 100" in text for text in plan.warnings)


def test_an_input_that_never_changes_is_warned_of():
    """Its range says nothing of other text."""
    model = toy_model()
    with torch.no_grad():
        model.bert.pooler.dense.weight.zero_()
        model.bert.pooler.dense.bias.zero_()
    plan = make_plan(model, toy_examples(6, "dev"), toy_examples(100, "train"), TASK, LOOSE, FIXED)
    assert any("'classifier': its input was always 0" in text for text in plan.warnings)
    assert any("'bert.pooler.dense': 32 of 32 output channels are all zero" in text for text in plan.warnings)


@pytest.mark.parametrize("method", ["minmax", "entropy", "percentile"])
def test_every_method_makes_a_plan(method):
    """With ranges in order and finite answers."""
    settings = QuantizeSettings(calibration=Calibration(method=method, examples=50))
    plan = make_plan(toy_model(), toy_examples(20, "dev"), toy_examples(90, "train"), TASK, settings, FIXED)
    assert plan.calibration.method == method and plan.calibration.examples == 50
    assert all(low <= high for low, high in plan.ranges.values())


def test_rows_are_spread_over_the_file():
    """A file sorted by label would otherwise calibrate on one class."""
    spread = toy_examples(100, "train").spread(4)
    assert list(spread.names) == ["train-0", "train-25", "train-50", "train-75"]
    assert len(toy_examples(3, "train").spread(4)) == 3


def test_sensitivity_uses_no_more_rows_than_told():
    """The whole dev split decides on the final drop only."""
    plan = make_plan(toy_model(), toy_examples(20, "dev"), None, TASK, QuantizeSettings(), EXAMPLE, sensitivity_rows=5)
    assert (plan.sensitivity_rows, plan.dev_rows) == (5, 20)
