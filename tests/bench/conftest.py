"""Fixtures of benchmarks: a small table, and a server in the hub's place."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.bench.made import small_tasks
from tests.bench.task_sources.server import Server, served
from trimtab.bench import task_table
from trimtab.bench.task_table import BenchmarkTask

Tasks = dict[str, dict[str, BenchmarkTask]]


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> Tasks:
    """The table, with a few images and classes in place of each task's."""
    table = small_tasks()
    monkeypatch.setattr(task_table, "TASKS", table)
    return table


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """An empty hub, which is the hub for the length of a test."""
    with served() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.address)
        yield running
