"""The test images: who may see them, and once only."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.splits import write_test
from benchmarks.trial import Trial
from trimtab.bench.results import Record, Results


class LedgerError(Exception):
    """Somebody asked for the test images who may not see them."""


class Ledger:
    """Hands out the test images to the chosen model of a row, set and seed, once.

    Nothing else knows which images they are: their list is drawn here, into a folder of its own.

    Args:
        data: The folder of the sets.
        results: Where choices are read, and every reading is recorded.
        images: How many test images of each set, at the most.
    """

    def __init__(self, data: Path, results: Results, images: int) -> None:
        self._data, self._results, self._images = data, results, images
        self._folder = Path(tempfile.mkdtemp(prefix="trimtab-test-"))
        self._digests: dict[str, str] = {}

    def open(self, row: str, seed: int, trial: Trial, base: Record) -> Path:
        """The list of test images for the chosen model; the opening is recorded before it is given.

        Raises:
            LedgerError: If the trial is not the chosen one, or its row, set and seed were measured already.
        """
        if self.was_read(row, trial.set, seed) is not None:
            raise LedgerError(f"The test images of {trial.set} were read for {row!r}, seed {seed}, already.")
        choice = self._results.last("choice", row=row, set=trial.set, base=base)
        if choice is None:
            raise LedgerError(f"Nothing is chosen yet for {row!r} on {trial.set}.")
        inputs = trial.inputs()
        if seed != trial.seed or any(inputs[name] != choice[name] for name in ("method", "options", "lr", "budget")):
            raise LedgerError(f"Trial {trial.key} is not what was chosen for {row!r} on {trial.set}.")
        path = self._folder / f"{trial.set}.csv"
        if trial.set not in self._digests:
            self._digests[trial.set] = write_test(self._data / trial.set, path, self._images)
        others = self._results.last("test", set=trial.set, failed=None)
        if others is not None and others["test_digest"] != self._digests[trial.set]:
            raise LedgerError(
                f"On {trial.set}, {others['row']!r} was measured on {others['test_images']} other test images, and "
                "rows could not be compared; give the same --test-images."
            )
        self._results.append("test-opened", {"row": row, "set": trial.set, "seed": seed, "key": trial.key})
        return path

    def enter(self, row: str, seed: int, trial: Trial, base: Record, measured: dict[str, Any]) -> Record:
        """Record what was measured."""
        digest = self._digests.get(trial.set)
        where = {"row": row, "set": trial.set, "seed": seed, "key": trial.key, "base": base}
        return self._results.append("test", {**where, "test_digest": digest, **measured})

    def was_read(self, row: str, name: str, seed: int) -> Record | None:
        """The reading of this row, set and seed, under whatever budget."""
        return self._results.last("test", row=row, set=name, seed=seed)

    def close(self) -> None:
        """Forget the lists."""
        shutil.rmtree(self._folder, ignore_errors=True)
