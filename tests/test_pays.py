"""benchmarks/pays.py: what it compares can be trained, and what it says follows from its records."""

import json
import os
import random

import numpy as np
import pytest
import yaml

from benchmarks import pays, pays_shipped
from pipeline.base import plugins
from pipeline.base.errors import DataError, IntegrityError, PipelineError, SettingsError
from pipeline.base.files import output_folder
from pipeline.base.records import seal
from pipeline.data import inputs
from pipeline.settings.params import load

PLAN = pays.read_plan()


def places(tmp_path):
    (tmp_path / "large").mkdir(exist_ok=True)
    (tmp_path / "large" / "config.json").write_text("{}")  # models count by their content
    return pays.Places(tmp_path / "work", tmp_path / "data", tmp_path / "large", tmp_path / "general.txt")


def test_every_student_of_the_plan_has_settings_that_can_be_read(tmp_path):
    """Losses, sizes and steps; within a size and a number of labels all rows take the same steps at the same rate."""
    taken = {}
    for cell in pays.cells_of(PLAN, [0]):
        path = tmp_path / "params.yaml"
        path.write_text(yaml.safe_dump(pays.settings_of(PLAN, cell, places(tmp_path))))
        params = load(path)
        training = params.distill.training
        taken.setdefault((cell.set, cell.labels, cell.student), set()).add((training.steps, training.learning_rate))
        assert (params.data.labels_per_class is None) == pays.has_all(cell.labels)
        assert params.student.vocabulary == "full"
        uses_text = params.data.unlabelled.rest_of_train or params.distill.augment.methods
        text = PLAN["rows"][cell.row].get("text")
        assert bool(uses_text) == bool(text)
        files = [str(tmp_path / "work" / f"{text}.txt")] if isinstance(text, str) else []
        assert list(params.data.unlabelled.files) == files
    assert all(len(found) == 1 for found in taken.values())


def test_the_first_seed_of_everything_comes_first():
    """A night that ends early leaves a whole table of one seed."""
    cells = pays.cells_of(PLAN, range(3), ["sst2"])
    assert [cell.seed for cell in cells] == sorted(cell.seed for cell in cells)
    assert len(set(cells)) == len(cells)
    for labels in ("all", "10"):
        for student in PLAN["students"]:
            rows = {cell.row for cell in cells if (cell.labels, cell.student) == (labels, student)}
            assert rows == set(PLAN["rows"])


def test_what_is_for_some_sets_or_students_is_not_trained_for_others():
    """Labels with more steps, and a row with another set's texts."""
    cells = pays.cells_of(PLAN, [0])
    longer = {(cell.set, cell.student) for cell in cells if cell.labels == "all, longer"}
    assert longer == {("sst2", "3x384")}
    assert {cell.set for cell in cells if isinstance(PLAN["rows"][cell.row].get("text"), str)} == {"sst2"}
    assert pays.said(("sst2", "all, longer", "3x384")) == "sst2, all labels, longer, 3x384"
    assert pays.said(("sst2", "10, longer", "3x384")) == "sst2, 10 labels a class, longer, 3x384"


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"sets": ["sst3"]}, r"sets has no 'sst3'; known: sst2; banking77"),
        ({"labels": ["11"]}, r"labels has no '11'; known: all; all, longer; 10"),
        ({"rows": ["logits"]}, r"rows has no 'logits'; known: no teacher;"),
        ({"sets": ["banking77"], "labels": ["all, longer"]}, "compares no such student"),
    ],
)
def test_what_the_plan_does_not_have_is_refused(wanted, message):
    """With the names that it has; and where it has the names but not together."""
    with pytest.raises(SettingsError, match=message):
        pays.cells_of(PLAN, [0], **wanted)


SOME_ROWS = [
    "no teacher",
    "logits, large teacher",
    "attention of the small teacher, logits of the large",
    "no teacher, own answers to more text",
    "all together",
]


def digest_of(cell, where, plan=PLAN):
    return pays._digest(pays.settings_of(plan, cell, where), where)


