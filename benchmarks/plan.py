"""What is to be done next, worked out anew from what has been done: so a stopped run goes on where it was."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from benchmarks.ledger import Ledger
from benchmarks.splits import Split, draw_split
from benchmarks.studies import BACKBONE, FixedRow, Study, TunedRow
from benchmarks.trial import Budget, Trial
from trimtab.bench.results import Record, Results, best
from trimtab.methods import METHODS, configure


@dataclass(frozen=True)
class Job:
    """Something for a worker."""

    unit: Unit
    trial: Trial
    test: bool = False
    """Whether to measure on the test images what was trained before."""

    @property
    def name(self) -> tuple[str, str]:
        """Two jobs of one name are the same work."""
        return (self.trial.key, self.unit.row.name if self.test else "")


class Trials:
    """Makes the trials of a budget; draws the training and validation images they need."""

    def __init__(self, data: Path, folder: Path, budget: Budget) -> None:
        self.data, self.folder, self.budget = data, folder, budget
        self.base: Record = dataclasses.asdict(budget)
        self._splits: dict[tuple[str, int], Split] = {}

    def split(self, name: str, seed: int) -> Split:
        """The images of a set and seed, without test images."""
        if (name, seed) not in self._splits:
            self._splits[name, seed] = draw_split(
                self.data / name,
                self.folder,
                seed=seed,
                train_images=self.budget.train_images,
                val_images=self.budget.val_images,
            )
        return self._splits[name, seed]

    def make(
        self, name: str, seed: int, method: str, options: Mapping[str, Any], lr: float, epochs: int | None
    ) -> Trial:
        """A trial under the budget, or with epochs of its own."""
        budget = self.budget if epochs is None else dataclasses.replace(self.budget, epochs=epochs)
        digest = self.split(name, seed).digest
        return Trial(name, seed, method, dict(options), lr, budget, digest, BACKBONE, resolve(method, options))


def resolve(method: str, options: Mapping[str, Any]) -> Record:
    """A method's whole configuration, and those values of its recipe that no budget replaces."""
    recipe = dataclasses.asdict(METHODS[method].recipe)
    replaced = {field.name for field in dataclasses.fields(Budget)} | {"lr", "optimizer"}
    rest = {name: value for name, value in recipe.items() if name not in replaced}
    # Through JSON, as the results keep it.
    resolved: Record = json.loads(json.dumps({**dataclasses.asdict(configure(method, options)), "recipe": rest}))
    return resolved


class Unit(Protocol):
    """One row on one set."""

    study: Study
    dataset: str
    keeps: bool
    """Whether trained models are wanted after their validation."""

    @property
    def row(self) -> TunedRow | FixedRow:
        """What is measured."""

    def ready(self) -> list[Job]:
        """The work that can be done now; records what the results already decide."""

    def left(self) -> int:
        """How many trainings are missing."""

    def wanted(self) -> set[str]:
        """Keys of the trained models that are needed still."""

    def conflict(self) -> str | None:
        """Why tables will lack this unit, if they will."""


