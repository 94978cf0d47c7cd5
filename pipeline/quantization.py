"""The quantization plan: which module becomes 8-bit, which stays in fp32, and the calibrated ranges.

Quantization is imitated in PyTorch, module by module, so that one plan serves every export format. Weights: symmetric,
s = max|w| / 127 for each output channel (each row of an embedding table). Activations: asymmetric 8-bit over one
example's valid tokens, which is what a phone computes for one unpadded text, or a calibrated fixed range.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Int8
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import kl_div
from tqdm import tqdm
from transformers import PreTrainedModel

from pipeline.calibration import Histogram, Range
from pipeline.data import batches_by_length, pad
from pipeline.errors import DataError, ModelError
from pipeline.params import QuantizeSettings
from pipeline.records import Record

SENSITIVITY_ROWS = 512  # one row is 0.2 points; modules are ranked by divergence, which is far less noisy
FEW_EXAMPLES = 100
MIN_TABLE_ROWS = 8  # a table of token types has 2 rows: nothing to gain
TINY = torch.finfo(torch.float32).tiny


class CalibrationFacts(Record):
    """What the ranges were calibrated on."""

    examples: int
    method: str
    # Share of values kept, in percent, when the method is percentile.
    percentile: float | None


class Sensitivity(Record):
    """What dev answers become when this module alone is 8-bit."""

    module: str
    accuracy: float
    drop_points: float
    mean_kl: float
    logit_rmse: float


class Plan(Record):
    """How a model is quantized. Modules are named as in PyTorch."""

    mode: Literal["dynamic", "static"]
    per_channel: bool
    embeddings: bool
    # Modules that stay in fp32.
    exclude: tuple[str, ...] = ()
    # Least and greatest input of each linear module; empty when the mode is dynamic.
    ranges: dict[str, Range] = Field(default_factory=dict)
    calibration: CalibrationFacts | None = None
    # Token ids of training rows, for tools that calibrate by themselves (NNCF, AI Edge Quantizer).
    calibration_rows: tuple[tuple[int, ...], ...] = ()
    # Most sensitive first.
    sensitivity: tuple[Sensitivity, ...] = ()
    sensitivity_rows: int
    dev_rows: int
    fp32_accuracy: float
    int8_accuracy: float
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class EncodedExamples:
    """Rows as token ids, each with its id and class number."""

    ids: Sequence[str]
    sequences: Sequence[Sequence[int]]
    labels: Sequence[int]

    def __len__(self) -> int:
        return len(self.sequences)

    def spread(self, count: int) -> "EncodedExamples":
        """At most `count` rows, evenly spaced: files are often sorted by label, so the first rows are one class."""
        picked = range(len(self)) if len(self) <= count else [i * len(self) // count for i in range(count)]
        return EncodedExamples(
            [self.ids[i] for i in picked], [self.sequences[i] for i in picked], [self.labels[i] for i in picked]
        )


# --- the arithmetic ----------------------------------------------------------------------------------------------


def quantize_weight(
    weight: Float[Tensor, "rows columns"], per_channel: bool
) -> tuple[Int8[Tensor, "rows columns"], Float[Tensor, " rows"]]:
    """Symmetric 8-bit weights and the scale of each row (all equal unless per_channel).

    A row of zeros has scale 1, so that nothing divides by zero. Agrees with onnxruntime's quantizer.
    """
    reach = weight.abs().amax(dim=1)
    if not per_channel:
        reach = reach.amax().expand_as(reach)
    scale = reach / 127
    scale = torch.where(scale < TINY, torch.ones_like(scale), scale)
    return (weight / scale[:, None]).round().clamp(-127, 127).to(torch.int8), scale.clone()


def activation_scale(low: Float[Tensor, "*shape"], high: Float[Tensor, "*shape"]) -> tuple[Tensor, Tensor]:
    """Scale and zero point, in 0..255, of asymmetric 8-bit values over a range, widened to hold 0.

    An empty range has scale 1. As the ONNX operator DynamicQuantizeLinear.
    """
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = (high - low) / 255
    scale = torch.where(scale < TINY, torch.ones_like(scale), scale)
    return scale, (-low / scale).round().clamp(0, 255)


def fake_quantize(values: Float[Tensor, "*shape"], low: Tensor, high: Tensor) -> Float[Tensor, "*shape"]:
    """The values after a round trip through 8 bits over a range; beyond it they are clipped."""
    scale, zero = activation_scale(low, high)
    return ((values / scale).round().add(zero).clamp(0, 255) - zero) * scale


def quantizable_modules(model: nn.Module, embeddings: bool) -> list[str]:
    """Names of the linear layers and, if asked, of the embedding tables, in the model's order."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        or (embeddings and isinstance(module, nn.Embedding) and module.num_embeddings >= MIN_TABLE_ROWS)
    ]


