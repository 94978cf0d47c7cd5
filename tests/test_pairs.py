"""Pairs of texts: an input that any task may have, and no format has a third input for."""

import numpy as np
import pytest
import torch
from test_stages_end_to_end import TARGETS, run
from tiny_project import CLASSES, write_project, write_settings
from toy_models import toy_model

from pipeline.base import records
from pipeline.base.records import Score
from pipeline.data.examples import read_prepared
from pipeline.families import check_answers, deployment_graph, token_types
from pipeline.models.checkpoints import load_classifier, save_classifier
from pipeline.models.vocabulary import load_tokenizer
from stages import convert, distill, evaluate, floors, machine, prepare, quantize, teach
from stages.commands.predict import predict


def write_pairs(folder):
    """Rows that only both texts together tell: whether the second repeats a word of the first."""
    rng = np.random.default_rng(3)
    words = sorted({word for some in CLASSES.values() for word in some})
    for split, count in (("train", 240), ("dev", 40), ("test", 60)):
        lines = ["first,second,label"]
        for row in range(count):
            first, second = rng.choice(words, 2, replace=False)
            number = f"{split[0]} {chr(97 + row % 26)} {chr(97 + row // 26)}"
            lines.append(f"{first} {number},{first if row % 2 else second} {number},{'same' if row % 2 else 'other'}")
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n", "utf-8")


def test_pairs_go_from_data_to_an_exported_file_that_answers(tmp_path):
    """The model and the file find out by themselves which text a token belongs to; nothing but ids goes in."""
    _, workspace = write_project(tmp_path)
    write_pairs(workspace.root / "inputs")
    columns = {"text": "first", "pair": "second"}
    params = write_settings(
        workspace,
        data__files={"root": "inputs", "dev": "dev.csv", "columns": columns},
        student={"layers": 1, "vocabulary": "trimmed"},
    )
    run(params, workspace, machine, prepare, floors, teach, distill, quantize, convert, evaluate)
    student = load_classifier(workspace.student)
    tokenizer = load_tokenizer(workspace.student)
    assert student.config.decant_separator == tokenizer.sep_token_id
    pairs = list(read_prepared(workspace.data, "test").texts)
    encoded = tokenizer(*map(list, zip(*pairs, strict=True)), return_tensors="pt", padding=True)
    told = encoded["token_type_ids"].bool() & encoded["attention_mask"].bool()
    found = token_types(encoded["input_ids"], tokenizer.sep_token_id).bool() & encoded["attention_mask"].bool()
    assert torch.equal(found, told)
    for target in TARGETS:
        score = records.read(Score, workspace.scored(target))
        assert score.agreement.value > 0.9
        best = [ranked[0][0] for ranked in predict(workspace, target, pairs)]
        assert best == [("other", "same")[answer] for answer in score.answers]


@pytest.mark.parametrize("family", ["bert", "albert"])
def test_the_second_text_matters_to_the_exported_graph(tmp_path, family):
    """Planted: without token types the two texts of a pair could change places unseen."""
    (tmp_path / "model").mkdir()
    save_classifier(toy_model(family, decant_separator=3), tmp_path / "model")
    model = load_classifier(tmp_path / "model")
    graph = deployment_graph(model)
    check_answers(model, graph, 12)
    ids = torch.tensor([[2, 10, 11, 3, 12, 13, 3]])
    with torch.no_grad():
        paired = graph(ids, torch.ones_like(ids))
        torch.testing.assert_close(paired, model(input_ids=ids).logits, atol=1e-5, rtol=1e-4)
        plain = deployment_graph(toy_model(family).eval())(ids, torch.ones_like(ids))
    assert not torch.allclose(paired, plain, atol=1e-3)
