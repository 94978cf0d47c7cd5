"""The training loop: it learns, resumes to the bit, stops on NaN, and trusts nothing damaged."""

import logging
import math
import re
from collections import Counter
from itertools import chain

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_project import flip_bit
from toy_models import TASK, toy_model

from pipeline.base.errors import IntegrityError, SettingsError, TrainingError
from pipeline.base.records import open_folder
from pipeline.data.batches import Collator, LengthGroupedSampler
from pipeline.data.prepared import EncodedSplit
from pipeline.families import shape_of
from pipeline.losses import attention_kl, cross_entropy, hidden_mse, minilm_v2
from pipeline.models.checkpoints import save_classifier
from pipeline.settings.training import TrainingSettings
from pipeline.tasks import UNLABELLED
from pipeline.training import checkpoints, loop, optimizer
from pipeline.training.answers import (
    cached_teacher_outputs,
    check_learned,
    predict,
    rows_without,
    score_of,
    targeted_share,
)
from pipeline.training.distiller import Distiller, check_fit
from pipeline.training.judges import OnDev
from pipeline.training.loop import check_settings, fit, passes_of
from pipeline.training.steps import Steps

KEY = "settings and data"


@pytest.fixture(autouse=True)
def one_thread():
    """Another number of threads gives other last digits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_split(rows, seed):
    """Random tokens of 3 to 11; the one special token among them tells the class."""
    generator = torch.Generator().manual_seed(seed)
    ids, labels = [], []
    for row in range(rows):
        label = row % 3
        length = int(torch.randint(3, 12, (), generator=generator))
        tokens = torch.randint(10, 60, (length,), generator=generator)
        tokens[int(torch.randint(0, length, (), generator=generator))] = 4 + label
        ids.append([2, *tokens.tolist(), 3])
        labels.append(label)
    return EncodedSplit(tuple(f"row-{i}" for i in range(rows)), ids, tuple(labels), pad_id=0)


TRAIN, DEV = make_split(90, seed=1), make_split(37, seed=2)


def make_student(seed=0, **changes):
    """A random BERT of one layer with dropout."""
    return toy_model(seed=seed, num_hidden_layers=1, initializer_range=0.1, **changes).train()


def settings(**changes):
    """Ten steps an epoch in the mean of two evaluations each."""
    values = {"epochs": 2.0, "learning_rate": 3.0e-3, "batch_size": 16}
    return TrainingSettings.model_validate(values | changes)


def with_teacher_logits(split, teacher):
    """The split as the distill stage makes it."""
    return EncodedSplit(**{**split.__dict__, "teacher_outputs": predict(teacher, split.ids, split.pad_id, "t")})


def train(work, *, student=None, teacher=None, losses=None, split=TRAIN, key=KEY, seed=0, keep="best", **changes):
    """(run, weights) of a short training."""
    student = student if student is not None else make_student()
    distiller = Distiller(student, teacher, losses or {"cross_entropy": {}})
    run = fit(distiller, split, OnDev(DEV, TASK), settings(**changes), work, key, seed, "the student", keep)
    return run, {name: weight.clone() for name, weight in student.state_dict().items()}


def same(first, second):
    """Whether all weights are equal to the last bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class Killed(BaseException):
    """What stands for kill -9 in these tests: nothing in the pipeline catches it."""


@pytest.fixture
def kill_at(monkeypatch):
    """Makes the next training stop dead before it takes a step of this number; None: no longer."""
    original = Steps.take

    def plant(step):

        def take(self, number, *args):
            if number == step:
                raise Killed
            return original(self, number, *args)

        monkeypatch.setattr(Steps, "take", take)

    yield plant


def plant_scores(monkeypatch, told):
    """Makes each evaluation find what is told for its step."""
    monkeypatch.setattr(OnDev, "score", lambda *_: math.nan)
    original = checkpoints.Progress.judge
    monkeypatch.setattr(
        checkpoints.Progress, "judge", lambda self, score, epoch, metric: original(self, told[self.step], epoch, metric)
    )


def interrupted(monkeypatch, kill_at, step, work, **arguments):
    """A training that was killed before its step `step`, and then run again."""
    with monkeypatch.context(), pytest.raises(Killed):
        kill_at(step)
        train(work, **arguments)
    monkeypatch.undo()
    return train(work, **arguments)


# --- the order of rows -------------------------------------------------------------------------------------------

LENGTHS = [(7 * i) % 31 + 1 for i in range(1000)]


def order(seed=0, epoch=0, lengths=LENGTHS, batch_size=8):
    """The rows in the order that a sampler gives them in one epoch."""
    sampler = LengthGroupedSampler(lengths, batch_size, seed)
    sampler.set_epoch(epoch)
    assert len(sampler) == len(lengths)
    return list(sampler)


def test_order_depends_on_seed_and_epoch_alone():
    """Not on the global random state, nor on how often it was asked."""
    torch.manual_seed(1)
    first = order()
    torch.manual_seed(2)
    sampler = LengthGroupedSampler(LENGTHS, 8, 0)
    assert list(sampler) == list(sampler) == first
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 400, 401, 1000])
def test_every_row_comes_once(rows):
    """Also where the last batch or the last pool is short; a short batch is the last one."""
    lengths = LENGTHS[:rows]
    assert sorted(order(lengths=lengths)) == list(range(rows))