# --- imitating it in PyTorch -------------------------------------------------------------------------------------


@contextmanager
def fake_quantized(
    model: PreTrainedModel, modules: Collection[str], per_channel: bool, ranges: Mapping[str, Range]
) -> Iterator[None]:
    """Within the block the named modules compute as if they were 8-bit; afterwards the model is as it was.

    Args:
        model: in eval mode, called with keywords.
        modules: names of linear layers and embedding tables.
        per_channel: as for `quantize_weight`.
        ranges: fixed input range of linear modules; a module without one takes the range of each example.
    """
    kept: list[tuple[nn.Parameter, Tensor]] = []
    batch: dict[str, Tensor] = {}
    hooks = [model.register_forward_pre_hook(_note_mask(batch), with_kwargs=True)]
    try:
        for name in modules:
            module = model.get_submodule(name)
            weight = module.weight
            assert isinstance(weight, nn.Parameter)
            kept.append((weight, weight.data))
            quantized, scale = quantize_weight(weight.data, per_channel)
            weight.data = quantized.float() * scale[:, None]
            if isinstance(module, nn.Linear):
                hooks.append(module.register_forward_pre_hook(_input_quantizer(ranges.get(name), batch)))
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for weight, data in kept:
            weight.data = data


def _note_mask(batch: dict[str, Tensor]) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
        batch["mask"] = kwargs["attention_mask"]

    return hook


def _input_quantizer(fixed: Range | None, batch: dict[str, Tensor]) -> Callable[..., tuple[Tensor]]:
    def hook(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        (values,) = args
        if fixed is not None:
            low, high = (torch.tensor(bound, dtype=values.dtype) for bound in fixed)
        else:
            # 0 is in every range, so zeroed padding does not count
            valid = values * batch["mask"][:, :, None] if values.dim() == 3 else values
            shape = (-1,) + (1,) * (values.dim() - 1)
            low, high = valid.flatten(1).amin(1).view(shape), valid.flatten(1).amax(1).view(shape)
        return (fake_quantize(values, low, high),)

    return hook


@torch.no_grad()
def answer(
    model: PreTrainedModel, examples: EncodedExamples, batch_size: int = 32, quiet: bool = True
) -> Float[Tensor, "rows classes"]:
    """Logits of every row, in the rows' order."""
    logits = torch.empty(len(examples), model.config.num_labels)
    batches = batches_by_length([len(sequence) for sequence in examples.sequences], batch_size)
    # disable=None shows the bar on a terminal only
    for rows in tqdm(batches, desc="answering", leave=False, disable=True if quiet else None):
        batch = pad([examples.sequences[i] for i in rows], model.config.pad_token_id or 0)
        logits[torch.tensor(rows)] = model(**batch).logits.float()
    if not torch.isfinite(logits).all():
        row = int((~torch.isfinite(logits)).any(dim=1).nonzero()[0])
        raise ModelError(f"the model answers example '{examples.ids[row]}' with NaN or infinity; train it again")
    return logits


# --- calibration -------------------------------------------------------------------------------------------------


@torch.no_grad()
def calibrate(
    model: PreTrainedModel,
    examples: EncodedExamples,
    method: Literal["minmax", "entropy", "percentile"],
    percentile: float,
) -> dict[str, Range]:
    """The input range of every linear layer on these rows, padding left out.

    Raises:
        DataError: there are no rows.
    """
    if not len(examples):
        raise DataError("no calibration examples; quantize.mode 'static' needs training rows to choose ranges from")
    seen = {name: Histogram(name) for name in quantizable_modules(model, embeddings=False)}
    batch: dict[str, Tensor] = {}
    hooks = [model.register_forward_pre_hook(_note_mask(batch), with_kwargs=True)]
    hooks += [model.get_submodule(name).register_forward_pre_hook(_counter(h, batch)) for name, h in seen.items()]
    try:
        for rows in tqdm(batches_by_length([len(s) for s in examples.sequences], 32), desc="calibrating", disable=None):
            model(**pad([examples.sequences[i] for i in rows], model.config.pad_token_id or 0))
    finally:
        for hook in hooks:
            hook.remove()
    return {name: histogram.range(method, percentile) for name, histogram in seen.items()}


def _counter(histogram: Histogram, batch: dict[str, Tensor]) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Tensor]) -> None:
        (values,) = args
        valid: Bool[Tensor, "batch length"] = batch["mask"].bool()
        histogram.add(values[valid] if values.dim() == 3 else values)

    return hook


