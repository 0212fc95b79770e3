"""The interface of task sources."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from trimtab.bench.task_table import BenchmarkTask
from trimtab.errors import DataError
from trimtab.progress import Progress

Key = tuple[str, int]
"""A split and a place in it."""


@dataclass(frozen=True)
class SourceImage:
    """An image of a source.

    Attributes:
        split: ``"train"``, ``"val"`` or ``"test"``.
        place: Its position in the split, from 0.
        label: The name of its class; empty for images with masks.
        path: Where it belongs in the prepared folder.
        content: The bytes of its file.
        mask: Where its mask belongs, and the bytes of that.
    """

    split: str
    place: int
    label: str
    path: str
    content: bytes = field(repr=False)
    mask: tuple[str, bytes] | None = field(default=None, repr=False)

    @property
    def key(self) -> Key:
        """Name that tells it from the others."""
        return self.split, self.place


class TaskSource(abc.ABC):
    """Source of the images of one task. Made without reading images; `fetch` comes before the rest.

    Attributes:
        task: The task.
        name: What the manifest says of the source.
        revision: Which edition of it; the same name and revision have the same images.
        copy: Whether it is known to be made from other copies by a program that stores JPEG.
    """

    copy = False

    def __init__(self, task: BenchmarkTask, name: str, revision: str) -> None:
        self.task, self.name, self.revision = task, name, revision

    @abc.abstractmethod
    def bytes_needed(self) -> tuple[int, int]:
        """Estimate the bytes to download and of the prepared images; 0 where unknown."""

    @abc.abstractmethod
    def fetch(self, progress: Progress) -> None:
        """Download everything that `pictures` needs and is not there yet.

        Raises:
            DataError: It cannot be had, or is not what it should be.
        """

    @abc.abstractmethod
    def classes(self) -> tuple[str, ...]:
        """Return the class names in the order of the source's labels."""

    @abc.abstractmethod
    def pictures(self, done: Set[Key]) -> Iterator[SourceImage]:
        """Yield the images that are not ``done``, in any order."""

    def extras(self) -> Mapping[str, bytes]:
        """Small files that belong to the prepared folder, by where they belong."""
        return {}

    def files(self) -> list[Mapping[str, object]]:
        """The files that were read, with their sizes and checksums, for the manifest."""
        return []

    def tidy(self) -> None:  # noqa: B027 - most sources have nothing to remove
        """Remove what was downloaded for this task alone."""


def numbered(count: int, first: int = 0) -> tuple[str, ...]:
    """Names for ``count`` classes that are known by number only; sorted they are in order."""
    width = len(str(first + count - 1))
    return tuple(f"{number:0{width}}" for number in range(first, first + count))


def inside_folder(path: str, where: str) -> str:
    """A path that a file of somebody else's names, checked to stay inside the folder it is put into.

    Raises:
        DataError: It would lead out of it.
    """
    parts = PurePosixPath(path.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or not parts.parts:
        raise DataError(f"{where} names {path!r}, which leads out of its folder; take the file from its own source.")
    return parts.as_posix()


def check_count(task: BenchmarkTask, split: str, found: int, where: str) -> None:
    """Refuse a split of another size than the benchmark's.

    Raises:
        DataError: With both numbers.
    """
    expected = task.splits_written.get(split, 0)
    if found != expected:
        raise DataError(
            f"{where} has {found} images in {split!r}, and {task.name} has {expected}; this is no complete copy of it."
        )