def test_batches_have_similar_lengths_and_come_in_no_order_of_length():
    """At most a tenth of the padding of random batches; the batches themselves are shuffled."""
    rows = order()
    batches = [[LENGTHS[row] for row in rows[i : i + 8]] for i in range(0, 1000, 8)]
    spread = sum(max(batch) - min(batch) for batch in batches)
    random = torch.randperm(1000, generator=torch.Generator().manual_seed(0)).tolist()
    shuffled = [[LENGTHS[row] for row in random[i : i + 8]] for i in range(0, 1000, 8)]
    assert spread < 0.1 * sum(max(batch) - min(batch) for batch in shuffled)
    longest = [max(batch) for batch in batches]
    assert longest != sorted(longest) and longest != sorted(longest, reverse=True)


# --- learning ----------------------------------------------------------------------------------------------------


def test_training_learns_a_task_that_can_be_learned(tmp_path):
    """From chance to nearly all of dev right."""
    before = score_of(predict(make_student(), DEV.ids, DEV.pad_id, "dev"), DEV.targets, TASK)
    run, _ = train(tmp_path, epochs=12.0)
    assert before < 0.6
    assert run.best_dev_score > 0.85
    assert run.steps == 12 * 6
    losses = [entry["loss"] for entry in run.log if "loss" in entry]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("keep", ["best", "last"])
@pytest.mark.parametrize("changes", [{}, {"epochs": 2.5}, {"evaluations_per_epoch": 4}, {"epochs": 0.3}])
def test_score_told_is_that_of_the_final_weights_on_all_of_dev(tmp_path, keep, changes):
    """A past fault: it was that of a part of dev. 37 rows and a last training batch of 10 would show it."""
    student = make_student()
    run, _ = train(tmp_path, student=student, keep=keep, **changes)
    logits = torch.cat([student.eval()(torch.tensor([ids])).logits for ids in DEV.ids]).detach()
    assert run.best_dev_score == score_of({"logits": logits}, DEV.targets, TASK)


@pytest.mark.parametrize("changes", [{"epochs": 2.5}, {"epochs": 0.3}, {"evaluations_per_epoch": 4}])
def test_last_step_is_evaluated_and_kept(tmp_path, changes):
    """Where steps are no multiple of those between evaluations, else the last part is trained for nothing."""
    run, _ = train(tmp_path, **changes)
    assert run.steps == max(1, round(changes.get("epochs", 2.0) * 6))
    evaluated = [entry["step"] for entry in run.log if "dev_score" in entry]
    assert evaluated[-1] == run.steps
    assert checkpoints.Checkpoints(tmp_path, KEY).newest().step == run.steps


@pytest.mark.slow
def test_teacher_helps_on_average(tmp_path):
    """Over five seeds, where a third of the labels is wrong and the teacher knows better.

    Where every label is right, as elsewhere in this file, so easy a task leaves the teacher nothing to add.
    """
    clean = make_split(300, seed=1)
    teacher = toy_model(initializer_range=0.1)
    run, _ = train(tmp_path / "teacher", student=teacher, split=clean, epochs=12.0)
    assert run.best_dev_score > 0.9
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(1, 3, (300,), generator=generator) * (torch.rand(300, generator=generator) < 1 / 3)
    labels = tuple((label + int(extra)) % 3 for label, extra in zip(clean.targets, noise, strict=True))
    noisy = with_teacher_logits(EncodedSplit(clean.names, clean.ids, labels, clean.pad_id), teacher)

    def mean_accuracy(name, losses):
        runs = [
            train(
                tmp_path / f"{name}-{seed}",
                student=make_student(seed, hidden_size=16, intermediate_size=24),
                teacher=teacher,
                losses=losses,
                split=noisy,
                seed=seed,
                keep="last",
                epochs=8.0,
            )[0]
            for seed in range(5)
        ]
        return sum(run.best_dev_score for run in runs) / len(runs)

    assert mean_accuracy("distilled", {"logit_kl": {"temperature": 2.0}}) > mean_accuracy(
        "plain", {"cross_entropy": {}}
    )


def test_best_checkpoint_is_the_earliest_of_equals(tmp_path, monkeypatch):
    """Planted accuracies: 0.5, 0.75, 0.75, 0.25; the weights are those of the second evaluation."""
    told = iter([0.5, 0.75, 0.75, 0.25])
    kept = []

    def planted(*_):
        kept.append({name: weight.clone() for name, weight in student.state_dict().items()})
        return next(told)

    student = make_student()
    monkeypatch.setattr(OnDev, "score", planted)
    run, weights = train(tmp_path, student=student, epochs=4.0)
    assert run.best_dev_score == 0.75
    assert same(weights, kept[1])
    assert not same(weights, kept[2])


def test_last_weights_are_kept_when_asked(tmp_path, monkeypatch):
    """For a phase whose dev accuracy says nothing."""
    told = iter([0.75, 0.25])
    monkeypatch.setattr(OnDev, "score", lambda *_: next(told))
    run, weights = train(tmp_path, keep="last")
    assert run.best_dev_score == 0.25
    saved = load_file(tmp_path / "checkpoint-12" / "model.safetensors")
    assert all(torch.equal(saved[f"student.{name}"], weight) for name, weight in weights.items())


def test_patience_stops_a_run_that_gets_no_better(tmp_path, monkeypatch):
    """Planted accuracies: the best is the second; two more without a better one are waited for."""
    told = iter([0.5, 0.75, 0.7, 0.75, 0.9])
    monkeypatch.setattr(OnDev, "score", lambda *_: next(told))
    run, _ = train(tmp_path, epochs=8.0, patience=2)
    assert run.steps == 4 * 6