@pytest.mark.parametrize("row", SOME_ROWS)
def test_records_know_no_folder_of_the_machine(tmp_path, row):
    """The same settings have the same digest elsewhere, where teachers were made or not; another rate has another."""
    cell = pays.Cell("sst2", "all", "3x384", row, 0)
    digests = []
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        where = places(tmp_path / name)
        if name == "there":
            settings = pays.settings_of(PLAN, cell, where)
            made = pays.Path(settings["teacher"]["model"])
            if made.is_relative_to(where.work):
                made.mkdir(parents=True)
                (made / "config.json").write_text('{"trained": "there"}')
        digests.append(digest_of(cell, where))
    assert digests[0] == digests[1]
    changed = json.loads(json.dumps(PLAN))
    changed["students"]["3x384"]["learning_rate"] = 1.0e-5
    assert digest_of(cell, where, changed) != digests[0]


@pytest.mark.parametrize("row", SOME_ROWS)
@pytest.mark.parametrize("file", ["data/sst2/train.tsv", "large/config.json"])
def test_other_data_or_another_model_is_made_elsewhere(tmp_path, row, file):
    """Else what was made of the old would be recorded as of the new. A row without the large teacher does not care."""
    cell, where = pays.Cell("sst2", "all", "3x384", row, 0), places(tmp_path)
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    found = []
    for content in ("old", "new"):
        (tmp_path / file).write_text(content)
        os.utime(tmp_path / file, ns=(0, len(found)))
        inputs.model_digest.cache_clear()
        settings = pays.settings_of(PLAN, cell, where)
        student = pays.folder_of(settings, cell, where)
        found.append((digest_of(cell, where), student, pays._teaching_place(settings, cell, where).root))
    is_asked = file.startswith("data") or PLAN["rows"][row].get("teacher") in ("large", "both")
    assert all((old != new) == is_asked for old, new in zip(*found, strict=True))


def test_a_set_that_is_not_there_fails_by_itself(tmp_path, monkeypatch):
    """And leaves no empty text behind, which would be taken for its texts ever after."""
    where = places(tmp_path)
    where.data.mkdir()
    row = "attention of the small teacher, logits of the large, comments too"
    with pytest.raises(PipelineError, match=r"not trained:\nsst2, all labels, 3x384, attention of .*no such file"):
        pays.run(where.data, where.work, where.large, ["sst2"], ["3x384"], [row], ["all"], [0])
    monkeypatch.setattr(pays, "read_plan", lambda: {"sets": {}})
    with pytest.raises(DataError, match="no training text there of goemotions"):
        pays.texts(where.data, tmp_path / "goemotions.txt", ["goemotions"])
    assert not (tmp_path / "goemotions.txt").exists()


def entry(row, seed, right, dev=0.9):
    """A record as `run` writes it."""
    bits = np.asarray(right, bool)
    return {
        "set": "sst2",
        "labels": "all",
        "student": "3x384",
        "row": row,
        "seed": seed,
        "dev_score": dev,
        "test_score": float(bits.mean()),
        "steps": 10,
        "parameters": 1_000_000,
        "right": np.packbits(bits).tobytes().hex(),
        "rows": len(bits),
        "teacher": {"source": "/somewhere/teacher", "parameters": 109_000_000, "dev_score": 0.9, "test_score": 0.93},
        "minutes": {"training": 2.0},
        "resumed": False,
        "machine": {"cpu": "a CPU", "isa": ["avx2"], "cores": 2},
    }


def written(tmp_path, entries):
    (tmp_path / "sst2.json").write_text(json.dumps({str(number): one for number, one in enumerate(entries)}))
    return pays.groups_of(tmp_path)


