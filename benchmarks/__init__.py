"""Figures that this project claims for itself, each a command that anyone can run."""

import pipeline  # noqa: F401  before transformers, so that what that imports keeps quiet