class TunedUnit:
    """Tunes on seed 0, trains the other seeds with the choice, and has each measured on the test images."""

    keeps = True

    def __init__(
        self, study: Study, row: TunedRow, name: str, seeds: int, trials: Trials, results: Results, ledger: Ledger
    ) -> None:
        self.study, self.row, self.dataset, self.seeds = study, row, name, seeds
        self._trials, self._results, self._ledger = trials, results, ledger

    def candidates(self) -> list[Trial]:
        """The tuning trials that are known so far: all learning rates, then the other size at the best of them."""
        first = [self._trial(0, self.row.options, lr) for lr in self.row.lrs]
        if not self.row.other or any(self._done(trial) is None for trial in first):
            return first
        lr = best([self._results.trials[trial.key] for trial in first])["lr"]
        return [*first, self._trial(0, {**self.row.options, **self.row.other}, lr)]

    def choice(self) -> Trial | None:
        """What tuning chose for seed 0, once all its trials are done."""
        candidates = self.candidates()
        done = [record for trial in candidates if (record := self._done(trial)) is not None]
        if len(done) < len(self.row.lrs) + bool(self.row.other):
            return None
        key = best(done)["key"]
        return next(trial for trial in candidates if trial.key == key)

    def ready(self) -> list[Job]:
        """Tuning, then the other seeds and the test readings."""
        choice = self.choice()
        if choice is None:
            return [Job(self, trial) for trial in self.candidates() if self._done(trial) is None]
        self._record(choice)
        jobs = []
        for trial in self._finals(choice):
            record = self._done(trial)
            if record is None:
                jobs.append(Job(self, trial))
            elif self._ledger.was_read(self.row.name, self.dataset, trial.seed) is None:
                if record["failed"]:
                    # A model that diverged is right about nothing, and needs no images to be so.
                    failed = {"failed": record["failed"], "test_accuracy": 0.0, "test_mean_class_accuracy": 0.0}
                    self._ledger.enter(self.row.name, trial.seed, trial, self._trials.base, failed)
                else:
                    jobs.append(Job(self, trial, test=True))
        return jobs

    def left(self) -> int:
        """Trainings that are missing, counting those that are not decided yet."""
        choice = self.choice()
        if choice is None:
            done = sum(self._done(trial) is not None for trial in self.candidates())
            return len(self.row.lrs) + bool(self.row.other) - done + self.seeds - 1
        return sum(self._done(trial) is None for trial in self._finals(choice))

    def wanted(self) -> set[str]:
        """Candidates until one is chosen, then the chosen ones until they are measured."""
        choice = self.choice()
        if choice is None:
            return {trial.key for trial in self.candidates()}
        unread = [t for t in self._finals(choice) if self._ledger.was_read(self.row.name, self.dataset, t.seed) is None]
        return {trial.key for trial in unread}

    def conflict(self) -> str | None:
        """Why the table will lack this unit: its test images were read for another model before."""
        choice = self.choice()
        for trial in self._finals(choice) if choice is not None else ():
            read = self._ledger.was_read(self.row.name, self.dataset, trial.seed)
            if read is not None and read["key"] != trial.key:
                return (
                    f"{self.row.name} on {self.dataset}, seed {trial.seed}: another model had "
                    f"the test images ({read['time']}), which are read once only; another budget needs another --work."
                )
        return None

    def _finals(self, choice: Trial) -> Iterator[Trial]:
        return (self._trial(seed, choice.options, choice.lr) for seed in range(self.seeds))

    def _trial(self, seed: int, options: Mapping[str, Any], lr: float) -> Trial:
        return self._trials.make(self.dataset, seed, self.row.method, options, lr, self.row.epochs)

    def _done(self, trial: Trial) -> Record | None:
        return self._results.trials.get(trial.key)

    def _record(self, choice: Trial) -> None:
        where = {"row": self.row.name, "set": self.dataset, "base": self._trials.base}
        last = self._results.last("choice", **where)
        if last is not None and last["key"] == choice.key:
            return
        inputs = choice.inputs()
        chosen = {name: inputs[name] for name in ("method", "options", "lr", "budget")}
        tried = [trial.key for trial in self.candidates()]
        self._results.append("choice", {**where, **chosen, "key": choice.key, "tried": tried})


class FixedUnit:
    """Trains a row of a study with the learning rate that a row of the comparison chose on the same set."""

    keeps = False

    def __init__(
        self,
        study: Study,
        row: FixedRow,
        name: str,
        seeds: int,
        trials: Trials,
        results: Results,
        undecided: Callable[[str, str], bool],
    ) -> None:
        self.study, self.row, self.dataset, self.seeds = study, row, name, seeds
        self._trials, self._results, self._undecided = trials, results, undecided

    def ready(self) -> list[Job]:
        """Everything, as soon as there is a learning rate."""
        jobs = []
        for trial in self._wanted_trials():
            if trial.key not in self._results.trials:
                jobs.append(Job(self, trial))
                continue
            where = {"study": self.study.name, "row": self.row.name, "set": self.dataset, "seed": trial.seed}
            use = {**where, "key": trial.key, "base": self._trials.base}
            last = self._results.last("use", **where, base=self._trials.base)
            if last is None or last["key"] != trial.key:
                self._results.append("use", use)
        return jobs

    def left(self) -> int:
        """Trainings that are missing."""
        trials = self._wanted_trials()
        return sum(trial.key not in self._results.trials for trial in trials) if trials else self.seeds

    def wanted(self) -> set[str]:
        """None: only validation metrics are of use."""
        return set()

    def conflict(self) -> str | None:
        """Why the table will lack this unit: nothing to take the learning rate from."""
        if self._results.last("choice", row=self.row.lr_from, set=self.dataset) is None:
            return (
                f"{self.row.name} on {self.dataset}: the comparison has not chosen a learning rate for "
                f"{self.row.lr_from!r} on this set yet; run --study methods first."
            )
        return None

    def _wanted_trials(self) -> list[Trial]:
        if self._undecided(self.row.lr_from, self.dataset):
            return []
        choice = self._results.last("choice", row=self.row.lr_from, set=self.dataset)
        if choice is None:
            return []
        row = self.row
        return [
            self._trials.make(self.dataset, seed, row.method, row.options, choice["lr"], row.epochs)
            for seed in range(self.seeds)
        ]


def sweep(models: Path, units: list[Unit], flying: set[str]) -> None:
    """Remove the trained models that nobody needs any more."""
    if not models.is_dir():
        return
    wanted = flying.union(*(unit.wanted() for unit in units))
    for folder in models.iterdir():
        if folder.name not in wanted:
            shutil.rmtree(folder, ignore_errors=True)
