"""The table of tasks against the published tables."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from trimtab.bench.task_table import SUITES, TASKS

PUBLISHED = Path(__file__).parents[2].parent / "shared" / "published"


def columns(name: str) -> list[str]:
    """The data sets of a published table, in its order."""
    if not PUBLISHED.is_dir():
        pytest.skip("no ../shared/published")
    with (PUBLISHED / name).open(encoding="utf-8", newline="") as file:
        names = dict.fromkeys(row["dataset"] for row in csv.DictReader(file))
    return [name for name in names if not name.startswith("mean")]


def test_there_are_nineteen_five_and_one() -> None:
    assert tuple(TASKS) == SUITES
    assert [len(tasks) for tasks in TASKS.values()] == [19, 5, 1]
    assert all(task.name == name and task.suite == suite for suite in TASKS for name, task in TASKS[suite].items())


@pytest.mark.parametrize(("suite", "table"), [("vtab1k", "vtab1k_per_task.csv"), ("fgvc", "fgvc.csv")])
def test_tasks_are_those_of_the_published_tables_in_their_order(suite: str, table: str) -> None:
    published = columns(table)
    assert sorted(TASKS[suite]) == sorted(published)
    assert list(TASKS[suite]) == published


def test_vtab_has_seven_four_and_eight_tasks_of_a_thousand_images() -> None:
    groups = [task.group for task in TASKS["vtab1k"].values()]
    assert groups == ["natural"] * 7 + ["specialized"] * 4 + ["structured"] * 8
    for task in TASKS["vtab1k"].values():
        assert (task.sizes["train800"], task.sizes["val200"], task.sizes["train800val200"]) == (800, 200, 1000)
        assert task.splits_written == {"train": 800, "val": 200, "test": task.sizes["test"]}
    assert len({task.hub for task in TASKS["vtab1k"].values()}) == 19


def test_raw_sources_are_told_from_photographs() -> None:
    lossless = {name for name, task in TASKS["vtab1k"].items() if task.lossless}
    assert {"cifar100", "svhn", "dsprites_loc", "smallnorb_azi", "clevr_count"} <= lossless
    assert not lossless & {"caltech101", "sun397", "oxford_iiit_pet", "dtd", "diabetic_retinopathy"}