@pytest.mark.parametrize(("gain", "pays_off"), [(30, True), (0, False)])
def test_the_answer_follows_from_the_records(tmp_path, gain, pays_off):
    """Planted: so many of 1,000 rows more are right; without a gain nothing is said to pay."""
    draw = random.Random(0)
    entries = []
    for seed in range(3):
        plain = [draw.random() < 0.9 for _ in range(970)] + [False] * 30
        better = plain[:970] + [gain > 0] * 30
        entries += [entry("no teacher", seed, plain), entry("logits, large teacher", seed, better)]
    groups = written(tmp_path, entries)
    answer = pays._answer(groups)
    assert ("It pays on sst2, all labels, 3x384 (logits, large teacher, +3.0 points)." in answer) == pays_off
    assert ("pays nowhere for sure" in answer) != pays_off
    table = pays._table_of(*next(iter(groups.items())))
    assert "teacher 109 M, 93.00 %" in table and "/somewhere" not in table
    assert f"{gain / 10:+.2f} [" in table


def test_losses_are_held_against_logits_where_all_else_is_alike():
    """The same teacher, start and text; logits by themselves have nothing to be held against."""
    found = {row: pays.logits_alone(row) for row in PLAN["rows"]}
    assert found["attention and logits, small teacher"] == "logits, small teacher"
    assert found["attention and logits, large teacher"] == "logits, large teacher"
    assert found["attention and logits, more text"] == "logits, more text"
    assert found["attention of the small teacher, logits of the large"] == "logits, large teacher"
    assert PLAN["teachers"]["both"]["teacher.second"]["share"] == 1.0  # so the small one's logits are not in it
    assert found["all together"] == "logits, more text, general start"
    assert found["logits, large teacher"] is None


def test_one_seed_is_said_to_decide_nothing(tmp_path):
    """However large the gain."""
    groups = written(tmp_path, [entry("no teacher", 0, [False] * 50), entry("logits, large teacher", 0, [True] * 50)])
    answer = pays._answer(groups)
    assert answer.startswith("It pays nowhere for sure yet.\n") and "| 1 |" in answer and "| not decided |" in answer


def test_a_row_of_one_seed_does_not_hide_one_of_three(tmp_path):
    """However good it is on dev: what is sure is said first."""
    right = [True] * 900 + [False] * 100
    entries = [entry("logits, small teacher", 0, right, dev=0.99)]
    for seed in range(3):
        entries += [entry("no teacher", seed, [False] * 100 + right[100:]), entry("logits, large teacher", seed, right)]
    assert pays._answer(written(tmp_path, entries)).startswith("It pays on sst2, all labels, 3x384 (logits, large")


def test_the_small_teacher_itself_is_that_of_all_seeds(tmp_path):
    """Few labels make one for each seed; the large teacher's score is none of it."""
    entries = [{**entry("no teacher", seed, [True, False]), "labels": "10"} for seed in (0, 1)]
    entries[0]["teacher"] = {**entries[0]["teacher"], "test_score": 0.5}
    entries.append({**entry("logits, large teacher", 0, [True, True]), "labels": "10"})
    entries[2]["teacher"] = {**entries[2]["teacher"], "test_score": 0.99}
    groups = written(tmp_path, entries)
    assert "teacher 109 M, 71.50 % (mean of 2); teacher 109 M, 99.00 %." in pays._table_of(*next(iter(groups.items())))
    assert "| 71.50 % |" in pays._answer(groups)


def test_with_all_labels_seeds_of_one_kind_of_cpu_have_one_teacher(tmp_path):
    """It counts once, however many students it taught; another kind of CPU made another."""
    entries = [entry("no teacher", seed, [True]) for seed in range(3)]
    for one, (kind, score) in zip(entries, [("A", 0.80), ("B", 0.90), ("B", 0.90)], strict=True):
        one["machine"], one["teacher"] = {"cpu": kind, "isa": []}, {**one["teacher"], "test_score": score}
    assert "teacher 109 M, 85.00 % (mean of 2)." in pays._table_of(*next(iter(written(tmp_path, entries).items())))


