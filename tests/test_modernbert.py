"""What is ModernBERT's alone: pairs that turn, a first layer without a norm, texts pooled by their mean."""

import pytest
import torch
from toy_models import toy_batch, toy_model

from export.channels_first import channels_first_graph
from pipeline.base.errors import ExportError, ModelError
from pipeline.families import check_answers, deployment_graph, family_of, layers_of
from pipeline.models.checkpoints import load_classifier, save_classifier
from pipeline.models.students import _pairs_kept, build_student
from pipeline.settings.student import StudentSettings
from pipeline.signals.reader import SignalReader, attention_scores


def student_of(teacher, **changes):
    settings = StudentSettings.model_validate({"layers": 3} | changes, strict=False)
    batch = {name: tensor for name, tensor in toy_batch().items() if name != "targets"}
    return build_student(teacher, settings, seed=0, probe=[batch]).eval()


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("longest", [3, 20, None])
def test_the_graph_answers_as_the_model(pooling, longest):
    """Padded, in both ways of pooling; a text of three tokens is within the window of its local layer."""
    model = toy_model("modernbert", classifier_pooling=pooling)
    graph = deployment_graph(model, longest=longest)
    assert hasattr(graph, "window") == (longest != 3)
    check_answers(model, graph, min(longest or 20, 20))


def test_scores_know_the_window_of_a_local_layer():
    """Planted: the middle layer alone is local, and a token sees two on either side."""
    model = toy_model("modernbert")
    with SignalReader(model, ["attention"]) as reader:
        signals = reader.read({name: toy_batch()[name] for name in ("input_ids", "attention_mask")})
    places = torch.arange(7)
    far = (places[:, None] - places[None, :]).abs() > 2
    for layer in (1, 2, 3):
        lost = attention_scores(signals, layer)[0].softmax(-1)[:, far] == 0
        assert lost.all() if layer == 2 else not lost.any()


def test_the_scale_that_the_first_layer_lacks_is_in_its_weights():
    """Planted: a norm of the teacher's second layer that triples one unit."""
    teacher = toy_model("modernbert")
    second = layers_of(teacher)[1]
    with torch.no_grad():
        second.attn_norm.weight[5] = 3.0
    student = student_of(teacher, layers=2, init={"from": "teacher", "layers": [2, 3]})
    mine = layers_of(student)[0].attn.Wqkv.weight / second.attn.Wqkv.weight
    expected = torch.ones(32)
    expected[5] = 3.0
    torch.testing.assert_close(mine, expected.expand_as(mine))


def test_narrower_heads_keep_the_pairs_that_turn_as_fast():
    """Heads of 4 units of 8: of the teacher's four pairs the first and third, which turn as the student's two do."""
    teacher = toy_model("modernbert")
    student = student_of(teacher, heads=4, hidden=16)
    kept, speeds = (layers_of(model)[0].attn.rotary_emb.inv_freq for model in (student, teacher))
    torch.testing.assert_close(kept, speeds[::2])
    assert _pairs_kept(8, 4).tolist() == [0, 2, 4, 6]  # pair i is units i and i + 4


@pytest.mark.parametrize("sizes", [{"hidden": 24, "heads": 4}, {"hidden": 24, "heads": 2}, {"heads": 2}])
def test_heads_that_turn_at_other_speeds_are_refused(sizes):
    """6, 12 or 16 units have speeds that none of the teacher's 8 has."""
    with pytest.raises(ModelError, match=r"heads are \d+ wide, the teacher's 8, .* choose hidden and heads"):
        student_of(toy_model("modernbert"), **sizes)
    student_of(toy_model("modernbert"), init={"from": "random", "layers": "uniform"}, **sizes)


def test_channels_first_is_refused():
    """Its layout is written for layers that normalise behind each sum."""
    with pytest.raises(ExportError, match="'modernbert' cannot have: its layers normalise before attention"):
        channels_first_graph(toy_model("modernbert"))


def test_scaled_positions_are_refused():
    """Signals and graph would turn pairs otherwise than the model."""
    config = toy_model("modernbert").config
    config.rope_scaling = {"rope_type": "linear", "factor": 2.0}
    with pytest.raises(ModelError, match="of type 'modernbert', but its rotary positions are scaled"):
        family_of(config)


def test_a_loaded_model_calls_its_layers_one_by_one(tmp_path):
    """Neither flash attention, which takes the padding out, nor layers that are compiled."""
    save_classifier(toy_model("modernbert"), tmp_path)
    config = load_classifier(tmp_path).config
    assert (config._attn_implementation, config.reference_compile) == ("sdpa", False)
