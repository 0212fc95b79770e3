"""The table of tasks in words, and the documentation's."""

from __future__ import annotations

from pathlib import Path

import pytest

from trimtab.bench.list_tasks import COLUMNS, lines, rows, source_in_words
from trimtab.bench.task_table import TASKS
from trimtab.errors import ConfigError

DOCS = Path(__file__).parents[2] / "docs" / "benchmarks-data.md"


def test_every_task_has_a_row() -> None:
    assert [row[0] for row in rows()] == [f"{suite}/{name}" for suite, tasks in TASKS.items() for name in tasks]
    assert rows("ade20k") == [
        (
            "ade20k/ade20k",
            "segmentation",
            "150",
            "20210",
            "2000",
            "-",
            "data.csail.mit.edu",
            "objectInfo150.txt; 0 in a mask is none of them and ignored",
        )
    ]
    assert len(lines()) == 26
    assert lines("fgvc")[0].split() == list(COLUMNS)
    assert lines("fgvc")[2].split()[:7] == ["fgvc/nabirds", "fgvc", "555", "21536", "2393", "24633", "by"]
    with pytest.raises(ConfigError, match="no suite 'vtab'; choose one of vtab1k, fgvc, ade20k"):
        rows("vtab")


def test_the_documentation_has_the_table() -> None:
    text = DOCS.read_text(encoding="utf-8")
    for suite, tasks in TASKS.items():
        for name, task in tasks.items():
            sizes = task.splits_written
            counts = " | ".join(str(sizes.get(split, "-")) for split in ("train", "val", "test"))
            assert f"| `{name}` | {task.group} | {task.classes} | {counts} | {task.label_order} |" in text, name
            assert source_in_words(task).removeprefix("hub ") in text, f"{suite}/{name}"
            if task.archive is not None:
                assert task.archive.file in text
                assert task.archive.url in text
