"""Bundles of a tiny project: what is in them, that their own code works, what is refused, the same bytes twice."""

import dataclasses
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from bundle_project import RANDOM_TEXTS, copy_of, shared
from fakes import ROOT
from tiny_project import CLASSES
from toy_models import toy_batch, toy_model

from eval.clients import android as android_client
from eval.clients import web as web_client
from export.bundles import python as python_bundle
from export.bundles import web as web_bundle
from pipeline.base import plugins, records
from pipeline.base.errors import ExportError, SettingsError
from pipeline.base.files import sha256_of
from pipeline.base.records import Tokenizers, Trial, open_folder
from pipeline.formats.bundles import MIN_GOLDEN, read_manifest, unpack
from pipeline.models.checkpoints import save_classifier
from pipeline.settings.params import load
from stages import package
from stages.gating import bases
from stages.packaging import golden, parts, trial
from stages.targets import artefact_of

WEB, JAVA = web_bundle.why_unusable() or web_client.why_unusable(), android_client.why_unusable()
PLATFORMS = ["android", "ios", "python", *([] if WEB else ["web"])]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return shared(tmp_path_factory)


@pytest.fixture(scope="module")
def folders(built, tmp_path_factory):
    """Each bundle, read back from its zip."""
    out = tmp_path_factory.mktemp("unpacked")
    for platform in PLATFORMS:
        unpack(built[1].bundles / f"{platform}.zip", out / platform)
    return out


def home_of(folders, platform):
    return folders / platform / read_manifest(folders / platform).home


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_bundle_has_what_its_manifest_lists_and_names_what_it_was_made_from(built, folders, platform):
    manifest = read_manifest(folders / platform)
    _, workspace = built
    assert {f"{file}" for file in manifest.files} >= {"README.md", "NOTICES.md", "sbom.cdx.json", "licenses/Decant.txt"}
    assert (folders / platform / manifest.model).exists()
    assert manifest.sources["student"] == records.digest_of(workspace.student)
    assert (manifest.name, manifest.version, manifest.verdict) == ("tiny", "0.0.0", "pass")


@pytest.mark.parametrize("platform", PLATFORMS)
def test_golden_vectors_have_hard_texts_all_lengths_and_every_class(folders, platform):
    """At least fifty, one longer than the model, and the rule for level outputs."""
    found = json.loads((home_of(folders, platform) / "golden.json").read_text("utf-8"))
    rows = found["rows"]
    assert len(rows) >= MIN_GOLDEN and {row["label"] for row in rows} == set(CLASSES)
    assert {2, 16} <= {len(row["ids"]) for row in rows}
    assert any(not row["text"].isascii() for row in rows)
    assert found["ties"][1] == {"outputs": [0.0, 2.0, 2.0], "answer": 1}
    assert all(row["answer"] == max(range(3), key=lambda i: row["outputs"][i]) for row in rows)


def test_each_bundles_own_code_was_tried_on_the_whole_test_split(built):
    """Or the record says why not; the answers are those of the target."""
    for platform in PLATFORMS:
        trial = records.read(Trial, built[1].bundles / f"{platform}.json")
        if platform == "ios":
            assert trial.not_tried == "its code runs on another system"
        elif platform == "android" and JAVA:
            assert trial.not_tried == JAVA
        else:
            assert (trial.examples, trial.different, trial.is_recorded) == (48, 0, platform == "android")
            assert trial.primary.value > 0.9


def test_the_python_bundle_answers_and_tests_itself_alone(folders):
    """As its README says, from its own folder, without Decant."""
    folder = folders / "python"
    # -I as a user who has nothing else on the path, which also leaves out the folder of the script
    script = (
        "import sys; sys.path.insert(0, '.'); sys.argv[1:] = ['play the song']; import classifier; classifier.main()"
    )
    command = [sys.executable, "-I", "-B", "-c", script]
    said = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    assert re.fullmatch(r"music  \d+\.\d%\n", said.stdout)
    packages = [line.partition("==")[0] for line in (folder / "requirements.txt").read_text().split()]
    assert packages == ["numpy", "onnxruntime", "tokenizers"]


def test_the_card_has_the_hubs_header_the_scores_and_the_verdict(folders):
    """What a user writes cannot break its tables or become HTML."""
    _, header, body = (folders / "python" / "README.md").read_text("utf-8").split("---\n", 2)
    values = yaml.safe_load(header)
    assert values["license"] == "apache-2.0" and values["pipeline_tag"] == "text-classification"
    assert values["model-index"][0]["results"][0]["metrics"][0]["type"] == "accuracy"
    assert "Its budgets: **pass**" in body and "Tests &lt;of> this\\|project" in body
    assert "| all of test | 48 |" in body


