"""The plan of 8 bits: which modules, which ranges, and what is safe on every processor."""
