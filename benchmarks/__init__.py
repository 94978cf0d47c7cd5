"""Figures that this project claims for itself, each a command that anyone can run."""
