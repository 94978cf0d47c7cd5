"""The table of what saturation costs is made from its records."""

import json

from benchmarks import kernels


def test_the_page_holds_what_the_records_say():
    """Made again, it is the same."""
    text = kernels.PAGE.read_text("utf-8")
    assert kernels.with_tables(text) == text


def test_the_table_says_both_kernel_paths():
    """From a record made by hand."""
    one = {
        "accuracy_here": 0.92,
        "accuracy_without_vnni": 0.75,
        "same_label": 0.8,
        "largest_difference": 0.31,
        "size_bytes": 17_600_000,
        "unsafe_pairs": 1234,
        "times_as_fast_as_plain": {"value": 0.5, "low": 0.4, "high": 0.6},
    }
    record = {"rows": 1988, "cpu": "X", "isa": ["avx2"], "onnxruntime": "1", "emulator": "qemu", "variants": {"a": one}}
    row = kernels.render("set", json.loads(json.dumps(record))).splitlines()[-1]
    assert row == "| a | 92.00% | 75.00% | 80.00% | 31.0% of the spread | 1,234 | 17.60 | 0.50 [0.40, 0.60] |"
