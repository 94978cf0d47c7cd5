"""Rows of a data set: read, split, checked for leaks, tokenized, and put into batches."""