def test_seed_decides_the_weights(tmp_path):
    """Dropout and order included: equal to the last bit in another folder, different with another seed."""
    first, weights = train(tmp_path / "a")
    second, again = train(tmp_path / "b")
    assert same(weights, again)
    assert first.log == second.log
    _, other = train(tmp_path / "c", seed=1)
    assert not same(weights, other)


def test_log_holds_nothing_but_what_was_trained(tmp_path):
    """No time, no speed, no path: the same seed gives the same bytes."""
    run, _ = train(tmp_path)
    keys = {key for entry in run.log for key in entry}
    assert keys == {"step", "epoch", "loss", "grad_norm", "learning_rate", "term_cross_entropy", "dev_score"}
    assert all("loss" in entry or "dev_score" in entry for entry in run.log)


# --- killed and resumed ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 3, 4, 6, 8, 11])
def test_killed_run_ends_with_the_weights_of_one_that_was_not(tmp_path, monkeypatch, kill_at, step):
    """Between checkpoints, at one in the middle of an epoch, and at the end of one; with dropout; the log too."""
    plain, weights = train(tmp_path / "plain", evaluations_per_epoch=2)
    run, resumed = interrupted(monkeypatch, kill_at, step, tmp_path / "killed", evaluations_per_epoch=2)
    assert run.resumed_from_step == step // 3 * 3
    assert same(resumed, weights)
    assert run.log == plain.log
    assert run.best_dev_score == plain.best_dev_score


@pytest.mark.parametrize("keep", ["best", "last"])
@pytest.mark.parametrize("epochs", [2.0, 2.5, 0.3])
def test_run_that_was_killed_after_its_last_step_trains_no_further(tmp_path, epochs, keep):
    """Its checkpoint is the end, also when that lies in the middle of an epoch."""
    run, weights = train(tmp_path, epochs=epochs, keep=keep)
    again, resumed = train(tmp_path, epochs=epochs, keep=keep)
    assert again.resumed_from_step == again.steps == run.steps
    assert same(resumed, weights)
    assert again.log == run.log
    assert again.best_dev_score == run.best_dev_score


@pytest.mark.parametrize("step", [18, 20])
def test_patience_survives_a_kill(tmp_path, monkeypatch, kill_at, step):
    """What was waited for before the kill counts."""
    plant_scores(monkeypatch, {6: 0.5, 12: 0.75, 18: 0.7, 24: 0.75, 30: 0.9, 36: 0.9})

    def run(work):
        return train(work, epochs=6.0, patience=2)

    plain, weights = run(tmp_path / "plain")
    assert plain.steps == 24
    with pytest.raises(Killed):
        kill_at(step)
        run(tmp_path / "killed")
    kill_at(None)
    resumed, resumed_weights = run(tmp_path / "killed")
    assert (resumed.steps, resumed.resumed_from_step) == (24, 18)
    assert same(resumed_weights, weights)
    finished, finished_weights = run(tmp_path / "killed")
    assert (finished.steps, finished.resumed_from_step) == (24, 24)
    assert same(finished_weights, weights)


def damage_newest(work, how):
    """Spoils the newest checkpoint in one of the ways that a crash or a disk does."""
    newest = max(work.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    if how == "no card":
        (newest / "card.json").unlink()
    elif how == "missing file":
        (newest / "optimizer.safetensors").unlink()
    elif how == "cut short":
        (newest / "model.safetensors").write_bytes((newest / "model.safetensors").read_bytes()[:-100])
    else:
        flip_bit(newest / how)
    return newest


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("model.safetensors", r"model.safetensors: damaged: found SHA-256 \w+…, expected \w+…"),
        # three more files by the same way, a training each
        pytest.param("optimizer.safetensors", "optimizer.safetensors: damaged", marks=pytest.mark.slow),
        pytest.param("progress.json", "progress.json: damaged", marks=pytest.mark.slow),
        pytest.param("random.safetensors", "random.safetensors: damaged", marks=pytest.mark.slow),
        ("missing file", "optimizer.safetensors: missing"),
        ("cut short", "model.safetensors: truncated by 100 bytes"),
        ("no card", "no card.json, so it was never finished"),
    ],
)
def test_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, monkeypatch, kill_at, caplog, how, message):
    """Faults rows 2 and 9: never resumed from; the end is the same all the same."""
    _, weights = train(tmp_path / "plain", evaluations_per_epoch=2)
    with pytest.raises(Killed):
        kill_at(8)
        train(tmp_path / "killed", evaluations_per_epoch=2)
    monkeypatch.undo()
    newest = damage_newest(tmp_path / "killed", how)
    assert newest.name == "checkpoint-6"
    with caplog.at_level(logging.WARNING):
        run, resumed = train(tmp_path / "killed", evaluations_per_epoch=2)
    assert [record for record in caplog.records if "not resuming from it" in record.message]
    assert any(record.message.startswith(str(newest)) for record in caplog.records)
    assert any(re.search(message, record.message) for record in caplog.records)
    assert run.resumed_from_step == 3
    assert same(resumed, weights)


