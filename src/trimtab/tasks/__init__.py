"""Tasks: what is asked of an image, how an answer is judged, and what data it is learned from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trimtab.errors import ConfigError, nearest
from trimtab.tasks.base import Metrics, Task
from trimtab.tasks.classification import Classification, classification_loss, classification_metrics
from trimtab.tasks.segmentation import Segmentation, SegmentationConfig

TASKS: Mapping[str, type[Task]] = {task.name: task for task in (Classification, Segmentation)}


def make_task(name: str, options: Mapping[str, Any] | None = None) -> Task:
    """The task of that name, with the options of a run.

    Raises:
        ConfigError: If there is no such task or option, or the options cannot work.
    """
    return _task(name).of_options(dict(options or {}))


def saved_task(name: str, values: Mapping[str, Any]) -> Task:
    """The task of an adapter: its name and what :meth:`Task.saved` gave.

    Raises:
        ConfigError: If there is no such task.
        CheckpointError: If the values are others.
    """
    return _task(name).of_saved(values)


def _task(name: str) -> type[Task]:
    if name not in TASKS:
        raise ConfigError(f"There is no task {name!r}.{nearest(name, TASKS)} Choose one of: {', '.join(TASKS)}.")
    return TASKS[name]


__all__ = [
    "TASKS",
    "Classification",
    "Metrics",
    "Segmentation",
    "SegmentationConfig",
    "Task",
    "classification_loss",
    "classification_metrics",
    "make_task",
    "saved_task",
]
