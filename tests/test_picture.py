"""The README's picture is what its record draws, and the record is what the report says."""

import json
from pathlib import Path

import pytest

from benchmarks import picture
from pipeline.base.errors import IntegrityError
from pipeline.base.records import seal
from pipeline.base.workspace import Workspace

ROOT = Path(__file__).resolve().parents[1]
SIZES = """series,size_mb,score,low,high
majority floor,1e-06,0.05,0.04,0.06
teacher,90.25,0.9,0.8,0.95
student,69.6,0.89,0.79,0.94
cpu,17.5,0.88,0.78,0.93
ios,34.8,0.87,0.77,0.92
"""
TIMES = "series,p50_ms,score,low,high\nteacher,4.5,0.9,0.8,0.95\ncpu,0.65,0.88,0.78,0.93\n"


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A report made by hand, in which Core ML has no time; the record goes beside it."""
    monkeypatch.chdir(tmp_path)
    found = Workspace(tmp_path)
    (found.report / "plots").mkdir(parents=True)
    (found.report / "plots" / "score_by_size.csv").write_text(SIZES, "utf-8")
    (found.report / "plots" / "score_by_latency.csv").write_text(TIMES, "utf-8")
    seal(found.report, "report")
    found.machine.write_text(json.dumps({"cpu": "Some CPU", "isa": ["avx512_vnni"]}), "utf-8")
    return found


def texts(record):
    """What the picture says; letters are drawn as paths, and matplotlib writes each text beside them."""
    return {line.strip()[5:-4] for line in picture.plot(record).splitlines() if line.strip().startswith("<!-- ")}


def test_the_picture_of_the_readme_shows_what_its_record_says():
    record = json.loads((ROOT / picture.RECORD).read_text("utf-8"))
    assert (ROOT / picture.PICTURE).read_text("utf-8") == picture.plot(record)
    assert f"]({picture.PICTURE.as_posix()})" in (ROOT / "README.md").read_text("utf-8")


def test_a_changed_figure_is_noticed():
    """Planted fault: one digit of the record."""
    record = json.loads((ROOT / picture.RECORD).read_text("utf-8"))
    record["rows"][0]["score"] += 0.01
    assert (ROOT / picture.PICTURE).read_text("utf-8") != picture.plot(record)


def test_the_record_holds_what_the_report_says(workspace):
    """Models by their names of the picture, in its order; those that it does not show are left out."""
    picture.measure(workspace.root)
    record = json.loads(picture.RECORD.read_text("utf-8"))
    assert [row["name"] for row in record["rows"]] == [picture.NAMES[name] for name in ("teacher", "cpu", "ios")]
    cpu = {"score": 0.88, "low": 0.78, "high": 0.93, "size_mb": 17.5, "p50_ms": 0.65}
    assert record["rows"][1] == {"name": picture.NAMES["cpu"], **cpu}
    assert str(workspace.root) not in picture.RECORD.read_text("utf-8")


def test_a_damaged_report_is_refused(workspace):
    (workspace.report / "plots" / "score_by_size.csv").write_text(SIZES.replace("0.88", "0.98"), "utf-8")
    with pytest.raises(IntegrityError):
        picture.measure(workspace.root)


def test_a_model_without_a_time_is_in_the_picture(workspace):
    """With its accuracy and size, and words in place of the time."""
    picture.measure(workspace.root)
    record = json.loads(picture.RECORD.read_text("utf-8"))
    assert {picture.NAMES["ios"], "87.0", "34.8", "not measured here"} <= texts(record)
    assert "times on Some CPU with VNNI" in texts(record)
    for row in record["rows"]:
        row["p50_ms"] = None
    assert picture.NAMES["teacher"] in texts(record)


def test_the_picture_fits_a_readme():
    """Its own background for dark pages, at most 900 by 420, and no date."""
    text = (ROOT / picture.PICTURE).read_text("utf-8")
    width, height = (float(size) for size in text.partition('viewBox="0 0 ')[2].partition('"')[0].split())
    assert width <= 900 and height <= 420
    assert f"fill: {picture.PAPER}" in text
    assert "dc:date" not in text