def test_damaged_best_checkpoint_is_no_dead_end(tmp_path, monkeypatch, kill_at):
    """The newest one is whole, but could not end with the best weights: go back to before both."""
    plant_scores(monkeypatch, {3: 0.9, 6: 0.5, 9: 0.5, 12: 0.4})

    def run(work):
        return train(work, evaluations_per_epoch=2)

    _, weights = run(tmp_path / "plain")
    with pytest.raises(Killed):
        kill_at(10)
        run(tmp_path / "killed")
    kill_at(None)
    assert {path.name for path in (tmp_path / "killed").glob("checkpoint-*")} == {"checkpoint-3", "checkpoint-9"}
    flip_bit(tmp_path / "killed" / "checkpoint-3" / "model.safetensors")
    resumed, resumed_weights = run(tmp_path / "killed")
    assert resumed.resumed_from_step == 0
    assert same(resumed_weights, weights)


def test_best_checkpoint_that_is_damaged_during_the_run_is_never_exported(tmp_path, monkeypatch):
    """Planted between the last step and the loading of the best."""
    original = checkpoints.Checkpoints.take_best

    def take_best(self, *args):
        flip_bit(tmp_path / "checkpoint-6" / "model.safetensors")
        flip_bit(tmp_path / "checkpoint-12" / "model.safetensors")
        original(self, *args)

    monkeypatch.setattr(checkpoints.Checkpoints, "take_best", take_best)
    with pytest.raises(IntegrityError, match=r"model\.safetensors: damaged"):
        train(tmp_path)


def test_checkpoints_of_other_settings_are_thrown_away(tmp_path):
    """Another key empties the folder, also of what was never finished."""
    train(tmp_path / "work")
    (tmp_path / "work" / "stray").write_text("x")
    run, weights = train(tmp_path / "work", key="other settings", learning_rate=1.0e-3)
    assert run.resumed_from_step == 0
    assert not (tmp_path / "work" / "stray").exists()
    _, plain = train(tmp_path / "plain", learning_rate=1.0e-3)
    assert same(weights, plain)


def test_two_checkpoints_are_kept(tmp_path):
    """The newest and the best, each sealed."""
    train(tmp_path, epochs=4.0)
    kept = sorted(tmp_path.glob("checkpoint-*"))
    assert 1 <= len(kept) <= 2
    for folder in kept:
        open_folder(folder, checkpoints.KIND)


# --- numbers that are not finite ---------------------------------------------------------------------------------


def test_loss_that_is_not_finite_stops_at_once(tmp_path, monkeypatch):
    """Faults row 15: within the step, with step, term, rows, and what to do."""
    original = cross_entropy.loss
    calls = []

    def planted(student, *args):
        calls.append(1)
        return original(student, *args) * (math.nan if len(calls) == 5 else 1)

    monkeypatch.setattr(cross_entropy, "loss", planted)
    rows = r"rows row-\d+, row-\d+, row-\d+, row-\d+, row-\d+…"
    with pytest.raises(TrainingError, match=rf"^step 5: loss 'cross_entropy' is not finite .* {rows}; lower the"):
        train(tmp_path)
    assert len(calls) == 5


def test_row_told_is_the_one_with_the_fault(tmp_path):
    """Planted: one row whose teacher's answer is NaN, in batches of one."""
    student = make_student()
    split = with_teacher_logits(TRAIN, toy_model())
    split.teacher_outputs["logits"][41, 1] = torch.nan
    with pytest.raises(TrainingError, match=r"loss 'logit_kl' is not finite on a batch with rows row-41…"):
        train(tmp_path, student=student, teacher=toy_model(), losses={"logit_kl": {}}, split=split, batch_size=1)


def test_learning_rate_that_explodes_is_an_error(tmp_path):
    """Not a student that answers at random: weights overflow, and the run says when."""
    student = make_student()
    with torch.no_grad():
        student.classifier.weight.mul_(1e30)
    with pytest.raises(TrainingError, match="not finite"):
        train(tmp_path, student=student, learning_rate=0.99, losses={"cross_entropy": {"weight": 1e38}}, epochs=20.0)


def test_answers_that_are_not_finite_are_named():
    """With the row, counted as in the split."""
    model = make_student()
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[57] = torch.nan
    ids = [[2, 10, 3], [2, 10, 11, 12, 3], [2, 57, 3]]
    with pytest.raises(TrainingError, match=r"^dev: 'logits' of row 2 is not finite"):
        predict(model, ids, 0, "dev")


def logits_of(answers, classes=3):
    """Logits whose largest is each answer's."""
    return torch.nn.functional.one_hot(torch.tensor(answers), classes).float()


COMMON, RARE = [0] * 190, [1] * 10


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (COMMON + [0] * 10, "190 of 200 dev rows are right, and its answers in any other order would have 190 ± 0"),
        ([1] * 200, "10 of 200 dev rows are right"),
        ([0, 1] * 100, "100 of 200 dev rows are right, and its answers in any other order would have 100 ± "),
        ([0] * 180 + [1] * 10 + [0] * 10, "180 of 200 dev rows are right"),  # the rare class where it never is
    ],
    ids=["the commonest class", "another class", "at random", "worse than at random"],
)
def test_collapse_is_an_error(answers, message):
    """Faults row 16: answers that have nothing to do with the labels, however many are right."""
    with pytest.raises(TrainingError, match=f"^the student collapsed: {message}"):
        check_learned({"logits": logits_of(answers)}, COMMON + RARE, TASK, "the student")


