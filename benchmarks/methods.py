"""Run the comparison of methods and the studies; the same command again goes on where it was stopped.

    python benchmarks/methods.py --study all

Every row and set gets the same number of tuning trials on validation images; the test images are read once for each
row, set and seed, for the model that was chosen. ``benchmarks/studies.py`` says what is run, ``benchmarks/tables.py``
shows it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

if not __package__:
    # Run as a file: the package is found from its parent, and its modules not as top-level ones.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.ledger import Ledger, LedgerError
from benchmarks.plan import FixedUnit, Job, Trials, TunedUnit, Unit, sweep
from benchmarks.studies import BACKBONE, SETS, STUDIES, Row, Study, TunedRow
from benchmarks.trial import Budget, Place, read_test, run_trial
from trimtab.bench.results import Results, repair
from trimtab.bench.workers import THREADS, alone, set_up_worker
from trimtab.errors import ConfigError, TrimtabError, nearest
from trimtab.progress import TerminalProgress, clock


class Run:
    """The parent process: gives jobs to workers and writes down what they return."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.work: Path = arguments.work
        self.workers: int = arguments.workers
        self.device: str = arguments.device
        self.weights: Path = arguments.shared / "weights" / f"{BACKBONE}.fp16.safetensors"
        self.progress = TerminalProgress()
        repair(self.work / "trials.jsonl")
        self.results = Results(self.work / "trials.jsonl")
        fields = ("train_images", "val_images", "epochs", "batch_size", "image_size", "warmup_epochs", "probe_epochs")
        budget = Budget(**{name: getattr(arguments, name) for name in fields})
        self.trials = Trials(arguments.shared / "data", self.work / "splits", budget)
        self.ledger = Ledger(arguments.shared / "data", self.results, arguments.test_images)
        self.units = self._units(arguments)
        self.broken: dict[tuple[str, str, str], str] = {}
        self.flying: dict[Future[dict[str, Any]], Job] = {}
        self.done = 0

    def _units(self, arguments: argparse.Namespace) -> list[Unit]:
        units: list[Unit] = []
        studies = list(STUDIES.values()) if arguments.study == "all" else [STUDIES[arguments.study]]
        check_rows(arguments.rows or [], studies)
        for study in studies:
            seeds = arguments.seeds or study.seeds
            for row in study.rows:
                if arguments.rows and row.name not in arguments.rows:
                    continue
                reason = unusable(row)
                if reason:
                    self.progress.say(f"Skipped: {study.name}, {row.name}: {reason}")
                    continue
                for name in arguments.sets:
                    if isinstance(row, TunedRow):
                        units.append(TunedUnit(study, row, name, seeds, self.trials, self.results, self.ledger))
                    else:
                        units.append(FixedUnit(study, row, name, seeds, self.trials, self.results, self.undecided))
        return units

    def undecided(self, row: str, name: str) -> bool:
        """Whether this run is going to choose a learning rate for a row and set, and has not yet."""
        mine = [u for u in self.units if isinstance(u, TunedUnit) and (u.row.name, u.dataset) == (row, name)]
        return any(unit.choice() is None and unit_name(unit) not in self.broken for unit in mine)

    def go(self) -> int:
        """Work until nothing can be done; the exit status."""
        self.progress.say(f"{sum(unit.left() for unit in self.units)} trainings are missing; results in {self.work}.")
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(self.workers, mp_context=context, initializer=set_up_worker)
        try:
            while self._submit(pool):
                finished, _ = wait(self.flying, return_when=FIRST_COMPLETED)
                for future in finished:
                    self._finish(self.flying.pop(future), future)
                sweep(self.work / "models", self.units, {job.trial.key for job in self.flying.values()})
        except (KeyboardInterrupt, BrokenProcessPool) as error:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            what = "Stopped" if isinstance(error, KeyboardInterrupt) else "A worker process died"
            self.progress.say(f"{what}; the same command goes on from here.")
            return 130
        pool.shutdown()
        return self._close()

    def _submit(self, pool: ProcessPoolExecutor) -> bool:
        """Keep every worker busy; whether anything is being worked on."""
        names = {job.name for job in self.flying.values()}
        keys = {job.trial.key for job in self.flying.values()}
        for unit in self.units:
            if unit_name(unit) in self.broken:
                continue
            # Also with all workers busy: asking a unit records what is decided.
            for job in unit.ready():
                if len(self.flying) >= self.workers or job.name in names or job.trial.key in keys:
                    continue
                try:
                    future = self._start(pool, job)
                except LedgerError as error:
                    self._spoil(job, error)
                    break
                self.flying[future] = job
                names.add(job.name)
                keys.add(job.trial.key)
        return bool(self.flying)

    def _start(self, pool: ProcessPoolExecutor, job: Job) -> Future[dict[str, Any]]:
        trial = job.trial
        split = self.trials.split(trial.set, trial.seed)
        place = Place(split, self.weights, self.work / "models" / trial.key, self.device)
        if not job.test:
            return pool.submit(run_trial, trial, place, job.unit.keeps)
        images = self.ledger.open(job.unit.row.name, trial.seed, trial, self.trials.base)
        return pool.submit(read_test, trial, place, images)

    def _finish(self, job: Job, future: Future[dict[str, Any]]) -> None:
        trial, row = job.trial, job.unit.row.name
        what = f"{trial.set}, {row}, lr {trial.lr:g}, seed {trial.seed}"
        try:
            record = future.result()
        except BrokenProcessPool:
            raise
        except Exception as error:  # noqa: BLE001
            self._spoil(job, error)
            return
        self.done += 1
        if job.test:
            self.ledger.enter(row, trial.seed, trial, self.trials.base, record)
            told = f"test {record['test_accuracy']:.3f}"
        else:
            self.results.append("trial", {"key": trial.key, **trial.inputs(), **record})
            told = f"val {record['val_accuracy']:.3f}, {record['wall_seconds']:.0f} s"
            told += ", diverged" if record["failed"] else ""
        self.progress.say(f"{self.done} done, {self._left()}: {job.unit.study.name}, {what}: {told}")

    def _spoil(self, job: Job, error: Exception) -> None:
        """One broken row is no reason to lose a night; it is told again at the end."""
        trial = job.trial
        what = f"{trial.set}, {job.unit.row.name}, lr {trial.lr:g}, seed {trial.seed}"
        self.broken[unit_name(job.unit)] = f"{what}: {type(error).__name__}: {error}"
        self.progress.say(f"BROKEN {self.broken[unit_name(job.unit)]}")

    def _left(self) -> str:
        """How much is missing, by the seconds that trials of the same method and epochs took."""
        took: dict[tuple[str, int], list[float]] = {}
        for trial in self.results.trials.values():
            took.setdefault((trial["method"], trial["budget"]["epochs"]), []).append(trial["wall_seconds"])
        every = [seconds for values in took.values() for seconds in values] or [0.0]
        count, seconds = 0, 0.0
        for unit in self.units:
            left = 0 if unit_name(unit) in self.broken else unit.left()
            mine = took.get((unit.row.method, unit.row.epochs or self.trials.budget.epochs), every)
            count, seconds = count + left, seconds + left * sum(mine) / len(mine)
        return f"{count} trainings left, about {clock(seconds / self.workers)}"

    def _close(self) -> int:
        conflicts = [reason for unit in self.units if (reason := unit.conflict())]
        for text in (*conflicts, *self.broken.values()):
            self.progress.say(f"NOT DONE {text}")
        self.progress.say("Nothing is left to do." if not conflicts and not self.broken else "The rest is done.")
        return 1 if self.broken or conflicts else 0


