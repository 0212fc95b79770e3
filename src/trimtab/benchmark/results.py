"""What was measured: one JSON line for each thing that happened, appended at once and never changed.

| kind | what |
|---|---|
| trial | a training and its validation metrics; ``key`` names it |
| choice | what tuning chose for a row and task, and the trials it chose from |
| test-opened | that the ledger let a chosen model see the test images |
| test | what was measured on them |

``benchmarks/`` of the repository has one more, ``use``: that a row of a study with fixed settings shows a trial.
"""

from __future__ import annotations

import datetime as dt
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from trimtab.errors import DataError

Record: TypeAlias = "dict[str, Any]"

_NAMES = (("key",), ("row", "task"))
"""What lines are found by without looking at all of them: a trial, or a cell of the table."""


class Results:
    """The lines of ``path``; another process of ours must not write them at the same time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: dict[str, list[Record]] = {}
        self.trials: dict[str, Record] = {}
        self._named: dict[tuple[str, ...], list[Record]] = {}
        for record in _read(path):
            self._take(record)

    def append(self, kind: str, values: Mapping[str, Any]) -> Record:
        """Write a line and make sure that it is on the disk."""
        now = dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds")
        record = {"kind": kind, "time": now, **values}
        # Through JSON, so that what is in memory is what a later run reads.
        line = json.dumps(record, ensure_ascii=False)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._take(json.loads(line))
        return self.records[kind][-1]

    def find(self, kind: str, **values: Any) -> list[Record]:
        """The lines of a kind with these values, oldest first."""
        return [
            record
            for record in self._among(kind, values)
            if all(record.get(name) == value for name, value in values.items())
        ]

    def last(self, kind: str, **values: Any) -> Record | None:
        """The newest such line."""
        found = self.find(kind, **values)
        return found[-1] if found else None

    def _among(self, kind: str, values: Mapping[str, Any]) -> Sequence[Record]:
        """Few lines of a kind that have all with these values among them: a long run asks often."""
        for names in _NAMES:
            if all(isinstance(values.get(name), str) for name in names):
                return self._named.get((kind, *names, *(values[name] for name in names)), ())
        return self.records.get(kind, ())

    def _take(self, record: Record) -> None:
        kind = record["kind"]
        self.records.setdefault(kind, []).append(record)
        for names in _NAMES:
            named: list[Any] = [record.get(name) for name in names]
            if all(isinstance(value, str) for value in named):
                self._named.setdefault((kind, *names, *named), []).append(record)
        if record["kind"] == "trial":
            self.trials[record["key"]] = record


def best(trials: Iterable[Record]) -> Record:
    """The trial with the best validation accuracy; of equal ones the lower validation loss, then the first.

    One that was stopped early or diverged is taken only where there is no other.
    """

    def rank(trial: Record) -> tuple[bool, float, float]:
        loss, whole = trial["val_loss"], not trial.get("pruned") and not trial.get("failed")
        return whole, trial["val_accuracy"], -loss if loss is not None else float("-inf")

    return max(trials, key=rank)


def repair(path: Path) -> None:
    """Remove the half of a line that a killed run may have left at the end, before new lines follow it."""
    if not path.is_file():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)


def _read(path: Path) -> list[Record]:
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")
    records = []
    # After the last line break there is nothing, or half a line.
    for number, line in enumerate(lines[:-1], start=1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise DataError(f"{path}, line {number} is no JSON ({error}); remove the line.") from error
    return records
