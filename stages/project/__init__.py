"""What `decant new` writes: a project of one's own, with nothing of Decant's source in it.

Its map and its settings are made from those of this repository (`decant schema` does it, a test compares), so that they
are never another version's.
"""

import re

DVC, PARAMS = "dvc.yaml", "params.yaml"


def dvc_yaml(ours: str) -> str:
    """The map of a project that has Decant installed.

    Stages are started by name: a `python -m stages.convert` would find the folders `stages` and `eval` that a user may
    have. Plots take DVC's own templates, since ours are files of this repository.
    """
    text = re.sub(r"cmd: python -m stages\.(\w+)", r"cmd: decant stage \1", ours)
    text = text.replace("stages/reporting/dvc_points.json", "scatter").replace(
        "stages/reporting/dvc_lines.json", "linear"
    )
    head = "# The map of the pipeline, as Decant has it: how data flows, and which settings each stage reads.\n"
    return head + text[text.index("stages:\n") :]


def params_yaml(ours: str) -> str:
    """The settings to begin with: data in files, and no text of them in a report."""
    head = (
        "# The only source of settings: `dvc exp run -S distill.training.epochs=3` changes any for one experiment.\n"
        "# `decant check` lists every problem in this file at once. Write small numbers as 3.0e-4.\n"
    )
    text = head + ours[ours.index("seed:") :]
    for before, after in (
        (r"source: bundled.*", "source: files # files | hub"),
        (r"root: null", "root: data # train.csv and test.csv; dev is cut off train"),
        (r"package: org.example.assistant", "package: org.example.classifier"),
        (r"package: phone-assistant-intents", "package: my-classifier"),
        (r"name: phone-assistant-intents", "name: my-classifier"),
        (r"license: Apache-2.0", "license: other # of the model, as an SPDX id"),
        (r"data_license: CC0-1.0", "data_license: other"),
        (r"use: Telling.*", 'use: ""'),
        (r"limits: Written.*", 'limits: ""'),
        (r"publish_texts: true.*", "publish_texts: false # true: reports show texts of the data that flipped"),
    ):
        text, count = re.subn(before, after, text, count=1)
        assert count == 1, before
    return text
