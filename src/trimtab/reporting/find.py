"""Findings of a run's images, by its task."""

from __future__ import annotations

import importlib
from typing import Protocol

from trimtab.errors import ConfigError
from trimtab.progress import Progress
from trimtab.reporting.findings import EvaluationOptions, Findings, LoadedRun, open_run
from trimtab.reporting.runs import Run
from trimtab.tasks.base import Task


class _Find(Protocol):
    def __call__(self, looked: LoadedRun, *, mistakes: int, examples: int, progress: Progress) -> Findings: ...


def find(run: Run, asked: EvaluationOptions, *, mistakes: int, examples: int, progress: Progress) -> Findings:
    """Run a model over labelled images.

    Args:
        run: The run whose model it is.
        asked: Which images; without data, those that the run was validated on.
        mistakes: How many of the worst to keep.
        examples: How many images to look at closely.
        progress: Reports progress.

    Raises:
        TrimtabError: If the images, the backbone or the adapter cannot be used, or there are no pictures of its task.
    """
    find_of_task = _finder(run.task)
    looked = open_run(run, asked)
    for note in looked.images.notes:
        progress.say(note)
    return find_of_task(looked, mistakes=mistakes, examples=examples, progress=progress)


def _finder(task: Task) -> _Find:
    if task.figures is None:
        raise ConfigError(f"a report has no pictures of {task.name}; `trimtab eval` measures it.")
    module, _, name = task.figures.partition(":")
    found: _Find = getattr(importlib.import_module(module), name)
    return found
