"""Task sources: the hub, archives, and trees of images."""

from __future__ import annotations

from pathlib import Path

from trimtab.bench.task_sources.ade20k import SceneArchive
from trimtab.bench.task_sources.base import SourceImage, TaskSource
from trimtab.bench.task_sources.hub import HubParquet
from trimtab.bench.task_sources.listed import ListedArchive
from trimtab.bench.task_sources.noah import NoahTree
from trimtab.bench.task_table import BenchmarkTask

__all__ = ["SourceImage", "TaskSource", "source_of"]


def source_of(
    task: BenchmarkTask, downloads: Path, given: Path | None = None, revision: str | None = None
) -> TaskSource:
    """Choose the source of a task.

    Args:
        task: Which one.
        downloads: Where what is downloaded is kept until the task is prepared.
        given: For VTAB-1k a tree of NOAH's layout; otherwise a folder of archives.
        revision: For VTAB-1k, which revision of the hub's data set; a tree has none.

    Raises:
        DataError: It cannot be had.
        ConfigError: It needs a package that is not installed.
    """
    if task.suite == "ade20k":
        return SceneArchive(task, downloads, given)
    if task.suite == "fgvc":
        return ListedArchive(task, downloads, given)
    return HubParquet(task, downloads, revision) if given is None else NoahTree(task, given)