def test_a_model_that_finds_the_rare_class_has_not_collapsed():
    """Though always answering the commonest class would be right more often: 95 % against 94 %."""
    answers = [0] * 180 + [1] * 10 + [1] * 8 + [0] * 2
    assert score_of({"logits": logits_of(answers)}, COMMON + RARE, TASK) < 0.95
    check_learned({"logits": logits_of(answers)}, COMMON + RARE, TASK, "the student")
    check_learned({"logits": logits_of([0] * 6 + [1] * 4)}, [0] * 5 + [1] * 3 + [2] * 2, TASK, "the student")


def test_chance_is_that_of_answers_in_another_order():
    """Mean and deviation of the matches over 4,000 shuffles, as the message tells them."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (60,), generator=generator)
    answers = torch.multinomial(torch.tensor([0.6, 0.3, 0.1]), 60, replacement=True, generator=generator)
    shuffled = [int((answers[torch.randperm(60, generator=generator)] == labels).sum()) for _ in range(4000)]
    mean, spread = torch.tensor(shuffled).double().mean(), torch.tensor(shuffled).double().std()
    worst = answers.sort().values[labels.argsort(descending=True).argsort()].tolist()
    with pytest.raises(TrainingError, match=rf"would have {mean:.0f} ± {spread:.0f};"):
        check_learned({"logits": logits_of(worst)}, labels.tolist(), TASK, "the student")


# --- the distiller -----------------------------------------------------------------------------------------------


def batch_of(split, rows=range(6)):
    """A batch as the collator makes it, without row numbers."""
    batch = Collator(split, TASK.collate)(list(rows))
    del batch["rows"]
    return batch


def test_total_is_the_weighted_sum_of_the_terms():
    """And the share of the phase that is done turns a decaying weight down to 0."""
    teacher = toy_model()
    losses = {"cross_entropy": {"weight": 0.5}, "logit_kl": {"weight": 3.0, "decay": "linear"}}
    distiller = Distiller(make_student(hidden_dropout_prob=0.0), teacher, losses)
    batch = batch_of(with_teacher_logits(TRAIN, teacher))
    for progress, factor in ((0.0, 3.0), (0.25, 2.25), (1.0, 0.0)):
        out = distiller.eval()(progress=progress, **batch)
        expected = 0.5 * out["terms"]["cross_entropy"] + factor * out["terms"]["logit_kl"]
        torch.testing.assert_close(out["loss"], expected)


def test_progress_rises_evenly_over_the_phase(tmp_path, monkeypatch):
    """From 0 at the first step to one step before 1 at the last; also after a resumption."""
    seen = []
    original = Distiller.forward

    def forward(self, progress=0.0, **batch):
        seen.append(progress)
        return original(self, progress, **batch)

    monkeypatch.setattr(Distiller, "forward", forward)
    train(tmp_path)
    assert seen == pytest.approx([step / 12 for step in range(12)])


def test_auxiliary_modules_learn_and_are_not_exported(tmp_path):
    """A narrower student's map to the teacher's width."""
    teacher, student = toy_model(), make_student(hidden_size=16)
    distiller = Distiller(student, teacher, {"hidden_mse": {"map": "last_only"}})
    [before] = [weight.clone() for weight in distiller.auxiliary.parameters()]
    assert tuple(before.shape) == (32, 16)
    fit(distiller, TRAIN, OnDev(DEV, TASK), settings(), tmp_path / "work", KEY, 0, "the student", "last")
    [after] = distiller.auxiliary.parameters()
    assert not torch.equal(before, after)
    save_classifier(student, tmp_path / "model")
    assert set(load_file(tmp_path / "model" / "model.safetensors")) == set(student.state_dict())


def test_auxiliary_modules_start_from_the_seed_alone():
    """Not from the global random state, which knows what this process trained before; that is left as it was."""

    def made(seed, state):
        torch.manual_seed(state)
        found = Distiller(student, teacher, {"hidden_mse": {"map": "last_only"}}, seed).auxiliary.state_dict()
        assert torch.equal(torch.rand(2), torch.rand(2, generator=torch.Generator().manual_seed(state)))
        return found

    student, teacher = make_student(hidden_size=16), toy_model()
    assert same(made(1, state=5), made(1, state=6))
    assert not same(made(1, state=5), made(2, state=5))


def test_auxiliary_modules_are_resumed_too(tmp_path, monkeypatch, kill_at):
    """They stand in the checkpoints, or the student would go on with fresh ones."""

    def arguments():
        losses = {"hidden_mse": {"map": "last_only"}}
        return {"student": make_student(hidden_size=16), "teacher": toy_model(), "losses": losses, "keep": "last"}

    _, weights = train(tmp_path / "plain", **arguments())
    with pytest.raises(Killed):
        kill_at(8)
        train(tmp_path / "killed", **arguments())
    monkeypatch.undo()
    _, resumed = train(tmp_path / "killed", **arguments())
    assert same(resumed, weights)


def test_teacher_is_not_touched(tmp_path):
    """Its bytes, its mode and its gradients, after a training on its states."""
    teacher = toy_model()
    before = {name: weight.clone() for name, weight in teacher.state_dict().items()}
    losses = {"attention_kl": {"map": "last_only"}, "hidden_mse": {"map": "last_only"}, "logit_kl": {}}
    student = make_student()
    distiller = Distiller(student, teacher, losses)
    assert not any("teacher" in name for name in distiller.state_dict())
    fit(distiller, TRAIN, OnDev(DEV, TASK), settings(), tmp_path, KEY, 0, "the student")
    assert same(teacher.state_dict(), before)
    assert not teacher.training
    assert all(weight.grad is None for weight in teacher.parameters())


def test_student_learns_only_from_logits_without_running_the_teacher(tmp_path):
    """Its answers are in the split already; signal losses need it."""
    teacher = toy_model()
    split = with_teacher_logits(TRAIN, teacher)
    calls = []
    teacher.register_forward_pre_hook(lambda *_: calls.append(1))
    train(tmp_path / "a", teacher=teacher, losses={"logit_kl": {}, "cross_entropy": {}}, split=split)
    assert calls == []
    train(tmp_path / "b", teacher=teacher, losses={"logit_kl": {}, "hidden_mse": {"map": "last_only"}}, split=split)
    assert len(calls) == 12


def test_cached_answers_are_those_of_the_right_rows():
    """The loss on cached logits equals the loss on the teacher's own, for rows in any order."""
    teacher, student = toy_model(), make_student().eval()
    distiller = Distiller(student, teacher, {"logit_kl": {}}).eval()
    rows = [11, 3, 40, 7]
    cached = distiller(**batch_of(with_teacher_logits(TRAIN, teacher), rows))["loss"]
    torch.testing.assert_close(cached, distiller(**batch_of(TRAIN, rows))["loss"], rtol=1e-4, atol=1e-6)


