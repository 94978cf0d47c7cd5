"""The layer map that CKA chooses finds copied layers again."""

import pytest
import torch
from toy_models import TASK, toy_model

from pipeline.base.errors import SettingsError
from pipeline.data.prepared import EncodedSplit
from pipeline.distillation.chosen_maps import chosen_maps
from pipeline.settings.training import TrainingSettings
from pipeline.training.distiller import Distiller
from pipeline.training.judges import OnDev
from pipeline.training.loop import fit


def make_split(rows=60):
    """Random texts of one length, enough tokens for a fair comparison of 32 features."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, 60, (rows, 12), generator=generator).tolist()
    return EncodedSplit(tuple(map(str, range(rows))), ids, tuple(i % 3 for i in range(rows)), pad_id=0)


SPLIT = make_split()


def test_a_planted_pair_of_layers_is_found():
    """The student is the teacher's first layer and a second one that is the teacher's third, on what it would see."""
    teacher = toy_model(num_hidden_layers=4)
    student = toy_model(num_hidden_layers=2)
    student.bert.embeddings.load_state_dict(teacher.bert.embeddings.state_dict())
    for ours, theirs in ((0, 0), (1, 1)):
        student.bert.encoder.layer[ours].load_state_dict(teacher.bert.encoder.layer[theirs].state_dict())
    losses = {"hidden_mse": {"map": "cka", "weight": 2.0}, "attention_kl": {"map": "uniform"}, "logit_kl": {}}
    found = chosen_maps(losses, student, teacher, SPLIT)
    assert found["hidden_mse"] == {"map": [[1, 1], [2, 2]], "weight": 2.0}
    assert found["attention_kl"] == {"map": "uniform"}
    assert losses["hidden_mse"]["map"] == "cka"


def test_losses_that_ask_for_nothing_run_nothing():
    """No model is looked at."""
    student, teacher = toy_model(num_hidden_layers=2), toy_model()
    student.forward = teacher.forward = None
    assert chosen_maps({"logit_kl": {}}, student, teacher, SPLIT) == {"logit_kl": {}}


def test_a_map_that_nobody_chose_is_no_uniform_one_in_disguise(tmp_path):
    """Planted fault: a caller who trains without choosing."""
    distiller = Distiller(toy_model(num_hidden_layers=2), toy_model(), {"hidden_mse": {"map": "cka"}})
    with pytest.raises(SettingsError, match="'cka' is a rule; call chosen_maps"):
        fit(distiller, SPLIT, OnDev(SPLIT, TASK), TrainingSettings(), tmp_path, "key", 0, "the student")
