"""The quantization plan: which module becomes 8-bit, which stays in fp32, and the calibrated ranges.

Quantization is imitated in PyTorch, module by module. Formats differ in two things that decide which module is
sensitive, so a plan has one entry for each scheme in use: where the range of 8-bit activations comes from, and whether
weights are kept from saturating the 16-bit sums of x86 without VNNI.

Weights: symmetric, s = max|w| / 127 for each output channel (each row of an embedding table), and larger where a pair
could saturate. Activations: asymmetric 8-bit.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int8
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import kl_div
from tqdm import tqdm
from transformers import PreTrainedModel

from pipeline.base.errors import DataError, ExportError
from pipeline.base.plugins import nearest
from pipeline.base.records import Record
from pipeline.data.batches import batches_by_length, pad
from pipeline.data.prepared import EncodedSplit
from pipeline.quantization.calibration import Histogram, Range
from pipeline.quantization.pair_sums import least_scale, unsafe_pairs
from pipeline.settings.quantize import QuantizeSettings
from pipeline.tasks import Task
from pipeline.training.answers import predict, score_of

SENSITIVITY_ROWS = 256  # one row is 0.4 points; modules are ranked by divergence, which is far less noisy
FEW_EXAMPLES = 100
MIN_TABLE_ROWS = 8  # a table of token types has 2 rows: nothing to gain
EXACT = 1e-9  # a difference of two shares of the same rows is not exact in binary
TINY = torch.finfo(torch.float32).tiny


Activations = Literal["example", "token", "fixed", "float"]


class Scheme(Record):
    """What decides how a module suffers from 8 bits, besides its weights. An exporter says which one it has."""

    # One range for all valid tokens of an example, one for each token, one calibrated for all, or none: weights only.
    activations: Activations
    # Weights whose neighbours cannot saturate a sum of 16 bits, for runtimes that have such kernels.
    pair_safe: bool = False

    @property
    def name(self) -> str:
        return f"{self.activations}, pair-safe" if self.pair_safe else self.activations


class PairFacts(Record):
    """What it took to make the weights of 8-bit layers safe."""

    pairs: int
    # With the scale max|w| / 127.
    unsafe: int
    channels: int
    # Whose scale had to grow, and the most it grew by.
    grown: int
    largest_growth: float


class CalibrationFacts(Record):
    """What the ranges were calibrated on."""

    examples: int
    method: str
    # Share of values kept, in percent, when the method is percentile.
    percentile: float | None


class Sensitivity(Record):
    """What dev answers become when this module alone is 8-bit."""

    module: str
    score: float
    drop: float  # in the unit of the metric's differences
    mean_kl: float
    logit_rmse: float


class Plan(Record):
    """How a model is quantized for one scheme. Modules are named as in PyTorch."""

    scheme: Scheme
    per_channel: bool
    embeddings: bool
    # Modules that stay in fp32.
    exclude: tuple[str, ...] = ()
    # Least and greatest input of each linear module; empty unless activations are fixed.
    ranges: dict[str, Range] = Field(default_factory=dict)
    calibration: CalibrationFacts | None = None
    # None where the scheme has no need of it.
    pair_facts: PairFacts | None = None
    # Token ids of training rows, for tools that calibrate by themselves (NNCF, AI Edge Quantizer).
    calibration_rows: tuple[tuple[int, ...], ...] = ()
    # Most sensitive first.
    sensitivity: tuple[Sensitivity, ...] = ()
    sensitivity_rows: int = 0
    dev_rows: int = 0
    # On dev; None where nothing is 8-bit.
    fp32_score: float | None = None
    int8_score: float | None = None
    warnings: tuple[str, ...] = ()

    def modules_of(self, model: nn.Module, *, embeddings: bool = True) -> list[str]:
        """Names of the modules of a model, or graph, that become 8-bit; tables only if asked and planned.

        Raises:
            ExportError: it names a module that the model does not have.
        """
        self.check_modules(model)
        known = quantizable_modules(model, self.embeddings and embeddings)
        return [name for name in known if name not in self.exclude]

    def check_modules(self, model: nn.Module) -> None:
        """Raises ExportError when it names a module that this model, or graph, does not have."""
        known = dict(model.named_modules())
        for name in (*self.exclude, *self.ranges):
            if name not in known:
                raise ExportError(
                    f"the quantization plan names the module '{name}', which the model does not have"
                    f"{nearest(name, known)}; run `dvc repro quantize`"
                )


class Plans(Record):
    """The entries of a quantization plan, by the name of their scheme."""

    entries: dict[str, Plan]
    # Of formats that have nothing in 8 bits and look at training rows all the same.
    calibration_rows: tuple[tuple[int, ...], ...] = ()

    def entry(self, scheme: Scheme | None) -> Plan:
        """The entry for a scheme; None for a format that needs no more than the calibration rows.

        Raises:
            ExportError: there is none.
        """
        if scheme is None:
            return Plan(
                scheme=Scheme(activations="float"),
                per_channel=True,
                embeddings=False,
                calibration_rows=self.calibration_rows,
            )
        if scheme.name not in self.entries:
            raise ExportError(
                f"the quantization plan has entries for {', '.join(map(repr, self.entries)) or 'nothing'}, expected "
                f"'{scheme.name}'; make it again: dvc repro -f quantize"
            )
        return self.entries[scheme.name]


# --- the arithmetic ----------------------------------------------------------------------------------------------


def quantize_weight(
    weight: Float[Tensor, "rows columns"], per_channel: bool, pair_safe: bool = False
) -> tuple[Int8[Tensor, "rows columns"], Float[Tensor, " rows"]]:
    """Symmetric 8-bit weights and the scale of each row (all equal unless per_channel).

    A row of zeros has scale 1, so that nothing divides by zero. Agrees with onnxruntime's quantizer, unless pair_safe
    raises a scale: then no two neighbours along a row can saturate a sum of 16 bits. A row without such a pair keeps
    its scale and its bytes, where a range of 7 bits for all would cost every row half of its steps.
    """
    scale = weight.abs().amax(dim=1) / 127
    if pair_safe:
        scale = scale.maximum(torch.from_numpy(least_scale(weight.numpy())))
    if not per_channel:
        scale = scale.amax().expand_as(scale)
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


def pair_facts(model: nn.Module, modules: Collection[str], per_channel: bool) -> PairFacts:
    """What keeping the pairs of these modules' weights safe costs; tables are looked up, so they have no sums."""
    pairs = unsafe = channels = grown = 0
    most = 1.0
    for name in modules:
        module = model.get_submodule(name)
        if not isinstance(module, nn.Linear):
            continue
        weight = module.weight.detach()
        plain, scale = quantize_weight(weight, per_channel)
        _, safe = quantize_weight(weight, per_channel, pair_safe=True)
        found = unsafe_pairs(plain.numpy())
        growth = safe / scale
        pairs, unsafe = pairs + found.size, unsafe + int(found.sum())
        channels, grown = channels + len(scale), grown + int((growth > 1).sum())
        most = max(most, growth.max().item())
    return PairFacts(pairs=pairs, unsafe=unsafe, channels=channels, grown=grown, largest_growth=most)


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
    model: PreTrainedModel,
    modules: Collection[str],
    per_channel: bool,
    scheme: Scheme,
    ranges: Mapping[str, Range] | None = None,
) -> Iterator[None]:
    """Within the block the named modules compute as if they were 8-bit; afterwards the model is as it was.

    Args:
        model: in eval mode, called with keywords.
        modules: names of linear layers and embedding tables.
        per_channel: as for `quantize_weight`.
        scheme: where the ranges of activations come from, and whether pairs of weights are kept safe.
        ranges: input range of each linear module, when activations are fixed.
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
            is_linear = isinstance(module, nn.Linear)
            quantized, scale = quantize_weight(weight.data, per_channel, scheme.pair_safe and is_linear)
            weight.data = quantized.float() * scale[:, None]
            if is_linear and scheme.activations != "float":
                fixed = (ranges or {})[name] if scheme.activations == "fixed" else None
                hooks.append(module.register_forward_pre_hook(_input_quantizer(scheme.activations, fixed, batch)))
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


def _input_quantizer(
    activations: Activations, fixed: Range | None, batch: dict[str, Tensor]
) -> Callable[..., tuple[Tensor]]:
    def hook(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        (values,) = args
        if fixed is not None:
            low, high = (torch.tensor(bound, dtype=values.dtype) for bound in fixed)
        elif activations == "token":
            low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
        else:
            # 0 is in every range, so zeroed padding does not count
            valid = values * batch["mask"][:, :, None] if values.dim() == 3 else values
            shape = (-1,) + (1,) * (values.dim() - 1)
            low, high = valid.flatten(1).amin(1).view(shape), valid.flatten(1).amax(1).view(shape)
        return (fake_quantize(values, low, high),)

    return hook


# --- calibration -------------------------------------------------------------------------------------------------


@torch.no_grad()
def calibrate(
    model: PreTrainedModel,
    examples: EncodedSplit,
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
        for rows in tqdm(batches_by_length(examples.lengths, 32), desc="calibrating", disable=None):
            model(**pad([examples.ids[i] for i in rows], examples.pad_id))
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


def _check_calibration(calibration: EncodedSplit | None, dev: EncodedSplit) -> EncodedSplit:
    if calibration is None or not len(calibration):
        raise DataError("no calibration examples; quantize.mode 'static' needs training rows to choose ranges from")
    shared = sorted(set(calibration.names) & set(dev.names))
    if shared:
        raise DataError(
            f"{len(shared)} calibration examples are also selection examples, such as "
            f"{', '.join(map(repr, shared[:5]))}; calibrate on training rows only, or the measured drop is too good"
        )
    return calibration


# --- the plan ----------------------------------------------------------------------------------------------------


def make_plans(
    model: PreTrainedModel,
    dev: EncodedSplit,
    calibration: EncodedSplit | None,
    task: Task,
    settings: QuantizeSettings,
    schemes: Collection[Scheme],
) -> Plans:
    """One entry for each scheme; see `make_plan` for the rest."""
    wanted = {scheme.name: scheme for scheme in schemes}
    entries = {name: make_plan(model, dev, calibration, task, settings, wanted[name]) for name in sorted(wanted)}
    rows = _check_calibration(calibration, dev).spread(settings.calibration.examples) if calibration else None
    return Plans(entries=entries, calibration_rows=tuple(tuple(row) for row in rows.ids) if rows is not None else ())


def make_plan(
    model: PreTrainedModel,
    dev: EncodedSplit,
    calibration: EncodedSplit | None,
    task: Task,
    settings: QuantizeSettings,
    scheme: Scheme,
    sensitivity_rows: int = SENSITIVITY_ROWS,
) -> Plan:
    """The plan that keeps the score on dev within `settings.allowed_drop`, with the fewest modules left in fp32.

    Every module is quantized alone first. Then all are, and the most sensitive (by divergence from the fp32 answers)
    are taken out one by one until the drop is allowed. If it never is, the plan with the best score is given and its
    warnings say so: a budget decides, not this function.

    Args:
        model: in eval mode; unchanged.
        dev: rows to choose by; never the test split.
        calibration: training rows, never among `dev`; needed when activations are fixed, and by formats whose own
            tools calibrate, which find them in the plan.
        task: whose metric decides.
        settings: the section `quantize`.
        scheme: what the format that it is for does with activations and weights.
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
    chosen = None
    if calibration is not None or scheme.activations == "fixed":
        chosen = _check_calibration(calibration, dev).spread(settings.calibration.examples)
    if scheme.activations == "fixed":
        assert chosen is not None
        method, percentile = settings.calibration.method, settings.calibration.percentile
        ranges = calibrate(model, chosen, method, percentile)
        facts = CalibrationFacts(
            examples=len(chosen), method=method, percentile=percentile if method == "percentile" else None
        )
        warnings += _calibration_warnings(len(chosen), ranges)

    def quantized(names: Collection[str]) -> AbstractContextManager[None]:
        return fake_quantized(model, names, settings.per_channel, scheme, ranges)

    table = measure_sensitivity(model, modules, dev.spread(sensitivity_rows), task, quantized)
    fp32 = _score(model, dev, task)

    def drop_without(exclude: Collection[str]) -> float:
        with quantized([name for name in modules if name not in exclude]):
            return task.METRIC.drop(fp32, _score(model, dev, task))

    order = [row.module for row in table][: settings.max_exclusions]
    exclude, drop = _exclude(order, drop_without, settings.allowed_drop)
    if drop > settings.allowed_drop + EXACT:
        warnings.append(
            f"int8 loses {drop:.2f} {task.METRIC.unit_of_differences} on dev with {len(exclude)} modules in fp32, "
            f"allowed are {settings.allowed_drop}; raise quantize.max_exclusions, or use per_channel or dynamic "
            "activations"
        )
    left = [name for name in modules if name not in exclude]
    return Plan(
        scheme=scheme,
        per_channel=settings.per_channel,
        embeddings=settings.embeddings,
        exclude=tuple(exclude),
        ranges=ranges,
        calibration=facts,
        pair_facts=pair_facts(model, left, settings.per_channel) if scheme.pair_safe else None,
        calibration_rows=tuple(tuple(row) for row in chosen.ids) if chosen is not None else (),
        sensitivity=tuple(table),
        sensitivity_rows=min(sensitivity_rows, len(dev)),
        dev_rows=len(dev),
        fp32_score=fp32,
        int8_score=task.METRIC.dropped(fp32, drop),
        warnings=tuple(warnings),
    )