def test_of_many_tables_a_gain_must_be_surer(tmp_path):
    """Planted: a gain that is off zero by itself, and beside five tables without any is not; a large one still is."""
    small = [*rows_of_seeds((0, 50, 50.9), (1, 60, 62.4), (2, 70, 71.6))]
    large = [{**one, "student": "2x192"} for one in rows_of_seeds((0, 50, 60), (1, 60, 70.2), (2, 70, 80.1))]
    nothing = [*rows_of_seeds((0, 50, 50), (1, 60, 60.1), (2, 70, 69.9))]
    empty = [
        {**one, "labels": labels, "student": student}
        for labels in ("10", "10, longer")
        for student in ("3x384", "2x192")
        for one in nothing
    ]
    assert pays._answer(written(tmp_path, small)).startswith("It pays on sst2, all labels, 3x384 (logits, large")
    assert pays._answer(written(tmp_path, [*small, *large])).count(" | yes |") == 2
    answer = pays._answer(written(tmp_path, [*small, *large, *empty]))
    assert answer.startswith("It pays on sst2, all labels, 2x192 (logits, large teacher, +10.1 points).")
    assert (answer.count("| by itself |"), answer.count("| not decided |")) == (1, 4)


def rows_of_seeds(*scores):
    """Records of a control and of a row with a teacher: (seed, points of the one, points of the other or None)."""
    for seed, *points in scores:
        for row, score in zip(("no teacher", "logits, large teacher"), points, strict=True):
            if score is not None:
                yield entry(row, seed, [number < 10 * score for number in range(1_000)])


def gain(tmp_path, entries):
    (group,) = written(tmp_path, entries).values()
    return pays._difference(group, "logits, large teacher", "no teacher")


@pytest.mark.parametrize(("second", "third", "is_sure"), [(65, 75, True), (60, 80, False)])
def test_what_a_seed_gives_to_all_rows_is_no_gain_of_one(tmp_path, second, third, is_sure):
    """Planted: seeds that differ by 20 points for both rows alike, and gains within them that do or do not scatter."""
    found = gain(tmp_path, rows_of_seeds((0, 50, 55), (1, 60, second), (2, 70, third)))
    assert found.value == pytest.approx(5)
    assert (found.low > 0) == is_sure


def test_a_seed_that_one_row_has_alone_is_not_compared(tmp_path):
    assert gain(tmp_path, rows_of_seeds((0, 50, 55), (1, None, 65), (2, 70, 75))).value == pytest.approx(5)
    assert gain(tmp_path, rows_of_seeds((0, 50, None), (1, None, 65))) is None


def test_a_row_of_one_seed_scatters_as_the_others(tmp_path):
    """It has as wide an interval as one seed of theirs, not that of test rows alone."""
    others = [*rows_of_seeds((0, 50, 55), (1, 60, 62), (2, 70, 78))]
    alone = {**next(rows_of_seeds((0, 55))), "row": "logits, small teacher"}
    (group,) = written(tmp_path, [*others, alone]).values()
    found = pays._difference(group, "logits, small teacher", "no teacher")
    three = gain(tmp_path, others)
    assert found.value == pytest.approx(5) and found.high - found.low > 1.5 * (three.high - three.low)


def test_rows_with_another_start_scatter_for_themselves(tmp_path):
    """Planted: students that were cut and have learned nothing, anywhere between 20 and 60 points."""
    others = [*rows_of_seeds((0, 50, 55), (1, 60, 65), (2, 70, 75))]
    cut = [*rows_of_seeds((0, 20, None), (1, 60, None), (2, 20, None))]
    general = [{**one, "row": f"{one['row']}, general start"} for one in others]
    wild = [{**one, "row": "logits, small teacher"} for one in cut]
    (group,) = written(tmp_path, [*others, *general, *wild]).values()
    cut_gain, general_gain = (
        pays._difference(group, f"logits, large teacher{start}", f"no teacher{start}")
        for start in ("", ", general start")
    )
    assert general_gain.low > 0 > cut_gain.low