def test_teacher_reads_its_own_token_ids():
    """Where the student's vocabulary is trimmed; padded with the teacher's padding id to the same length."""
    split = EncodedSplit(
        ("a", "b"), [[1, 5, 2], [1, 2]], (0, 1), pad_id=0, teacher_ids=[[41, 45, 42], [41, 42]], teacher_pad_id=9
    )
    batch = batch_of(split, [1, 0])
    assert batch["input_ids"].tolist() == [[1, 2, 0], [1, 5, 2]]
    assert batch["teacher_input_ids"].tolist() == [[41, 42, 9], [41, 45, 42]]
    seen = []
    teacher = toy_model()
    teacher.register_forward_pre_hook(lambda _, __, inputs: seen.append(inputs["input_ids"]), with_kwargs=True)
    Distiller(make_student(), teacher, {"hidden_mse": {"map": "last_only"}})(**batch)
    assert seen[0].tolist() == batch["teacher_input_ids"].tolist()


def test_every_loss_that_does_not_fit_is_told_at_once():
    """Faults row 26: before any training, with both shapes."""
    student, teacher = shape_of(make_student(num_attention_heads=2).config), shape_of(toy_model().config)
    losses = {
        "cross_entropy": cross_entropy.Params(),
        "attention_kl": attention_kl.Params(map=((1, 9),)),
        "hidden_mse": hidden_mse.Params(map=((4, 1),)),
        "minilm_v2": minilm_v2.Params(relation_heads=5),
    }
    with pytest.raises(SettingsError) as caught:
        check_fit(losses, student, teacher)
    *refused, fitting = str(caught.value).splitlines()
    told = [line.partition(":")[0] for line in refused]
    assert told == ["distill.losses.attention_kl", "distill.losses.hidden_mse", "distill.losses.minilm_v2"]
    # one head by one is refused for 2 heads beside 4, a merge of heads is not
    assert fitting.startswith("losses that fit these two models as they stand: a2d, attention_mean_kl, ")
    assert "shd" in fitting
    check_fit({"cross_entropy": cross_entropy.Params()}, student, teacher)


# --- rows with a target and without ---


@pytest.mark.parametrize("share", [0.05, 0.5, 0.75, 0.99])
@pytest.mark.parametrize("labelled", [3, 30])  # fewer than a batch has room for, and more
def test_each_batch_has_its_share_without_target(share, labelled):
    """A label weighs as many times as much as rows with one are rarer in a batch than they would be alone."""
    targets = [0 if row < labelled else UNLABELLED for row in range(len(TRAIN))]
    split = EncodedSplit(**{**TRAIN.__dict__, "targets": targets})
    rows = passes_of(split, 16, 0, share)
    met = [rows(step) for step in range(200)]
    without = {sum(targets[i] == UNLABELLED for i in some) for some in met}
    assert without == {rows_without(share, 16)} and {len(some) for some in met} == {16}
    assert targeted_share(split, share, 16) == 1 - rows_without(share, 16) / 16
    assert set(chain(*met)) == set(range(len(TRAIN)))
    for kind in (range(labelled), range(labelled, len(TRAIN))):  # passes over each: no row is met twice as often
        times = Counter(i for some in met for i in some if i in kind)
        assert max(times.values()) - min(times.values()) <= 1
    assert [rows(step) for step in (150, 7)] == [met[150], met[7]], "a training that goes on must meet the same rows"


def test_a_share_says_nothing_where_all_rows_are_of_one_kind():
    """As for losses that read no teacher."""
    rows = [passes_of(TRAIN, 16, 3, share) for share in (None, 0.75)]
    assert all(rows[0](step) == rows[1](step) for step in range(20))
    assert targeted_share(TRAIN, 0.75, 16) == 1.0


def test_steps_and_evaluations_may_be_said_in_place_of_epochs(tmp_path):
    """Exactly so many, evenly spread, the last at the end."""
    run, _ = train(tmp_path, steps=11, evaluations=3)
    assert run.steps == 11
    assert [entry["step"] for entry in run.log if "dev_score" in entry] == [4, 8, 11]


