"""Shapes are checked at run time in tests only, so training pays nothing: here every annotation becomes a check."""

from jaxtyping import install_import_hook

# before any test imports them; modules imported earlier would stay unchecked
install_import_hook(
    [
        "pipeline.attention_analysis",
        "pipeline.cka",
        "pipeline.class_divergences",
        "pipeline.divergences",
        "pipeline.hidden_states",
        "pipeline.layer_maps",
        "pipeline.losses",
        "pipeline.signals",
        "pipeline.teacher_signals",
    ],
    "beartype.beartype",
)
