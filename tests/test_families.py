"""What `pipeline/families/_interface.py` reads of a configuration; families that are another's under their own name.

What each family promises (signals, weights, its deployment graph) is tested beside what uses it, for all of toy_models.
"""

import pytest
import torch
from toy_models import FAMILIES, toy_batch
from transformers import CamembertConfig, CamembertForSequenceClassification, RobertaConfig, XLMRobertaConfig

from pipeline.base import plugins
from pipeline.families import (
    HEAD,
    check_answers,
    deployment_graph,
    encoder_of,
    family_of,
    head_of,
    layers_of,
    output_names,
    positions_of,
    shape_of,
    token_types,
)

SIZES = FAMILIES["roberta"][2]


def test_every_family_file_is_found_by_the_type_of_a_configuration():
    """`xlm-roberta` in a configuration is xlm_roberta.py here; a file that no toy stands for has a test below."""
    toys = {family.replace("-", "_") for family in FAMILIES}
    assert set(plugins.names("family")) == toys | {"camembert"}
    for config_class, _, _ in FAMILIES.values():
        assert family_of(config_class()) is plugins.load("family", config_class.model_type.replace("-", "_")).FAMILY


@pytest.mark.parametrize("config_class", [CamembertConfig, XLMRobertaConfig])
def test_names_of_roberta_are_roberta(config_class):
    """pipeline/families/camembert.py and xlm_roberta.py name the one family."""
    assert family_of(config_class()) is family_of(RobertaConfig())


def test_a_camembert_answers_from_its_deployment_graph():
    """Padded rows and lengths of their own, as the model itself does."""
    torch.manual_seed(0)
    model = CamembertForSequenceClassification(CamembertConfig(**SIZES | {"initializer_range": 0.3})).eval()
    graph = deployment_graph(model).eval()
    check_answers(model, graph, 7)  # raises where they differ
    batch = {name: value for name, value in toy_batch().items() if name != "targets"}
    with torch.no_grad():
        torch.testing.assert_close(graph(**batch), model(**batch).logits, rtol=1e-4, atol=1e-4)
    assert len(layers_of(model)) == shape_of(model.config).layers and encoder_of(model) is model.roberta


def test_what_is_read_of_a_configuration():
    """RoBERTa's table has two positions that no token takes; a head of labels has one output."""
    config = CamembertConfig(**SIZES)
    assert positions_of(config) == config.max_position_embeddings - config.pad_token_id - 1
    assert (head_of(config), output_names(config)) == ("sequence", ("logits",))
    setattr(config, HEAD, "span")
    assert output_names(config) == ("start_logits", "end_logits")
    ids = torch.tensor([[5, 7, 2, 8, 2]])
    assert token_types(ids, 2).tolist() == [[0, 0, 0, 1, 1]]
