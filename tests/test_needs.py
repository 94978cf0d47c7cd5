"""Which layers are read: what the losses name, no more, and nothing less."""

import pytest

from pipeline.families import Shape
from pipeline.training.distiller import loss_params
from pipeline.training.needs import needs_of

TEACHER = Shape(layers=6, hidden=96, heads=4, ffn=0, choices=3)
STUDENT = Shape(layers=2, hidden=48, heads=4, ffn=0, choices=3)


@pytest.mark.parametrize(
    ("losses", "ours", "theirs"),
    [
        ({"logit_kl": {}}, {"logits": set()}, {"logits": set()}),
        ({"cross_entropy": {}}, {"logits": set(), "targets": set()}, {}),
        (
            {"attention_score_mse": {"map": "uniform"}},
            {"attention": {1, 2}},
            {"attention": {3, 6}},
        ),
        (
            {"minilm_v2": {"teacher_layer": 5}},
            {"attention": {2}, "values": {2}},
            {"attention": {5}, "values": {5}},
        ),
        (
            {"hidden_mse": {"map": "last_only", "embeddings": True}, "attention_score_mse": {"map": "first"}},
            {"hidden": {0, 2}, "attention": {1, 2}},
            {"hidden": {0, 6}, "attention": {1, 2}},
        ),
        (
            {"shd": {"map": [[2, 4]]}},
            {"attention": {2}},
            {"attention": {4}, "values": {4}, "output_weights": {4}},
        ),
    ],
    ids=str,
)
def test_needs_are_those_of_the_losses_together(losses, ours, theirs):
    """Layers counted from 1, 0 the embedding output; labels are the student's alone."""
    assert needs_of(loss_params(losses), STUDENT, TEACHER) == (ours, theirs)
