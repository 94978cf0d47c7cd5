"""Fitting one model: the loop, its answers, and what the teacher said, kept on disk."""
