"""Shapes are checked at run time in tests only, so training pays nothing: here every annotation becomes a check."""

from jaxtyping import install_import_hook

# before any test imports them; modules imported earlier would stay unchecked
install_import_hook(
    ["pipeline.signals", "pipeline.divergences", "pipeline.layer_maps", "pipeline.losses"], "beartype.beartype"
)
