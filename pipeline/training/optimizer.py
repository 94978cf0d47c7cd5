"""How weights are moved: AdamW with a rate that rises, then falls to 0, and how precisely a step is computed."""

import re

import torch
from torch import nn

from pipeline.base.errors import SettingsError
from pipeline.settings.training import TrainingSettings
from pipeline.training.distiller import Distiller

# Names of parameters that are not pulled towards 0, whatever class their module is of.
NO_DECAY = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")


def make_optimizer(distiller: Distiller, settings: TrainingSettings) -> torch.optim.AdamW:
    """AdamW in groups: decayed, not decayed, and auxiliary modules that learn at a rate of their own."""
    norms = {p for module in distiller.modules() if isinstance(module, nn.LayerNorm) for p in module.parameters()}
    fast = distiller.fast_parameters()
    others = {parameter for _, parameters in fast for parameter in parameters}
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in distiller.named_parameters():
        if parameter.requires_grad and parameter not in others:
            (plain if parameter in norms or NO_DECAY.search(name.lower()) else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": plain, "weight_decay": 0.0},
        *({"params": list(p), "lr": f * settings.learning_rate, "weight_decay": 0.0} for f, p in fast),
    ]
    # Fused: a third of the default's cost on CPU.
    return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)


def rate_factor(step: int, warmup: int, total: int) -> float:
    """The factor on every rate in a step, counted from 0: it rises evenly from 0 to 1, then falls evenly to 0."""
    return step / warmup if step < warmup else (total - step) / max(1, total - warmup)


def half_precision(setting: str, device: torch.device) -> torch.dtype | None:
    """What the student is computed in beside float32; None for float32 alone. Losses are float32 always.

    Raises:
        SettingsError: the device cannot do what the setting says.
    """
    has_bf16 = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    if setting == "auto":
        # On CPUs without AMX bf16 is slower than fp32, and rounds differently from machine to machine.
        return torch.bfloat16 if device.type == "cuda" and has_bf16 else None
    if setting == "fp16" and device.type != "cuda":
        raise SettingsError(
            f"training.precision: found 'fp16', which needs its loss scaled, as torch does on NVIDIA GPUs only, and "
            f"this runs on {device.type}; use 'bf16', 'fp32' or 'auto'"
        )
    if setting == "bf16" and not has_bf16:
        raise SettingsError("training.precision: found 'bf16', which this GPU can only emulate; use 'fp16' or 'fp32'")
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[setting]