def _check_calibration(calibration: EncodedExamples | None, dev: EncodedExamples) -> EncodedExamples:
    if calibration is None or not len(calibration):
        raise DataError("no calibration examples; quantize.mode 'static' needs training rows to choose ranges from")
    shared = sorted(set(calibration.ids) & set(dev.ids))
    if shared:
        raise DataError(
            f"{len(shared)} calibration examples are also selection examples, such as "
            f"{', '.join(map(repr, shared[:5]))}; calibrate on training rows only, or the measured drop is too good"
        )
    return calibration


# --- the plan ----------------------------------------------------------------------------------------------------


def make_plan(
    model: PreTrainedModel,
    dev: EncodedExamples,
    calibration: EncodedExamples | None,
    settings: QuantizeSettings,
    sensitivity_rows: int = SENSITIVITY_ROWS,
) -> Plan:
    """The plan that keeps dev accuracy within `settings.allowed_drop_points`, with the fewest modules left in fp32.

    Every module is quantized alone first. Then all are, and the most sensitive (by divergence from the fp32 answers)
    are taken out one by one until the drop is allowed. If it never is, the plan with the best accuracy is given and its
    warnings say so: a budget decides, not this function.

    Args:
        model: in eval mode; unchanged.
        dev: rows to choose by; never the test split.
        calibration: training rows, never among `dev`; needed when the mode is static, and by formats whose own tools
            calibrate, which find them in the plan.
        settings: the section `quantize`.
        sensitivity_rows: most dev rows that each single module is tried on.

    Raises:
        DataError: no dev rows, no calibration rows, or calibration rows that are also dev rows.
        ModelError: an answer or an activation is not finite.
    """
    if not len(dev):
        raise DataError("no dev examples to choose the quantization by; give a dev split")
    modules = quantizable_modules(model, settings.embeddings)
    warnings = _zero_row_warnings(model, modules)
    ranges: dict[str, Range] = {}
    facts = None
    chosen = EncodedExamples([], [], [])
    if calibration is not None or settings.mode == "static":
        chosen = _check_calibration(calibration, dev).spread(settings.calibration.examples)
    if settings.mode == "static":
        method, percentile = settings.calibration.method, settings.calibration.percentile
        ranges = calibrate(model, chosen, method, percentile)
        facts = CalibrationFacts(
            examples=len(chosen), method=method, percentile=percentile if method == "percentile" else None
        )
        warnings += _calibration_warnings(len(chosen), ranges)
    table = measure_sensitivity(model, modules, dev.spread(sensitivity_rows), settings.per_channel, ranges)
    fp32 = _accuracy(answer(model, dev, quiet=False), dev.labels)

    def int8_accuracy(exclude: Collection[str]) -> float:
        quantized = [name for name in modules if name not in exclude]
        with fake_quantized(model, quantized, settings.per_channel, ranges):
            return _accuracy(answer(model, dev, quiet=False), dev.labels)

    order = [row.module for row in table][: settings.max_exclusions]
    exclude, int8 = _exclude(order, int8_accuracy, fp32 - settings.allowed_drop_points / 100)
    drop_points = 100 * (fp32 - int8)
    if drop_points > settings.allowed_drop_points + 1e-9:
        warnings.append(
            f"int8 loses {drop_points:.2f} points on dev with {len(exclude)} modules in fp32, allowed are "
            f"{settings.allowed_drop_points}; raise quantize.max_exclusions, or use per_channel or dynamic mode"
        )
    return Plan(
        mode=settings.mode,
        per_channel=settings.per_channel,
        embeddings=settings.embeddings,
        exclude=tuple(exclude),
        ranges=ranges,
        calibration=facts,
        calibration_rows=tuple(tuple(row) for row in chosen.sequences),
        sensitivity=tuple(table),
        sensitivity_rows=min(sensitivity_rows, len(dev)),
        dev_rows=len(dev),
        fp32_accuracy=fp32,
        int8_accuracy=int8,
        warnings=tuple(warnings),
    )