def test_the_bill_follows_its_schema_and_a_broken_one_does_not(folders):
    """The schema is that of CycloneDX 1.7; the validator that passes ours finds what was planted."""
    from stages.releasing.checks import _schema_problems

    text = (folders / "python" / "sbom.cdx.json").read_text("utf-8")
    bill = json.loads(text)
    assert list(_schema_problems(text)) == []
    assert [one["name"] for one in bill["components"]] == ["tiny", "numpy", "onnxruntime", "tokenizers"]
    metrics = bill["components"][0]["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert metrics[0]["type"] == "accuracy" and 0 <= float(metrics[0]["confidenceInterval"]["lowerBound"]) <= 1
    bill["components"][0]["modelCard"]["modelParameters"]["approach"]["type"] = "magic"
    assert list(_schema_problems(json.dumps(bill)))


def test_the_licence_that_ships_is_decants_own():
    """A copy, since an installed Decant has no folder around it."""
    assert parts.LICENSE.read_bytes() == (ROOT / "LICENSE").read_bytes()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("apache-2.0", {"license": {"id": "Apache-2.0"}}),
        ("MIT OR apache-2.0", {"expression": "MIT OR Apache-2.0"}),
        ("proprietary", {"license": {"name": "proprietary"}}),
        ("other", {"license": {"name": "other"}}),
        ("LicenseRef-Ours", {"license": {"name": "LicenseRef-Ours"}}),
    ],
)
def test_licences_are_written_as_the_schema_wants_them(name, expected):
    assert parts._license(name) == expected


@pytest.mark.parametrize("name", ["onnx", "ort", "openvino", pytest.param("litert", marks=pytest.mark.slow)])
def test_the_python_bundle_opens_each_of_its_formats(tmp_path, name):
    """The file that ships for a format gives what the model gives in PyTorch."""
    exporter = plugins.load("format", name)
    if (reason := exporter.why_unusable() if hasattr(exporter, "why_unusable") else None) is not None:
        # each format's tools are an extra of their own; the reason names the one that is not installed
        pytest.skip(reason)
    model, batch = toy_model(), toy_batch()
    save_classifier(model, tmp_path / "student")
    (tmp_path / "out").mkdir()
    options = {"lengths": [7, 20]} if name == "litert" else {}
    artefact = exporter.convert(tmp_path / "student", tmp_path / "out", "fp32", exporter.Params(**options), 20, None)
    session, _ = python_bundle.RUNTIMES[name]
    code = (ROOT / "export/bundles" / session).read_text("utf-8")
    scope: dict = {}
    exec(compile(code, session, "exec"), scope)  # as it ships, not as a module of ours
    described = {
        "output": "logits",
        "inputs": [{"name": one.name, "dtype": one.dtype} for one in artefact.inputs],
        "settings": artefact.settings,
    }
    run = scope["open_session"](tmp_path / "out" / artefact.file, described, 1)
    ids = batch["input_ids"][:1, :7]
    expected = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.detach().numpy()[0]
    found = run({"input_ids": ids.numpy(), "attention_mask": np.ones((1, 7), dtype=np.int64)})
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_rows_of_two_texts_are_refused_where_a_port_would_read_them(built, tmp_path, monkeypatch):
    params, workspace = built
    read = package.read_encoded

    def in_pairs(*arguments, **more):
        examples, split = read(*arguments, **more)
        return dataclasses.replace(examples, texts=[(text, text) for (text,) in examples.texts]), split

    monkeypatch.setattr(package, "read_encoded", in_pairs)
    with pytest.raises(ExportError, match=r"bundles.ios: rows are pairs of texts, which no port of the tokenizer does"):
        package.run(_only(params, "ios"), copy_of(workspace, tmp_path / "copy"))


def test_thresholds_say_how_often_sure_answers_are_right(folders):
    model = json.loads((folders / "python" / "model.json").read_text("utf-8"))
    for one in model["thresholds"]:
        assert 0 <= one["confidence"] <= 1 and 0 < one["answered"] <= 1 and one["right"] in golden.LEVELS
    assert model["labels"] == sorted(CLASSES) and model["lengths"] is None


def test_two_builds_of_the_same_are_the_same_bytes(built, tmp_path, monkeypatch):
    """In another folder, whatever the umask."""
    params, workspace = built
    again = copy_of(workspace, tmp_path / "elsewhere")
    # they were tried when they were built
    monkeypatch.setattr(trial, "hold", lambda _, zip, *__: records.read(Trial, workspace.bundles / f"{zip.stem}.json"))
    before = {platform: sha256_of(again.bundles / f"{platform}.zip") for platform in PLATFORMS}
    old = os.umask(0o077)
    try:
        package.run(params, again)
    finally:
        os.umask(old)
    assert {platform: sha256_of(again.bundles / f"{platform}.zip") for platform in PLATFORMS} == before


def test_texts_of_the_data_stay_out_where_they_are_private(built, tmp_path):
    """And there are fifty golden vectors all the same."""
    params, workspace = built
    copy = copy_of(workspace, tmp_path / "private")
    private = params.model_copy(
        update={
            "report": params.report.model_copy(update={"publish_texts": False}),
            "bundles": {"python": params.bundles["python"]},
        }
    )
    package.run(private, copy)
    text = (copy.bundles / "python" / "golden.json").read_text("utf-8")
    rows = json.loads(text)["rows"]
    words = {word for some in CLASSES.values() for word in some}
    assert len(rows) >= MIN_GOLDEN and not any(set(row["text"].split()) & words for row in rows)


