"""The reference runtime answers as the model itself."""

import pytest
import torch
from fakes import named
from toy_models import toy_batch, toy_model

from eval.runtimes import pytorch
from pipeline.base.errors import ModelError
from pipeline.models.checkpoints import save_classifier


def test_it_answers_as_the_model(tmp_path):
    """Same logits as a forward pass, float32."""
    model, batch = toy_model(), toy_batch()
    save_classifier(model, tmp_path)
    with torch.no_grad():
        expected = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    with pytorch.open_session(tmp_path, None, threads=1) as session:
        found = session.run(named(batch["input_ids"].numpy(), batch["attention_mask"].numpy()))["logits"]
        assert (session.input_names, session.output_names) == (("input_ids", "attention_mask"), ("logits",))
    torch.testing.assert_close(torch.from_numpy(found), expected)


def test_threads_are_put_back(tmp_path):
    """The number of threads belongs to the whole process."""
    save_classifier(toy_model(), tmp_path)
    before = torch.get_num_threads()
    with pytorch.open_session(tmp_path, None, threads=before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_a_truncated_folder_is_refused(tmp_path):
    """With how much is missing."""
    save_classifier(toy_model(), tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ModelError, match="truncated by 10 bytes"):
        pytorch.open_session(tmp_path, None, threads=1)


def test_it_is_usable_and_has_a_version():
    """It is a dependency of training."""
    assert pytorch.why_unusable() is None
    assert pytorch.version() == torch.__version__.partition("+")[0]
