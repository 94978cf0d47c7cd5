"""Comparing distillation methods: `decant methods`."""
