"""Cells between tabs."""

from functools import partial

from pipeline.data.readers import csv

read = partial(csv.read, delimiter="\t")
