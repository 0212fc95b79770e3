"""The table of tasks as text, for the command line and the documentation."""

from __future__ import annotations

from trimtab.bench import task_table
from trimtab.bench.task_table import BenchmarkTask
from trimtab.errors import ConfigError, nearest

COLUMNS = ("task", "group", "classes", "train", "val", "test", "source", "labels")


def rows(suite: str | None = None) -> list[tuple[str, ...]]:
    """Make a row of `COLUMNS` for each task of a suite, or of all suites.

    Raises:
        ConfigError: There is no such suite.
    """
    if suite is not None and suite not in task_table.TASKS:
        known = task_table.TASKS
        raise ConfigError(f"There is no suite {suite!r}; choose one of {', '.join(known)}.{nearest(suite, known)}")
    return [_row(task) for name, tasks in task_table.TASKS.items() if suite in (None, name) for task in tasks.values()]


def lines(suite: str | None = None) -> list[str]:
    """Align the rows under their column names, one a line."""
    table = [COLUMNS, *rows(suite)]
    widths = [max(len(row[column]) for row in table) for column in range(len(COLUMNS))]
    return ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


def source_in_words(task: BenchmarkTask) -> str:
    """Name the source of a task's images."""
    if task.archive is None:
        return f"hub {task.hub}"
    if task.archive.hub:
        return f"hub {task.archive.hub.partition('@')[0]}"
    return "by hand" if task.archive.by_hand else task.archive.url.split("/")[2]


def _row(task: BenchmarkTask) -> tuple[str, ...]:
    sizes = task.splits_written
    counts = (str(sizes[split]) if split in sizes else "-" for split in ("train", "val", "test"))
    return (
        f"{task.suite}/{task.name}",
        task.group,
        str(task.classes),
        *counts,
        source_in_words(task),
        task.label_order,
    )
