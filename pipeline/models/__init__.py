"""Encoders and their tokenizers: loaded, saved, checked, and students built from teachers."""
