"""A tree of NOAH's layout, which most of the field's repositories read: a folder a task, images and lists."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Iterator, Set
from pathlib import Path
from typing import TypeAlias

from trimtab.bench.pixels import SUFFIXES, format_of
from trimtab.bench.task_sources.base import Key, SourceImage, TaskSource, check_count, inside_folder, numbered
from trimtab.bench.task_table import BenchmarkTask
from trimtab.errors import DataError
from trimtab.progress import Progress

TreePath: TypeAlias = "Path | zipfile.Path"
_LISTS = {"train": "train800.txt", "val": "val200.txt", "test": "test.txt"}
_SAMPLE = 8
"""Images of each split by which the size of all is guessed."""
_TOP = ("", "vtab-1k", "vtab_1k", "vtab1k")
"""Where the folders of the tasks may start."""


class NoahTree(TaskSource):
    """One task of a tree: ``NAME/images/.../*.jpg`` and the lists ``train800.txt``, ``val200.txt``, ``test.txt``.

    A line of a list is ``images/train800/000000.jpg 307``. The converter that made the trees that are passed around
    stores JPEG, whatever the images were; see ``copy``.

    Args:
        task: A task of VTAB-1k.
        tree: The folder that holds the folders of the tasks, or a zip file of it.

    Raises:
        DataError: The tree does not have the task whole.

    References:
        | Zhang et al., Neural Prompt Search (2022)
        | https://github.com/ZhangYuanhan-AI/NOAH
    """

    copy = True

    def __init__(self, task: BenchmarkTask, tree: Path) -> None:
        self._home = _folder(task, tree)
        self._rows = {split: _rows(task, self._home, split) for split in _LISTS}
        lists = b"".join(_content(self._home, name) for name in _LISTS.values())
        super().__init__(task, "tree of NOAH's layout", f"lists sha256:{hashlib.sha256(lists).hexdigest()}")
        sizes = [len(_content(self._home, path)) for rows in self._rows.values() for path, _ in rows[:_SAMPLE]]
        self._bytes = sum(sizes) // max(1, len(sizes)) * sum(len(rows) for rows in self._rows.values())

    def bytes_needed(self) -> tuple[int, int]:
        """Estimate from the first images of each split; nothing is downloaded."""
        return 0, self._bytes

    def fetch(self, progress: Progress) -> None:
        """Download nothing: the images are there."""

    def classes(self) -> tuple[str, ...]:
        """The lists have numbers only."""
        return numbered(self.task.classes)

    def pictures(self, done: Set[Key]) -> Iterator[SourceImage]:
        """Each file as it is, under a name of its split and place."""
        names = self.classes()
        for split, rows in self._rows.items():
            for place, (path, label) in enumerate(rows):
                if (split, place) in done:
                    continue
                content = _content(self._home, path)
                suffix = SUFFIXES[format_of(content, f"{self._home / path}")]
                yield SourceImage(split, place, names[label], f"images/{split}/{place:05}{suffix}", content)


def _folder(task: BenchmarkTask, tree: Path) -> TreePath:
    """Folder of the task in a tree."""
    top: TreePath = tree
    if tree.is_file():
        try:
            top = zipfile.Path(tree)
        except zipfile.BadZipFile as error:
            raise DataError(f"{tree} is no zip file that can be read ({error}); give a folder or zip file.") from None
    elif not tree.is_dir():
        raise DataError(f"{tree} does not exist; name the folder with {task.folders[0]}/train800.txt in it.")
    for above in _TOP:
        for name in task.folders:
            home = top / above / name if above else top / name
            if (home / _LISTS["train"]).is_file():
                return home
    raise DataError(
        f"{tree} has no {' or '.join(f'{name}/train800.txt' for name in task.folders)}; {task.name} needs there the "
        f"lists {', '.join(_LISTS.values())} and the images that they name."
    )


def _content(home: TreePath, path: str) -> bytes:
    """The bytes of a file of the tree."""
    try:
        return (home / path).read_bytes()
    except (OSError, KeyError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{home / path} cannot be read ({error}); copy it again.") from error


def _rows(task: BenchmarkTask, home: TreePath, split: str) -> list[tuple[str, int]]:
    """Paths and labels of a list."""
    name = _LISTS[split]
    lines = _content(home, name).decode("utf-8", errors="backslashreplace").splitlines()
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        path, _, label = line.strip().rpartition(" ")
        if not path or not label.isdecimal() or int(label) >= task.classes:
            raise DataError(
                f"{home / name}, line {number}: {line!r} is no path and label from 0 to {task.classes - 1}; this is "
                f"no list of {task.name}."
            )
        rows.append((inside_folder(path, f"{home / name}"), int(label)))
    check_count(task, split, len(rows), f"{home / name}")
    return rows
