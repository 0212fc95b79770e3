"""The tasks of a benchmark: prepared folders of a known suite, or the sets that a suite file names."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.bench.task_folder import SPLITS, read_manifest
from trimtab.bench.task_table import TASKS
from trimtab.data import (
    BUILT_IN,
    ImageSet,
    MaskSet,
    TrainingData,
    find_leaks,
    open_split,
)
from trimtab.data.labelled import nfc
from trimtab.data.listing import LEFT_OUT
from trimtab.errors import ConfigError, DataError, nearest
from trimtab.tasks import make_task, saved_task
from trimtab.tasks.base import Task

OWN = "own"
"""The variant of data that trimtab did not prepare."""
DAMAGED = "jpeg"
"""The variant of data whose images were stored again as JPEG."""
_CLASSIFIED = ("vtab1k", "fgvc")


@dataclass(frozen=True)
class SuiteTask:
    """A task of a suite."""

    suite: str
    name: str
    group: str
    data: str
    """What ``trimtab fit`` takes."""
    variant: str = OWN
    """``"lossless"``, ``"jpeg"`` or ``"original"`` of prepared data; ``"own"`` otherwise."""
    classes: tuple[str, ...] | None = None
    """All class names, where the data may have some that no training image shows."""
    splits: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Of prepared data: for each split the number of images, and the digest of their pixels and labels."""
    kind: Task = dataclasses.field(default_factory=make_task)
    """What is asked of its images."""


def open_suite(
    suite: str, root: str | None = None, tasks: Sequence[str] = (), kind: Task | None = None
) -> list[SuiteTask]:
    """Open the tasks of a suite, in its order.

    Args:
        suite: ``"vtab1k"``, ``"fgvc"``, or a CSV file with the columns task and data, perhaps group.
        root: The folder of ``trimtab data prepare``, for the suites of that name.
        tasks: Only these; by default all.
        kind: What is asked of the images of a CSV file; by default their class.

    Raises:
        ConfigError: If there is no such suite or task, or damaged and whole copies would stand in one table.
        DataError: If a task is not prepared, or the file cannot be used.
    """
    found = _prepared(suite, root, tasks) if suite in TASKS else _of_file(Path(suite), tasks, kind or make_task())
    check_variants((task.name, task.variant) for task in found)
    return found


def check_variants(variants: Iterable[tuple[str, str]]) -> None:
    """Make sure that tasks, given as (name, variant), may stand in one table.

    Raises:
        ConfigError: If some were stored again as JPEG and others were not.
    """
    found = sorted(set(variants))
    damaged = [name for name, variant in found if variant == DAMAGED]
    whole = [f"{name} ({variant})" for name, variant in found if variant != DAMAGED]
    if damaged and whole:
        raise ConfigError(
            f"{', '.join(damaged)} were stored again as JPEG and {', '.join(whole)} were not; numbers on the two are "
            "not comparable and never share a table: prepare all tasks from one source, or name some with --tasks."
        )


def _prepared(suite: str, root: str | None, tasks: Sequence[str]) -> list[SuiteTask]:
    if suite not in _CLASSIFIED:
        raise ConfigError(f"The suite {suite!r} is segmentation, which bench does not run; see fit --task.")
    if root is None:
        raise ConfigError(f"Where the tasks of {suite} are is not said; name the folder of data prepare with --root.")
    table = TASKS[suite]
    _check_names(tasks, table, suite)
    found = []
    for name in tasks or table:
        folder = Path(root) / suite / name
        if not folder.is_dir():
            raise DataError(
                f"There is no {str(folder)!r}; make it with `trimtab data prepare {suite} --tasks {name} "
                f"--root {root}`, or leave the task out with --tasks."
            )
        manifest = read_manifest(folder)
        classes, splits = tuple(map(nfc, manifest["classes"])), manifest["splits"]
        data, variant = str(folder / SPLITS), manifest["variant"]
        found.append(SuiteTask(suite, name, table[name].group, data, variant, classes, splits))
    return found


