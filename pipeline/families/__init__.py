"""One model family a file, named as `model_type` in a model's configuration; docs/families.md says how to add one.

A family promises signals, a student's weights and a deployment graph. Nothing outside this folder knows a model type or
the name of a module.
"""

from pipeline.families._deployment import DeploymentGraph, additive_mask, attend, check_answers, deployment_graph
from pipeline.families._interface import (
    CHOICES,
    DISTILLATION_TOKEN,
    HEAD,
    SEPARATOR,
    Family,
    Linear,
    Part,
    Shape,
    encoder_of,
    family_of,
    gives_one_label,
    head_of,
    layers_of,
    output_names,
    positions_of,
    shape_of,
    token_types,
)

__all__ = [
    "CHOICES",
    "DISTILLATION_TOKEN",
    "HEAD",
    "SEPARATOR",
    "DeploymentGraph",
    "Family",
    "Linear",
    "Part",
    "Shape",
    "additive_mask",
    "attend",
    "check_answers",
    "deployment_graph",
    "encoder_of",
    "family_of",
    "gives_one_label",
    "head_of",
    "layers_of",
    "output_names",
    "positions_of",
    "shape_of",
    "token_types",
]
