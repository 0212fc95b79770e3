"""Tuning, choice and the one reading of the test images."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.ledger import LedgerError
from benchmarks.plan import TunedUnit, sweep
from benchmarks.studies import COMPARISON, TRIALS, FixedRow, TunedRow

from tests.benchmarks.pretended import World, lines_of, make_set, study_of
from trimtab.bench.results import Results, repair

SIZED = TunedRow("vpt", "vpt", {"num_prompts": 10}, (0.1, 0.2, 0.3), {"num_prompts": 30})
PLAIN = TunedRow("linear", "linear", {}, (0.1, 0.2, 0.3, 0.4))


def world(folder: Path, *rows: TunedRow | FixedRow, test: bool = True) -> World:
    if not (folder / "data").is_dir():
        make_set(folder / "data", "cifar10", test=test)
    return World(folder, study_of(*rows), ("cifar10",))


def test_every_row_has_the_same_number_of_trials() -> None:
    assert all(len(row.lrs) + bool(row.other) == TRIALS for row in COMPARISON)
    with pytest.raises(ValueError, match="3 trials"):
        TunedRow("x", "linear", {}, (0.1, 0.2, 0.3))


@pytest.mark.parametrize("row", [SIZED, PLAIN], ids=lambda row: row.name)
def test_a_row_costs_its_trials_two_more_seeds_and_three_readings(tmp_path: Path, row: TunedRow) -> None:
    one = world(tmp_path, row)
    assert one.units[0].left() == TRIALS + 2
    assert one.run() == TRIALS + 2 + 3
    kinds = [line["kind"] for line in lines_of(tmp_path / "trials.jsonl")]
    assert {kind: kinds.count(kind) for kind in kinds} == {"trial": 6, "choice": 1, "test-opened": 3, "test": 3}
    # The same again finds nothing to do, also in another process.
    assert world(tmp_path, row).run() == 0


def test_the_other_size_is_tried_at_the_best_rate_and_chosen_only_if_better(tmp_path: Path) -> None:
    one = world(tmp_path, SIZED)
    unit = one.units[0]
    assert isinstance(unit, TunedUnit)
    for trial, accuracy in zip(unit.candidates(), (0.5, 0.7, 0.6), strict=True):
        assert unit.choice() is None
        one.train(trial, val_accuracy=accuracy)
    (job,) = unit.ready()
    assert (job.trial.lr, job.trial.options, job.trial.seed) == (0.2, {"num_prompts": 30}, 0)
    one.train(job.trial, val_accuracy=0.7, val_loss=9.0)
    choice = unit.choice()
    assert choice is not None
    assert choice.options == {"num_prompts": 10}  # a tie, and the higher loss


def test_a_training_that_diverged_is_not_chosen(tmp_path: Path) -> None:
    one = world(tmp_path, PLAIN)
    unit = one.units[0]
    assert isinstance(unit, TunedUnit)
    for k, trial in enumerate(unit.candidates()):
        failed = {"failed": "diverged", "val_accuracy": 0.0, "val_loss": None} if k != 2 else {"val_accuracy": 0.0}
        one.train(trial, **failed)
    choice = unit.choice()
    assert choice is not None
    assert choice.lr == 0.3


def test_tuning_needs_no_test_images(tmp_path: Path) -> None:
    one = world(tmp_path, SIZED, test=False)
    unit = one.units[0]
    while jobs := [job for job in unit.ready() if not job.test]:
        for job in jobs:
            one.do(job)
    jobs = unit.ready()
    assert [job.test for job in jobs] == [True] * 3
    for csv in (tmp_path / "splits").iterdir():
        assert "/test/" not in csv.read_text(encoding="utf-8").replace(str(tmp_path), "")
    # Only here somebody looks for them.
    with pytest.raises(FileNotFoundError):
        one.do(jobs[0])


def test_the_ledger_refuses_a_second_reading_and_what_was_not_chosen(tmp_path: Path) -> None:
    one = world(tmp_path, SIZED)
    unit, base = one.units[0], one.trials.base
    assert isinstance(unit, TunedUnit)
    first = unit.candidates()[0]
    with pytest.raises(LedgerError, match="Nothing is chosen"):
        one.ledger.open("vpt", 0, first, base)
    while not (jobs := [job for job in unit.ready() if job.test]):
        for job in unit.ready():
            one.do(job)
    choice = unit.choice()
    assert choice is not None
    loser = next(trial for trial in unit.candidates() if trial.key != choice.key)
    with pytest.raises(LedgerError, match="not what was chosen"):
        one.ledger.open("vpt", 0, loser, base)
    with pytest.raises(LedgerError, match="not what was chosen"):
        one.ledger.open("vpt", 1, choice, base)
    one.do(jobs[0])
    with pytest.raises(LedgerError, match="already"):
        one.do(jobs[0])
    # Another budget does not make it another reading.
    with pytest.raises(LedgerError, match="already"):
        one.ledger.open("vpt", 0, choice, {**base, "epochs": 99})


def test_all_rows_are_measured_on_the_same_test_images(tmp_path: Path) -> None:
    world(tmp_path, SIZED).run()
    other = world(tmp_path, PLAIN)
    other.ledger._images = 5
    with pytest.raises(LedgerError, match="same --test-images"):
        other.run()


def test_fixed_rows_take_the_chosen_rate_and_share_trials(tmp_path: Path) -> None:
    fixed = FixedRow("VPT-deep", "vpt", {"num_prompts": 10}, "vpt")
    waiting = world(tmp_path, fixed)
    assert waiting.run() == 0
    assert "run --study methods" in str(waiting.units[0].conflict())
    world(tmp_path, SIZED).run()
    before = len(Results(tmp_path / "trials.jsonl").trials)
    study = world(tmp_path, fixed)
    rate = study.results.find("choice")[0]["lr"]
    study.run()
    uses = study.results.find("use")
    assert [use["seed"] for use in uses] == [0, 1, 2]
    assert {study.results.trials[use["key"]]["lr"] for use in uses} == {rate}
    chosen = study.results.find("choice")[0]["options"] == {"num_prompts": 10}
    assert len(study.results.trials) - before == (0 if chosen else 2)


def test_models_are_kept_until_they_were_measured(tmp_path: Path) -> None:
    one = world(tmp_path, SIZED)
    unit, models = one.units[0], tmp_path / "models"
    while jobs := unit.ready():
        for job in jobs:
            assert not job.test or (models / job.trial.key).is_dir()
            one.do(job)
            if not job.test:
                (models / job.trial.key).mkdir(parents=True)
            sweep(models, one.units, {other.trial.key for other in jobs})
    sweep(models, one.units, set())
    assert list(models.iterdir()) == []


def test_half_a_line_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    results = Results(path)
    results.append("trial", {"key": "a"})
    with path.open("a", encoding="utf-8") as file:
        file.write('{"kind": "trial", "ke')
    assert list(Results(path).trials) == ["a"]
    repair(path)
    Results(path).append("trial", {"key": "b"})
    assert list(Results(path).trials) == ["a", "b"]