def _only(params, platform):
    return params.model_copy(update={"bundles": {platform: params.bundles[platform]}})


@pytest.mark.parametrize("suffix", ["", ".zip"])
def test_a_bundle_is_a_base_to_compare_with(built, suffix):
    """Its artefact, tokenizer and task are those of the target that it was made of."""
    _, workspace = built
    with bases.bring(str(workspace.bundles / f"ios{suffix}"), workspace.root, ["ios"]) as base:
        card = open_folder(base.folders["ios"], "artefact")
        assert base.version == "tiny 0.0.0 for ios"
        ours = open_folder(workspace.exported("ios"), "artefact")
        assert card.facts["task"] == ours.facts["task"] and artefact_of(card) == artefact_of(ours)
        assert {name: fact for name, fact in ours.files.items() if name in card.files} == card.files
    assert not base.folders["ios"].exists()


# --- what is refused ---------------------------------------------------------------------------------------------


def test_a_tokenizer_that_differs_is_refused_with_the_row(built, tmp_path):
    """Planted in the record that the stage before wrote."""
    params, workspace = built
    copy = copy_of(workspace, tmp_path / "copy")
    found = records.read(Tokenizers, copy.tokenizers)
    wrong = found.found["tokenizers"].model_copy(update={"different": 1, "shown": (("Ünder", (2, 1, 3), (2, 9, 3)),)})
    records.write(found.model_copy(update={"found": {**found.found, "tokenizers": wrong}}), copy.tokenizers)
    with pytest.raises(ExportError, match=r"1 of \d+ texts differ .* 'Ünder': \[2, 1, 3\], expected \[2, 9, 3\]"):
        package.run(_only(params, "python"), copy)
    assert (copy.bundles / "ios.zip").is_file()  # of the run before


ENCODE = "return self._tokenizer"
BROKEN = {
    "level outputs": ("logits.argmax()", "logits.argmin()"),
    "token ids": (ENCODE, f"text = tuple(t + ' x' for t in text)\n        {ENCODE}"),
    "classifier.py failed": ("def classify(", "def broken("),
}


@pytest.mark.parametrize("message", BROKEN)
def test_code_that_answers_otherwise_than_the_target_is_refused(built, tmp_path, monkeypatch, message):
    """Planted in what ships, found when the zip is tried."""
    params, workspace = built
    copy = copy_of(workspace, tmp_path / "copy")
    write = python_bundle.write

    def spoil(folder, contents, options):
        shipped = write(folder, contents, options)
        code = folder / "classifier.py"
        text = code.read_text("utf-8")
        code.write_text(text.replace(*BROKEN[message]), "utf-8")
        assert code.read_text("utf-8") != text
        return shipped

    monkeypatch.setattr(python_bundle, "write", spoil)
    with pytest.raises(ExportError, match=message):
        package.run(_only(params, "python"), copy)


def test_a_model_over_the_platforms_limit_is_refused_with_both_sizes(built, tmp_path, monkeypatch):
    """Row 39 of the faults: before anything is packed."""
    params, workspace = built
    copy = copy_of(workspace, tmp_path / "copy")
    monkeypatch.setattr(python_bundle, "LIMIT_BYTES", 10_000)
    with pytest.raises(ExportError, match=r"the model of cpu has [\d,]+ bytes, python takes at most 10,000"):
        package.run(_only(params, "python"), copy)


def test_a_format_that_the_platform_does_not_take_is_refused(built, tmp_path):
    params, workspace = built
    wrong = params.bundles["web"].model_copy(update={"target": "ios"})
    with pytest.raises(SettingsError, match=r"bundles.web.target is ios, whose format is coreml; web takes onnx"):
        package.run(params.model_copy(update={"bundles": {"web": wrong}}), copy_of(workspace, tmp_path / "copy"))


def test_settings_name_a_target_that_is_there_and_a_platform_that_exists(built, tmp_path):
    """All problems at once, with the nearest name."""
    values = yaml.safe_load(built[1].params.read_text("utf-8"))
    values["bundles"] = {"webb": {"target": "cpu"}, "python": {"target": "cpuu"}}
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(SettingsError) as caught:
        load(path)
    assert "did you mean 'web'?" in str(caught.value) and "did you mean 'cpu'?" in str(caught.value)


def test_the_record_of_tokenizers_has_every_one_that_a_bundle_names(built):
    """With how many texts it was held against, or why it was not."""
    found = records.read(Tokenizers, built[1].tokenizers).found
    assert set(found) == {"javascript", "kotlin", "swift", "tokenizers", "transformers_js"}
    for name, facts in found.items():
        assert facts.title == plugins.load("tokenizer", name).TITLE
        if facts.not_compared is None:
            assert facts.texts > RANDOM_TEXTS
            assert facts.different == 0 or name == "transformers_js"