def test_seeds_of_two_kinds_of_cpu_are_told_apart(tmp_path):
    """Planted: the second seed comes from another machine."""
    entries = [entry("no teacher", 0, [True]), {**entry("no teacher", 1, [True]), "machine": {"cpu": "B", "isa": []}}]
    key, group = next(iter(written(tmp_path, entries[:1]).items()))
    assert "Trained on a CPU (avx2)." in pays._table_of(key, group)
    key, group = next(iter(written(tmp_path, entries).items()))
    assert "seed 0 on a CPU (avx2); seed 1 on B (none of" in pays._table_of(key, group)


def test_the_page_is_that_of_its_records():
    """`python -m benchmarks.pays table` was run after the last record."""
    text = pays.PAGE.read_text("utf-8")
    assert pays.with_tables(text, pays.RESULTS) == text


def test_planted_dev_and_test_texts_do_not_reach_the_general_text(tmp_path, capsys):
    """Of whichever set, where another's train has them too; nor do rows that become dev when train is cut."""
    data = tmp_path / "data"
    (data / "sst2").mkdir(parents=True)
    (data / "banking77").mkdir()
    for split, rows in {"train": 60, "dev": 8, "test": 8}.items():
        lines = [f"a {split} film number {i} , really\t{i % 2}" for i in range(rows)]
        (data / "sst2" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    train = [f'"{word}, card number {i}?",{word}' for i in range(40) for word in ("lost", "new")]
    train.append('"A dev film, number 3; REALLY",lost')
    (data / "banking77" / "train.csv").write_text("text,category\n" + "\n".join(train) + "\n")
    test = [f'"{word}, test card {i}?",{word}' for i in range(5) for word in ("lost", "new")]
    (data / "banking77" / "test.csv").write_text("text,category\n" + "\n".join(test) + "\n")
    pays.texts(data, tmp_path / "general.txt")
    found = (tmp_path / "general.txt").read_text().splitlines()
    assert sum("train film" in line for line in found) == 60
    assert not [line for line in found if "test" in line or "dev film" in line.lower()]
    cut = 80 - sum("card number" in line for line in found)
    assert 8 <= cut <= 3 * 9  # a tenth for each of three seeds, some of them twice
    assert "none of the" in capsys.readouterr().out
    pays.texts(data, tmp_path / "films.txt", ["sst2"])
    assert (tmp_path / "films.txt").read_text() == "".join(f"{line}\n" for line in found if "film" in line)


def test_a_general_student_with_other_bytes_is_told_apart(tmp_path):
    """Planted: a second making with another digest; and one that repeats the first."""
    one = {
        "parameters": 6_900_000,
        "texts": {"train": 70_000, "dev": 700},
        "steps": 100,
        "held_out_loss": {"before": 2.0, "after": 1.0},
    }
    made = {"weights": "a" * 64, "minutes": 20.0}
    for second, said in (("a", f"`{'a' * 16}`, each time |"), ("b", f"`{'a' * 16}` and `{'b' * 16}` |")):
        (tmp_path / "general.json").write_text(
            json.dumps({"2x192": {**one, "made": [made, {"weights": second * 64, "minutes": 21.0}]}})
        )
        page = pays.with_tables(pays.PAGE.read_text("utf-8"), tmp_path)
        assert f"| 2.000 → 1.000 | 20.0, 21.0 | {said}" in page


@pytest.mark.parametrize("second", [b"the same", b"another"])
def test_a_general_student_is_compared_with_its_second_making(tmp_path, monkeypatch, second):
    """Planted: other bytes the second time are refused, and recorded."""

    def make(plan, cell, where):
        with output_folder(pays._general(plan, cell, where).general) as partial:
            (partial / "model.safetensors").write_bytes(second if where.work.name == "again" else b"the same")
            facts = dict.fromkeys(("parameters", "texts", "steps", "held_out_loss", "losses", "seed"), 1)
            seal(partial, "general", facts=facts)
        return 2.0

    monkeypatch.setattr(pays, "_make_general", make)
    monkeypatch.setattr(pays, "GENERAL", tmp_path / "general.json")
    (tmp_path / "general.txt").write_text("a text\n")
    if second == b"the same":
        pays.general(tmp_path, again=True)
    else:
        with pytest.raises(IntegrityError, match="2x192: made twice, with other bytes"):
            pays.general(tmp_path, again=True)
    digests = {made["weights"] for made in json.loads((tmp_path / "general.json").read_text())["2x192"]["made"]}
    assert len(digests) == (1 if second == b"the same" else 2)


# --- what ships of it ---------------------------------------------------------------------------------------------


def test_what_ships_is_the_best_on_dev_of_those_with_a_teacher(tmp_path):
    """Neither the best on test, nor a control, however good; of the row's seeds the best on dev."""
    groups = written(
        tmp_path,
        [
            entry("no teacher", 0, [True] * 50, dev=0.99),
            entry("logits, small teacher", 0, [True] * 50, dev=0.80),
            entry("logits, large teacher", 0, [False] * 50, dev=0.90),
            entry("logits, large teacher", 1, [False] * 50, dev=0.92),
            entry("logits, large teacher", 2, [False] * 50, dev=0.92),
        ],
    )
    group = next(iter(groups.values()))
    assert pays.best_row(group) == "logits, large teacher"
    assert pays_shipped.winner_of(group["logits, large teacher"])["seed"] == 1
    assert pays.best_row({"no teacher": [entry("no teacher", 0, [True])]}) is None


def test_what_ships_is_asked_for_by_names_of_the_plan(tmp_path):
    """Another name would export nothing and say nothing."""
    with pytest.raises(SettingsError, match=r"labels has no '11'; known: all"):
        pays_shipped.run(tmp_path, work=tmp_path, large=tmp_path, labels=["11"])


def test_the_files_of_the_plan_can_be_exported_and_timed(tmp_path):
    """Their targets are settings that load, with their formats and runtimes; the timed one has a clock."""
    shipped = PLAN["shipped"]
    settings = pays.settings_of(PLAN, pays.Cell("sst2", "all", "3x384", pays.LOGITS, 0), places(tmp_path))
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(settings | {"targets": shipped["targets"]}))
    targets = load(path).targets
    assert {(one.runtime, one.precision) for one in targets.values()} == {
        ("onnxruntime", "int8"),
        ("litert", "int8"),
        ("coreml_reference", "int8"),
    }
    assert not hasattr(plugins.load("runtime", targets[shipped["timed"]].runtime), "NOT_TIMED")