def unit_name(unit: Unit) -> tuple[str, str, str]:
    """Study, row and set."""
    return unit.study.name, unit.row.name, unit.dataset


def check_rows(names: list[str], studies: list[Study]) -> None:
    """Make sure that rows of these names are there.

    Raises:
        ConfigError: If one is not, with the nearest names.
    """
    known = [row.name for study in studies for row in study.rows]
    for name in names:
        if name not in known:
            raise ConfigError(f"There is no row {name!r}.{nearest(name, known)}")


def unusable(row: Row) -> str | None:
    """Why this trimtab cannot run a row, if it cannot."""
    from trimtab.methods import configure

    try:
        configure(row.method, row.options)
        if isinstance(row, TunedRow):
            configure(row.method, {**row.options, **row.other})
    except Exception as error:  # noqa: BLE001
        # Whatever is wrong with a method that is being written, the other rows can run.
        return f"{type(error).__name__}: {error}"
    return None


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    budget = Budget()
    parser = argparse.ArgumentParser(description="Compare the methods, or run a study; goes on where it was stopped.")
    parser.add_argument("--study", choices=[*STUDIES, "all"], default="methods")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--rows", nargs="+", help="only these rows, by name")
    parser.add_argument("--seeds", type=int, help="how many; by default the study's own number")
    parser.add_argument("--train-images", type=int, default=budget.train_images)
    parser.add_argument("--val-images", type=int, default=budget.val_images)
    parser.add_argument("--test-images", type=int, default=400, help="at the most; only the comparison reads them")
    parser.add_argument("--epochs", type=int, default=budget.epochs)
    parser.add_argument("--warmup-epochs", type=float, default=budget.warmup_epochs)
    parser.add_argument("--probe-epochs", type=int, default=budget.probe_epochs)
    parser.add_argument("--batch-size", type=int, default=budget.batch_size)
    parser.add_argument("--image-size", type=int, default=budget.image_size)
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--device", choices=["auto", "cpu"], default="cpu", help="auto takes a GPU where there is one")
    parser.add_argument("--work", type=Path, default=Path("runs/methods"))
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="folder with data/ and weights/")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line says."""
    parsed = parse(arguments)
    # Before any worker starts: libraries read it when they are imported.
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        with alone(parsed.work):
            run = Run(parsed)
            try:
                return run.go()
            finally:
                run.ledger.close()
    except (TrimtabError, LedgerError, OSError, ValueError) as error:
        TerminalProgress().say(f"{type(error).__name__}: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
