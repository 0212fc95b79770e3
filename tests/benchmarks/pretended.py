"""A benchmark without training: small sets of empty files, and a worker that makes up what it measures."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from benchmarks.ledger import Ledger
from benchmarks.plan import FixedUnit, Job, Trials, TunedUnit, Unit
from benchmarks.studies import STUDIES, FixedRow, Study, TunedRow
from benchmarks.trial import Budget, Trial

from trimtab.bench.results import Results

BUDGET = Budget(train_images=8, val_images=6, epochs=2)


def make_set(data: Path, name: str, *, test: bool = True) -> None:
    for part in ("train", "test") if test else ("train",):
        for label in ("ant", "bee", "cat"):
            folder = data / name / part / label
            folder.mkdir(parents=True)
            for k in range(6):
                (folder / f"{k}.jpg").touch()


def _share(text: str) -> float:
    return int(hashlib.sha256(text.encode()).hexdigest()[:6], 16) / 0xFFFFFF


def measured(trial: Trial) -> dict[str, Any]:
    """What the worker says of a training."""
    numbers = {"linear": 0, "full": 5_500_000, "vpt": 23_040, "ship": 90_000}.get(trial.method, 30_000)
    hierarchy = list(range(round(12 * float(trial.options.get("threshold", 0.8))) - 2))
    return {
        "failed": None,
        "val_accuracy": 0.5 + 0.2 * _share(f"{trial.key}"),
        "val_loss": 1.0 + _share(f"{trial.key} loss"),
        "trainable": numbers + 4_000,
        "trainable_method": numbers,
        "adapter_bytes": 4 * numbers + 20_000,
        "seconds": 20.0,
        "wall_seconds": 22.0,
        "train_loss": 0.4,
        "method_config": {"hierarchy": hierarchy},
    }


class World:
    """A run on these sets; ``after`` may be called again, as after a stop."""

    def __init__(self, folder: Path, study: Study, sets: tuple[str, ...], seeds: int | None = None) -> None:
        self.folder = folder
        self.results = Results(folder / "trials.jsonl")
        self.trials = Trials(folder / "data", folder / "splits", BUDGET)
        self.ledger = Ledger(folder / "data", self.results, images=9)
        self.units: list[Unit] = []
        for row in study.rows:
            for name in sets:
                count = seeds or study.seeds
                if isinstance(row, TunedRow):
                    self.units.append(TunedUnit(study, row, name, count, self.trials, self.results, self.ledger))
                else:
                    self.units.append(FixedUnit(study, row, name, count, self.trials, self.results, lambda *_: False))

    def train(self, trial: Trial, **changes: Any) -> None:
        self.results.append("trial", {"key": trial.key, **trial.inputs(), **measured(trial), **changes})

    def do(self, job: Job) -> None:
        if not job.test:
            if job.trial.key not in self.results.trials:
                self.train(job.trial)
            return
        path = self.ledger.open(job.unit.row.name, job.trial.seed, job.trial, self.trials.base)
        assert path.is_file()
        numbers = {"test_accuracy": 0.4 + 0.3 * _share(f"test {job.trial.key}"), "test_images": 9, "failed": None}
        self.ledger.enter(job.unit.row.name, job.trial.seed, job.trial, self.trials.base, numbers)

    def run(self) -> int:
        """Everything to the end; how many jobs it took."""
        count = 0
        while jobs := [job for unit in self.units for job in unit.ready()]:
            for job in jobs:
                self.do(job)
            count += len(jobs)
        return count


def study_of(*rows: TunedRow | FixedRow, name: str = "methods", seeds: int = 3) -> Study:
    return Study(name, name, rows, seeds=seeds)


def whole_benchmark(folder: Path) -> Results:
    """Results of all studies on two sets."""
    for name in ("cifar10", "dtd10"):
        make_set(folder / "data", name)
    world = None
    for study in STUDIES.values():
        world = World(folder, study, ("cifar10", "dtd10"))
        world.run()
        world.ledger.close()
    assert world is not None
    return world.results


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