def test_steps_by_themselves_do_not_evaluate_after_each(tmp_path, monkeypatch):
    """An epoch of few labels is one step: 800 would be 800 passes over dev, and 800 checkpoints."""
    monkeypatch.setattr(loop, "MOST_EVALUATIONS", 4)
    run, _ = train(tmp_path, steps=14, batch_size=len(TRAIN))
    assert [entry["step"] for entry in run.log if "dev_score" in entry] == [4, 8, 12, 14]


# --- the teacher's answers, kept ---------------------------------------------------------------------------------


def test_teacher_answers_are_computed_once(tmp_path):
    """Then read, equal to fresh ones to the last bit; another key computes them again."""
    teacher = toy_model()
    calls = []
    teacher.register_forward_hook(lambda *_: calls.append(1))
    first = cached_teacher_outputs(teacher, TRAIN.ids, TRAIN.pad_id, tmp_path, "a" * 64)["logits"]
    once = len(calls)
    assert once > 0
    again = cached_teacher_outputs(teacher, TRAIN.ids, TRAIN.pad_id, tmp_path, "a" * 64)["logits"]
    assert len(calls) == once
    fresh = predict(toy_model(), TRAIN.ids, TRAIN.pad_id, "fresh")["logits"]
    assert torch.equal(first, fresh) and torch.equal(again, fresh)
    cached_teacher_outputs(teacher, TRAIN.ids, TRAIN.pad_id, tmp_path, "b" * 64)["logits"]
    assert len(calls) == 2 * once


@pytest.mark.parametrize("how", ["bit flip", "no card", "planted NaN"])
def test_damaged_answers_are_made_again(tmp_path, caplog, how):
    """Faults rows 9 and 15: with a message; never learned from."""
    teacher = toy_model()
    made = cached_teacher_outputs(teacher, TRAIN.ids, TRAIN.pad_id, tmp_path, "a" * 64)
    expected = made["logits"].clone()  # not a view of the file
    [folder] = tmp_path.glob("teacher_outputs-*")
    if how == "bit flip":
        flip_bit(folder / "outputs.safetensors")
    elif how == "no card":
        (folder / "card.json").unlink()
    else:
        save_file({"logits": expected.clone().fill_(torch.nan)}, folder / "outputs.safetensors")
    with caplog.at_level(logging.WARNING):
        found = cached_teacher_outputs(teacher, TRAIN.ids, TRAIN.pad_id, tmp_path, "a" * 64)["logits"]
    assert torch.equal(found, expected)
    assert any("computing the teacher's outputs again" in record.message for record in caplog.records)
    assert cached_teacher_outputs(teacher, TRAIN.ids, TRAIN.pad_id, tmp_path, "a" * 64)["logits"].isfinite().all()


def test_teacher_that_answers_nan_is_refused(tmp_path):
    """And nothing is kept of it."""
    teacher = toy_model()
    with torch.no_grad():
        teacher.classifier.bias[1] = torch.nan
    with pytest.raises(TrainingError, match="teacher's outputs: 'logits' of row 0 is not finite"):
        cached_teacher_outputs(teacher, TRAIN.ids, TRAIN.pad_id, tmp_path, "a" * 64)["logits"]
    assert not list(tmp_path.iterdir())


def test_teacher_answers_in_its_own_vocabulary(tmp_path):
    """Where the student's is trimmed."""
    teacher = toy_model()
    split = EncodedSplit(("a",), [[1, 2]], (0,), 0, teacher_ids=[[2, 41, 3]], teacher_pad_id=0)
    found = cached_teacher_outputs(teacher, *split.for_teacher, tmp_path, "a" * 64)["logits"]
    assert torch.equal(found, predict(teacher, [[2, 41, 3]], 0, "teacher")["logits"])


def test_answers_come_in_the_order_of_the_rows():
    """Though batches are sorted by length; each as if it had been asked alone."""
    model = toy_model()
    together = predict(model, DEV.ids, 0, "dev", batch_size=5)["logits"]
    alone = torch.cat([predict(model, [ids], 0, "dev")["logits"] for ids in DEV.ids])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


# --- how a step is computed --------------------------------------------------------------------------------------


def test_rate_rises_then_falls():
    """Evenly over 2 of 6 steps, then to 0; without warm-up it starts at its peak."""
    assert [optimizer.rate_factor(step, 2, 6) for step in range(7)] == [0, 0.5, 1, 0.75, 0.5, 0.25, 0]
    assert [optimizer.rate_factor(step, 0, 2) for step in range(2)] == [1, 0.5]


def test_biases_and_norms_are_not_pulled_towards_zero():
    """Nor what learns at a rate of its own; everything that is trained is in one group."""
    distiller = Distiller(make_student(), toy_model(), {"a2d": {}, "hidden_mse": {"map": "last_only"}})
    decayed, plain, *fast = optimizer.make_optimizer(distiller, settings(weight_decay=0.25)).param_groups
    names = {id(weight): name for name, weight in distiller.named_parameters()}
    assert (decayed["weight_decay"], plain["weight_decay"], [group["weight_decay"] for group in fast]) == (0.25, 0, [0])
    assert all("bias" in names[id(p)] or "LayerNorm" in names[id(p)] for p in plain["params"])
    assert not any("bias" in names[id(p)] or "LayerNorm" in names[id(p)] for p in decayed["params"])
    assert fast[0]["lr"] > decayed["lr"] == 3.0e-3
    groups = [decayed, plain, *fast]
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(names)