def measure_sensitivity(
    model: PreTrainedModel,
    modules: Sequence[str],
    examples: EncodedSplit,
    task: Task,
    quantized: Callable[[Collection[str]], AbstractContextManager[None]],
) -> list[Sensitivity]:
    """Each module quantized alone, most sensitive first (by divergence, then by name).

    `quantized(names)` is `fake_quantized` for a scheme: within it, the named modules are 8-bit.
    """
    mask = pad(list(examples.ids), examples.pad_id)["attention_mask"].bool()

    def answered() -> tuple[float, Tensor]:
        outputs = predict(model, examples.ids, examples.pad_id, "answering", 32, quiet=True)
        return score_of(outputs, examples.targets, task), task.units(outputs, None, mask).logits

    score, whole = answered()
    table = []
    for name in tqdm(modules, desc="sensitivity", disable=None):
        with quantized([name]):
            found, logits = answered()
        divergence = kl_div(logits.log_softmax(-1), whole.log_softmax(-1), reduction="batchmean", log_target=True)
        table.append(
            Sensitivity(
                module=name,
                score=found,
                drop=task.METRIC.drop(score, found),
                mean_kl=max(divergence.item(), 0.0),  # rounding can give -1e-9
                logit_rmse=(logits - whole).square().mean().sqrt().item(),
            )
        )
    return sorted(table, key=lambda row: (-row.mean_kl, row.module))


def _exclude(
    order: Sequence[str], drop_without: Callable[[Collection[str]], float], most: float
) -> tuple[list[str], float]:
    """The shortest start of `order` to leave out so that no more than `most` is lost, and the loss; else the best."""
    best: tuple[list[str], float] | None = None
    for count in range(len(order) + 1):
        exclude = list(order[:count])
        found = drop_without(exclude)
        if best is None or found < best[1]:
            best = exclude, found
        if found <= most + EXACT:
            return exclude, found
    assert best is not None
    return best


def _score(model: PreTrainedModel, dev: EncodedSplit, task: Task) -> float:
    return score_of(predict(model, dev.ids, dev.pad_id, "answering", 32), dev.targets, task)


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