def test_a_gain_of_a_file_is_said_with_its_sign(tmp_path):
    """Planted: a drop of 2 points from one teacher is -2, and -1 from the other is +1."""
    drops = {
        of: {"value": value, "low": value - 0.5, "high": value + 0.25, "confidence": 0.95}
        for of, value in {"float": 0.0, "small": -1.0, "large": 2.0}.items()
    }
    file = {"bytes": 5_000_000, "runtime": "onnxruntime 1", **{f"drop_from_{of}": drop for of, drop in drops.items()}}
    speedup = {"value": 4.0, "low": 3.0, "high": 5.0, "confidence": 0.98}
    teachers = {size: {"score": 0.9, "speedup": speedup} for size in ("small", "large")}
    one = {"row": "logits", "seed": 0, "test_score": 0.9, "files": {"onnx": {**file, "score": 0.89}}}
    record = {"cpu": "a CPU", "isa": [], "shipped": {"sst2, all": {**one, "teachers": teachers}}}
    (tmp_path / "a_cpu.json").write_text(json.dumps(record))
    text = pays_shipped.with_tables(pays.PAGE.read_text("utf-8"), tmp_path)
    assert "| 5.0 | 89.00 % | +0.00 [-0.25, +0.50] | +1.00 [+0.75, +1.50] | -2.00 [-2.25, -1.50] |" in text
    assert "4.0 [3.0, 5.0], 4.0 [3.0, 5.0]" in text


def test_the_page_has_the_files_of_its_records():
    """`python -m benchmarks.pays_shipped table` was run after the last record."""
    text = pays.PAGE.read_text("utf-8")
    assert pays_shipped.with_tables(text, pays_shipped.RESULTS) == text
