"""Which tensor gets a palette of how many bits, so that the file is small enough and the answers stay.

Each tensor alone is put through 4, 6 and 8 bits, and the divergence of the student's answers is measured on calibration
rows. From 4 bits everywhere, the tensor whose next step up buys the most divergence for its bytes goes first, while the
size allows. What that gives together is measured at the end, not added up.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import kl_div
from transformers import PreTrainedModel

from pipeline.base.errors import ExportError
from pipeline.data.prepared import spread_rows
from pipeline.families import gives_one_label, head_of, output_names
from pipeline.mil.palettes import BITS, through_palette
from pipeline.training.answers import predict

SENSITIVITY_ROWS = 128  # divergence is far less noisy than a score
OVERHEAD = 1.02  # palettes and alignment, as measured on saved packages of students; the file is looked at besides


@dataclass(frozen=True)
class Choice:
    """Bits by tensor, and what they cost."""

    bits: Mapping[str, int]
    # share of answers on calibration rows that are other than the student's
    changed: float
    mean_kl: float


def choose_bits(
    model: PreTrainedModel,
    tensors: Sequence[str],
    rows: Sequence[Sequence[int]],
    size_bytes: float,
    changed_at_most: float,
) -> Choice:
    """The choice with the least divergence found within the size.

    Args:
        model: the student; its weights come back as they were.
        tensors: names of the parameters that may have a palette.
        rows: token ids of calibration rows.
        size_bytes: of the whole file.
        changed_at_most: share of answers that may be others.

    Raises:
        ExportError: 4 bits everywhere are larger than that, or the answers change more; the message says how much.
    """
    if head_of(model.config) == "sequence" and not gives_one_label(model.config):
        raise ExportError(
            "precision mixed weighs what changes by the choice among labels, and this model's outputs are no such "
            "choice; use palette4, palette6 or palette8"
        )
    weights = dict(model.named_parameters())
    fixed = 2 * sum(weight.numel() for name, weight in weights.items() if name not in tensors)
    with torch.no_grad():
        few = [rows[i] for i in spread_rows(len(rows), SENSITIVITY_ROWS)]
        expected = _answers(model, few)
        small = {
            (name, bits): torch.from_numpy(through_palette(weights[name].numpy(), bits))
            for name in tensors
            for bits in BITS
        }
        harm = {
            name: {bits: _divergence(expected, _with(model, {name: small[name, bits]}, few)) for bits in BITS}
            for name in tensors
        }
        chosen = dict.fromkeys(tensors, BITS[0])

        def size(bits: Mapping[str, int]) -> float:
            return OVERHEAD * (fixed + sum(weights[name].numel() * bits[name] / 8 for name in tensors))

        if size(chosen) > size_bytes:
            raise ExportError(
                f"options.mixed.size_mb is {size_bytes / 1e6:g}, but with 4 bits everywhere it is "
                f"{size(chosen) / 1e6:.1f} MB: raise it, or take a smaller student"
            )
        while steps := [step for name in tensors if (step := _step(name, chosen, harm, weights[name]))]:
            fitting = [step for step in steps if size({**chosen, step[1]: step[2]}) <= size_bytes]
            if not fitting:
                break
            _, name, more = max(fitting)
            chosen[name] = more
        all_expected = _answers(model, rows)
        found = _with(model, {name: small[name, bits] for name, bits in chosen.items()}, rows)
    changed = float((all_expected.argmax(1) != found.argmax(1)).float().mean())
    if changed > changed_at_most:
        raise ExportError(
            f"options.mixed: within {size_bytes / 1e6:g} MB, {100 * changed:.1f} % of the answers to {len(rows)} "
            f"calibration rows are not the student's, allowed are {100 * changed_at_most:g} %: raise size_mb or "
            "changed_percent"
        )
    return Choice(chosen, changed, _divergence(all_expected, found))


def _step(
    name: str, chosen: Mapping[str, int], harm: Mapping[str, Mapping[int, float]], weight: Tensor
) -> tuple[float, str, int] | None:
    """(divergence saved for a byte, name, bits) of the next step up; None at the top."""
    now = chosen[name]
    if now == BITS[-1]:
        return None
    more = BITS[BITS.index(now) + 1]
    return (harm[name][now] - harm[name][more]) / (weight.numel() * (more - now) / 8), name, more


def _with(
    model: PreTrainedModel, changed: Mapping[str, Tensor], rows: Sequence[Sequence[int]]
) -> Float[Tensor, "units choices"]:
    """Answers with other values of these parameters."""
    weights = dict(model.named_parameters())
    kept = {name: weights[name].data for name in changed}
    try:
        for name, value in changed.items():
            weights[name].data = value
        return _answers(model, rows)
    finally:
        for name, value in kept.items():
            weights[name].data = value


def _answers(model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> Float[Tensor, "units choices"]:
    """A unit is a text, a token of one, or an end of a span, whose choices are tokens."""
    outputs = predict(model, rows, model.config.pad_token_id or 0, "mixed bits", 32, quiet=True)
    kind = head_of(model.config)
    if kind == "sequence":
        return outputs["logits"]
    if kind == "span":
        return torch.cat([outputs[name] for name in output_names(model.config)])
    lengths = torch.tensor([len(row) for row in rows])
    return outputs["logits"][torch.arange(int(lengths.max())) < lengths[:, None]]


def _divergence(expected: Float[Tensor, "units choices"], found: Float[Tensor, "units choices"]) -> float:
    return float(kl_div(found.log_softmax(-1), expected.log_softmax(-1), reduction="batchmean", log_target=True))
