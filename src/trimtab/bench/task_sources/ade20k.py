"""ADE20K as its makers give it away: images and masks of training and validation, and the list of classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from pathlib import Path, PurePosixPath

from trimtab.bench.task_sources.archives import Fetched, opened, real_names
from trimtab.bench.task_sources.base import Key, SourceImage, TaskSource, check_count
from trimtab.bench.task_table import BenchmarkTask
from trimtab.errors import DataError
from trimtab.progress import Progress

_SPLITS = {"train": "training", "val": "validation"}
_LIST = "objectInfo150.txt"


class SceneArchive(TaskSource):
    """``images/{training,validation}/*.jpg``, ``annotations/.../*.png`` and ``objectInfo150.txt`` of an archive.

    Args:
        task: ADE20K.
        downloads: Where the archive is kept until the task is prepared.
        given: The user's folder with the archive, if there is one.

    Raises:
        DataError: The archive cannot be had.
    """

    def __init__(self, task: BenchmarkTask, downloads: Path, given: Path | None = None) -> None:
        if task.archive is None:
            raise DataError(f"{task.name} has no archive; it comes from elsewhere.")
        self._archive = Fetched(task, task.archive, downloads, given)
        super().__init__(task, self._archive.where, "the only one there is")
        self._pairs: dict[str, list[tuple[str, str]]] = {}
        self._list = b""

    def bytes_needed(self) -> tuple[int, int]:
        """The archive, and the images, which take about as much."""
        return self._archive.bytes, self._archive.size()

    def fetch(self, progress: Progress) -> None:
        """Get the archive and pair its images with their masks."""
        self._archive.fetch(progress)
        with opened(self._archive.path) as container:
            names = set(real_names(container))
            roots = [name.removesuffix(_LIST) for name in names if PurePosixPath(name).name == _LIST]
            if not roots:
                raise DataError(f"{self._archive.path} has no {_LIST}; this is not the archive of {self.task.name}.")
            root = min(roots, key=len)
            self._list = container.read(root + _LIST)
        for split, folder in _SPLITS.items():
            images = sorted(n for n in names if n.startswith(f"{root}images/{folder}/"))
            masks = [f"{root}annotations/{folder}/{PurePosixPath(name).stem}.png" for name in images]
            missing = [mask for mask in masks if mask not in names]
            if missing:
                raise DataError(f"{self._archive.path} lacks {missing[0]}; fetch it again.")
            check_count(self.task, split, len(images), f"{self._archive.path}")
            self._pairs[split] = list(zip(images, masks, strict=True))

    def classes(self) -> tuple[str, ...]:
        """The first name of each line of the list, numbered where two lines begin with the same."""
        lines = self._list.decode("utf-8", errors="replace").splitlines()[1:]
        names = [line.split("\t")[-1].split(",")[0].strip() for line in lines if line.strip()]
        if len(names) != self.task.classes:
            raise DataError(f"{_LIST} has {len(names)} classes and {self.task.name} {self.task.classes}.")
        return tuple(name if names.count(name) == 1 else f"{name} {k}" for k, name in enumerate(names, start=1))

    def pictures(self, done: Set[Key]) -> Iterator[SourceImage]:
        """Each image with its mask, as they are."""
        with opened(self._archive.path) as container:
            for split, pairs in self._pairs.items():
                for place, (image, mask) in enumerate(pairs):
                    if (split, place) in done:
                        continue
                    inner = [f"{kind}/{_SPLITS[split]}/" for kind in ("images", "annotations")]
                    where = inner[1] + PurePosixPath(mask).name
                    yield SourceImage(
                        split,
                        place,
                        "",
                        inner[0] + PurePosixPath(image).name,
                        container.read(image),
                        (where, container.read(mask)),
                    )

    def extras(self) -> Mapping[str, bytes]:
        """The list of classes, by which `trimtab fit` knows the layout."""
        return {_LIST: self._list}

    def files(self) -> list[Mapping[str, object]]:
        """The archive."""
        return [self._archive.facts()]

    def tidy(self) -> None:
        """Remove the archive if it was downloaded."""
        self._archive.remove()