def _of_file(path: Path, tasks: Sequence[str], kind: Task) -> list[SuiteTask]:
    rows = _rows(path)
    names = [row["task"] for row in rows]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{path} names the task {twice[0]!r} twice; give each row a name of its own.")
    _check_names(tasks, names, str(path))
    found = [
        SuiteTask(path.stem, row["task"], row.get("group") or "all", _data(path, row["data"]), kind=kind)
        for row in rows
        if not tasks or row["task"] in tasks
    ]
    for task in found:
        if "test" not in kind.named_splits(task.data):
            raise DataError(f"{path}: {task.data} has no test images to report on; put some into test/.")
    return found


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        hint = nearest(str(path), _CLASSIFIED)
        raise ConfigError(f"There is no suite {str(path)!r}.{hint} Take vtab1k, fgvc or a CSV file (task,data,group).")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [{name: (row[name] or "").strip() for name in row if name} for row in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as CSV ({error}); save it as CSV in UTF-8.") from error
    if not rows or not {"task", "data"} <= rows[0].keys():
        raise DataError(f"{path} needs the columns task,data (and perhaps group) and a row for each set.")
    for number, row in enumerate(rows, start=2):
        if not row["task"] or not row["data"]:
            raise DataError(f"{path}, row {number}: task or data is blank; fill it in or remove the row.")
    return rows


def _data(path: Path, text: str) -> str:
    """Return the data for ``fit``; paths start at the suite file's own folder."""
    beside = path.parent / text
    return str(beside) if beside.exists() or text not in BUILT_IN else text


def _check_names(asked: Sequence[str], known: Iterable[str], where: str) -> None:
    known = list(known)
    for name in asked:
        if name not in known:
            hint = nearest(name, known)
            raise ConfigError(f"{where} has no task {name!r}.{hint} Choose of: {', '.join(known)}.")


# --- the images ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parts:
    """Training and validation images of a task, without test images."""

    tuning: TrainingData
    """Trained on train, chosen on val."""
    final: TrainingData
    """Both together, and nothing to choose on."""
    digest: str
    """Of names, sizes and labels of all of these images."""


def open_parts(task: SuiteTask, val_fraction: float) -> Parts:
    """Open the training and validation images of a task.

    Where its data names no validation images, the split is the one that ``fit`` makes with seed 0.

    Raises:
        DataError: If the data cannot be used, or has nothing to choose on.
    """
    if task.classes is None:
        tuning = task.kind.open_training(task.data, val_fraction, 0)
    else:
        train, val = (open_split(task.data, split, task.classes) for split in ("train", "val"))
        tuning = TrainingData(train, val, "csv", False, ())
    if not len(tuning.val):
        raise DataError(f"{task.data} has no validation images to choose on; use a --val-fraction above 0.")
    train, val = tuning.train, tuning.val
    final = TrainingData(_joined(train, val), train.select((), "val"), tuning.source, False, ())
    return Parts(tuning, final, _digest([*task.kind.identity(train), *task.kind.identity(val)]))


def _joined(train: ImageSet, val: ImageSet) -> ImageSet:
    both: dict[str, Any] = {"paths": train.paths + val.paths, "labels": train.labels + val.labels}
    if isinstance(train, MaskSet) and isinstance(val, MaskSet):
        both["masks"] = train.masks + val.masks
    return dataclasses.replace(train, notes=(), left_out=0, **both)


def check_duplicates(task: SuiteTask, parts: Parts, duplicates: str) -> list[str]:
    """Compare the files of a task's splits, and return notes on images in two of them and on those left out.

    Test images are read as files, and not decoded.

    Args:
        task: The task.
        parts: Its training and validation images.
        duplicates: ``"refuse"`` or ``"keep"``. What trimtab prepared is kept: its splits are published as they are.

    Raises:
        DataError: There are some and they are refused, or one file is in two splits.
    """
    tuning = parts.tuning
    compared = (tuning.train.part, tuning.val.part, task.kind.held_out(task.data))
    leaks = find_leaks(task.data, compared, made=tuning.split_made)
    if leaks.copies and duplicates == "refuse" and task.variant == OWN:
        raise DataError(
            f"{task.name} ({task.data}) has the same images in two splits, which its test accuracy would count: "
            f"{' '.join(leaks.copies)} Remove them from one split, or measure all the same with --duplicates keep."
        )
    return [f"{task.name}: {note}" for note in (*left_out(tuning.notes), *leaks.notes)]


def left_out(notes: Sequence[str]) -> list[str]:
    """Select the notes on images that cannot be decoded."""
    return [note for note in notes if note.startswith(LEFT_OUT)]


def open_test(task: SuiteTask, train: ImageSet) -> ImageSet:
    """Open the test images of a task, labelled as its training images are; only the ledger asks for them."""
    saved = saved_task(task.kind.name, task.kind.saved(train))
    return saved.open_split(task.data, "test", train.classes, Path())


def _digest(identity: Iterable[tuple[Any, ...]]) -> str:
    """Return a short name for labelled images, the same wherever they lie."""
    digest = hashlib.sha256()
    for entry in identity:
        digest.update(repr(entry).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]