@pytest.mark.parametrize("micro_batches", [2, 3, 50])
def test_micro_batches_take_the_step_of_the_whole_batch(tmp_path, micro_batches):
    """Weights and log but for rounding, of losses on labels (some absent), logits and layers; down to a row each."""
    labels = tuple(-100 if i % 4 == 0 else label for i, label in enumerate(TRAIN.targets))
    split = EncodedSplit(TRAIN.names, TRAIN.ids, labels, TRAIN.pad_id)

    def run(name, **changes):
        student = make_student(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        losses = {"cross_entropy": {}, "logit_kl": {}, "attention_kl": {"map": "last_only"}}
        arguments = {"student": student, "teacher": toy_model(), "losses": losses, "split": split, "keep": "last"}
        return train(tmp_path / name, **arguments, **changes)

    whole, weights = run("whole")
    parts, others = run("parts", micro_batches=micro_batches)
    for ours, theirs in zip(whole.log, parts.log, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)
    for name, weight in weights.items():
        if not name.endswith("key.bias"):  # its gradient is rounding error alone, which AdamW enlarges
            torch.testing.assert_close(weight, others[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("loss", ["dist", "cka"])
def test_micro_batches_are_refused_where_rows_are_compared(tmp_path, loss):
    """With the loss and what to do: a statistic of each part is not that of the batch."""
    arguments = {"teacher": toy_model(), "losses": {loss: {}}, "micro_batches": 2}
    if loss == "cka":
        arguments["losses"] = {loss: {"map": "last_only"}}
    with pytest.raises(SettingsError, match=rf"micro_batches: found 2, but distill.losses.{loss} compares the rows"):
        train(tmp_path, **arguments)
    general = Distiller(make_student(), toy_model(), arguments["losses"], section="general")
    with pytest.raises(SettingsError, match=rf"but general.losses.{loss} compares the rows"):
        check_settings(general, settings(micro_batches=2))


def test_a_label_weighs_the_same_whatever_it_meets():
    """Its gradient in a batch of labelled rows and among rows without label; in all, as much as without those."""
    student = make_student(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    labels = tuple(label if i < 45 else -100 for i, label in enumerate(TRAIN.targets))
    half = EncodedSplit(TRAIN.names, TRAIN.ids, labels, TRAIN.pad_id)

    def term(split, rows, **arguments):
        distiller = Distiller(student, None, {"cross_entropy": {}}, **arguments)
        found = distiller(**batch_of(split, rows))["terms"]["cross_entropy"].item()
        distiller.close()
        return found

    alone = term(half, [7], targeted_share=0.5)
    assert term(half, [7, 50, 60, 70], targeted_share=0.5) == pytest.approx(alone / 4)
    beside = [term(half, [i], targeted_share=0.5) for i in (3, 9, 12)]
    assert term(half, [7, 3, 9, 12], targeted_share=0.5) == pytest.approx((alone + sum(beside)) / 4, rel=1e-5)
    everything = term(half, range(90), targeted_share=0.5)
    assert everything == pytest.approx(term(TRAIN, range(45)), rel=1e-5)


@pytest.mark.parametrize(
    ("setting", "device", "expected"),
    [
        ("auto", "cpu", None),
        ("fp32", "cpu", None),
        ("bf16", "cpu", torch.bfloat16),
        ("auto", "mps", None),
        ("bf16", "mps", torch.bfloat16),
        ("auto", "cuda", torch.bfloat16),
        ("fp32", "cuda", None),
        ("bf16", "cuda", torch.bfloat16),
        ("fp16", "cuda", torch.float16),
    ],
)
def test_precision_of_each_device(monkeypatch, setting, device, expected):
    """A GPU that has bf16 takes it of itself; the others compute in float32 unless told."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert optimizer.half_precision(setting, torch.device(device)) == expected


def test_precision_that_a_device_has_not_is_refused(monkeypatch):
    """With what it has."""
    for device in ("cpu", "mps"):
        with pytest.raises(SettingsError, match=rf"found 'fp16', .* and this runs on {device}; use 'bf16', 'fp32'"):
            optimizer.half_precision("fp16", torch.device(device))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    with pytest.raises(SettingsError, match="'bf16', which this GPU can only emulate; use 'fp16' or 'fp32'"):
        optimizer.half_precision("bf16", torch.device("cuda"))
    assert optimizer.half_precision("auto", torch.device("cuda")) is None


def test_bf16_trains_on_a_cpu(tmp_path):
    """Other weights than fp32, near them, themselves float32; losses stay float32."""
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    whole, weights = train(tmp_path / "fp32", student=make_student(**quiet), keep="last")
    half, others = train(tmp_path / "bf16", student=make_student(**quiet), keep="last", precision="bf16")
    assert all(weight.dtype == torch.float32 for weight in others.values())
    assert not same(weights, others)
    assert half.log[0]["loss"] == pytest.approx(whole.log[0]["loss"], rel=0.02)


def test_a_training_without_teacher_losses_runs_no_teacher():
    """Even where there is one: a control must not pay for it, nor need its answers."""
    teacher = toy_model()
    calls = []
    teacher.register_forward_pre_hook(lambda *_: calls.append(1))
    Distiller(make_student(), teacher, {"cross_entropy": {}})(**batch_of(TRAIN))
    assert calls == []