def measure_sensitivity(
    model: PreTrainedModel,
    modules: Sequence[str],
    examples: EncodedExamples,
    per_channel: bool,
    ranges: Mapping[str, Range],
) -> list[Sensitivity]:
    """Each module quantized alone, most sensitive first (by divergence, then by name)."""
    whole = answer(model, examples)
    accuracy = _accuracy(whole, examples.labels)
    table = []
    for name in tqdm(modules, desc="sensitivity", disable=None):
        with fake_quantized(model, [name], per_channel, ranges):
            logits = answer(model, examples)
        found = _accuracy(logits, examples.labels)
        divergence = kl_div(logits.log_softmax(-1), whole.log_softmax(-1), reduction="batchmean", log_target=True)
        table.append(
            Sensitivity(
                module=name,
                accuracy=found,
                drop_points=100 * (accuracy - found),
                mean_kl=max(divergence.item(), 0.0),  # rounding can give -1e-9
                logit_rmse=(logits - whole).square().mean().sqrt().item(),
            )
        )
    return sorted(table, key=lambda row: (-row.mean_kl, row.module))


def _exclude(
    order: Sequence[str], accuracy_without: Callable[[Collection[str]], float], least: float
) -> tuple[list[str], float]:
    """The shortest start of `order` to leave out so that `least` is reached, and its accuracy; else the best one."""
    best: tuple[list[str], float] | None = None
    for count in range(len(order) + 1):
        exclude = list(order[:count])
        found = accuracy_without(exclude)
        if best is None or found > best[1]:
            best = exclude, found
        if found >= least - 1e-9:  # a difference of two shares of the same rows, but not exact in binary
            return exclude, found
    assert best is not None
    return best


def _accuracy(logits: Float[Tensor, "rows classes"], labels: Sequence[int]) -> float:
    classes: Int[Tensor, " rows"] = torch.tensor(labels)
    return (logits.argmax(dim=-1) == classes).double().mean().item()


def _zero_row_warnings(model: nn.Module, modules: Sequence[str]) -> list[str]:
    warnings = []
    for name in modules:
        module = model.get_submodule(name)
        weight = module.weight.detach()  # type: ignore[operator]
        zero = weight.abs().amax(dim=1) / 127 < TINY
        padding = getattr(module, "padding_idx", None)
        if padding is not None:
            zero[padding] = False  # a padding row is zero by design
        rows = zero.nonzero().flatten().tolist()
        if rows:
            shown = ", ".join(map(str, rows[:8])) + ("…" if len(rows) > 8 else "")
            warnings.append(
                f"'{name}': {len(rows)} of {len(zero)} output channels are all zero (scale set to 1): {shown}"
            )
    return warnings


def _calibration_warnings(examples: int, ranges: Mapping[str, Range]) -> list[str]:
    warnings = []
    if examples < FEW_EXAMPLES:
        warnings.append(f"calibrated on {examples} examples, fewer than {FEW_EXAMPLES}: ranges may be too narrow")
    warnings += [
        f"'{name}': its input was always {low:g} in calibration, so its range says nothing of other text"
        for name, (low, high) in ranges.items()
        if low == high
    ]
    return warnings
