"""Passes of coremltools that make the weights of an ML Program smaller, configured by Decant's own choices."""

from collections.abc import Mapping, Sequence
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

from pipeline.mil.interpreter import Range
from pipeline.mil.palettes import make_palette

NAMESPACE = "compression"


def linear_weights(ct: ModuleType, per_channel: bool, kept: Sequence[str]) -> Any:
    """8-bit weights with one scale for each output channel, or for all; `kept` constants stay as they are."""
    from coremltools.optimize import coreml

    config = coreml.OptimizationConfig(
        # The plan decides what is quantized, not a size; vectors are never touched by coremltools.
        global_config=coreml.OpLinearQuantizerConfig(
            mode="linear_symmetric",
            dtype="int8",
            granularity="per_channel" if per_channel else "per_tensor",
            weight_threshold=0,
        ),
        op_name_configs=dict.fromkeys(kept, None),
    )
    return _pipeline(ct, {"linear_quantize_weights": {"config": config}})


def linear_weights_and_activations(
    ct: ModuleType, per_channel: bool, kept: Sequence[str], kept_products: Sequence[str], ranges: Mapping[str, Range]
) -> Any:
    """8-bit weights, and 8-bit inputs of every matrix product with weights, over ranges that are given.

    The ranges are ours: coremltools 9.0 calibrates on a Mac only, and keeps the range of the last sample alone.

    Args:
        ct: coremltools.
        per_channel: one scale for each output channel.
        kept: constants that stay in fp16.
        kept_products: operations whose input stays in fp16.
        ranges: by name of the value in the program.
    """
    from coremltools.optimize import coreml

    # Asymmetric, since what comes out of GELU is. Additions stay in fp16: the mask's -10,000 would take all 256 steps.
    config = coreml.OptimizationConfig(
        global_config=None,
        op_type_configs=dict.fromkeys(
            ("linear", "conv"), coreml.OpLinearQuantizerConfig(mode="linear", dtype="int8", weight_threshold=0)
        ),
        op_name_configs=dict.fromkeys(kept_products, None),
    )
    stats = {name: {"rmin": found.low, "rmax": found.high} for name, found in ranges.items()}
    passes = linear_weights(ct, per_channel, kept)
    name = f"{NAMESPACE}::insert_prefix_quantize_dequantize_pair"
    passes.insert_pass(0, name)
    passes.set_options(name, {"config": config, "activation_stats": stats})
    return passes


class Palette(NamedTuple):
    """What one tensor gets: bits, and how many output channels share a palette; None for all of them."""

    bits: int
    group_channels: int | None


def palettes(ct: ModuleType, chosen: Mapping[str, Palette], sparsity: float | None) -> Any:
    """Palettes for these constants.

    Args:
        ct: coremltools.
        chosen: by name of the constant.
        sparsity: share of the smallest weights of each that become 0 first, stored as a mask.
    """
    from coremltools.optimize import coreml

    def config(palette: Palette) -> Any:
        if palette.group_channels is None:
            lut = partial(make_palette, bits=palette.bits)
            return coreml.OpPalettizerConfig(mode="custom", lut_function=lut, weight_threshold=0)
        return coreml.OpPalettizerConfig(
            mode="kmeans",
            nbits=palette.bits,
            granularity="per_grouped_channel",
            group_size=palette.group_channels,
            weight_threshold=0,
        )

    # what is pruned first goes by another name
    suffix = "_sparsified" if sparsity is not None else ""
    configs = coreml.OptimizationConfig(op_name_configs={name + suffix: config(one) for name, one in chosen.items()})
    options: dict[str, dict[str, Any]] = {"palettize_weights": {"config": configs}}
    if sparsity is not None:
        pruned = coreml.OpMagnitudePrunerConfig(target_sparsity=sparsity, weight_threshold=0)
        sparse = coreml.OptimizationConfig(op_name_configs=dict.fromkeys(chosen, pruned))
        options["palettize_weights"]["joint_compression"] = True
        options = {"prune_weights": {"config": sparse}, **options}
    return _pipeline(ct, options)


def _pipeline(ct: ModuleType, options: Mapping[str, Mapping[str, Any]]) -> Any:
    names = [f"{NAMESPACE}::{name}" for name in options]
    passes = ct.PassPipeline(names, pipeline_name="decant")
    for name, chosen in zip(names, options.values(), strict=True):
        passes.set_options(name, dict(chosen))
    return passes
