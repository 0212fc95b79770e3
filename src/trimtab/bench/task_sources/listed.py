"""The tasks of FGVC: images of the makers' archive, by the split files that VPT's authors or others wrote."""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Set
from pathlib import Path

from trimtab.bench.task_sources.archives import Container, Fetched, opened, real_names
from trimtab.bench.task_sources.base import Key, SourceImage, TaskSource, check_count, inside_folder
from trimtab.bench.task_table import BenchmarkTask
from trimtab.errors import DataError
from trimtab.progress import Progress

_SPLITS = ("train", "val", "test")


class ListedArchive(TaskSource):
    """Images of an archive, and ``train.json``, ``val.json``, ``test.json`` that say which is of what class.

    A split file has a class number (or its digits) for each path; numbers need not start at 0 or be without gaps,
    and the classes are all that occur in the three files, in order.

    Args:
        task: A task of FGVC.
        downloads: Where what is downloaded is kept until the task is prepared.
        given: The user's folder with archives and split files, if there is one.

    Raises:
        DataError: The archive or the split files cannot be had.
    """

    def __init__(self, task: BenchmarkTask, downloads: Path, given: Path | None = None) -> None:
        if task.archive is None or task.splits is None:
            raise DataError(f"{task.name} has no archive; it comes from elsewhere.")
        self._images = Fetched(task, task.archive, downloads, given)
        self._needed = [self._images]
        own = None if given is None else _own_splits(task, given)
        if own is None:
            lists = Fetched(task, task.splits, downloads, given)
            self._needed.append(lists)
            self._lists, where = lists.path, lists.where
        else:
            self._lists, where = own, f"{own.name} (the user's)"
        super().__init__(task, f"{self._images.where}, split files of {where}", "")
        self._rows: dict[str, list[tuple[str, int]]] = {}

    def bytes_needed(self) -> tuple[int, int]:
        """The archives, and the images, which take about as much as their archive."""
        return sum(one.bytes for one in self._needed), self._images.size()

    def fetch(self, progress: Progress) -> None:
        """Get archive and split files, and read the latter."""
        for one in self._needed:
            one.fetch(progress)
        path = self._lists
        with opened(path) as container:
            files = _split_files(self.task, container, path)
            contents = {split: container.read(name) for split, name in files.items()}
        self._rows = {split: _rows(contents[split], f"{path}, {files[split]}") for split in _SPLITS}
        for split, rows in self._rows.items():
            check_count(self.task, split, len(rows), f"{path}, {files[split]}")
        _check_apart(self._rows, path)
        self.classes()
        digest = hashlib.sha256(b"".join(contents[split] for split in _SPLITS)).hexdigest()
        self.revision = f"split files sha256:{digest}"

    def classes(self) -> tuple[str, ...]:
        """The numbers that occur, written so that they sort."""
        found = sorted({label for rows in self._rows.values() for _, label in rows})
        if len(found) != self.task.classes:
            raise DataError(
                f"The split files have {len(found)} classes and {self.task.name} has {self.task.classes}; they are "
                "another task's."
            )
        return tuple(self._name(label) for label in found)

    def pictures(self, done: Set[Key]) -> Iterator[SourceImage]:
        """The files of the archive as they are, in its order."""
        with opened(self._images.path) as container:
            places = self._places(container)
            for name in container.names:
                for split, place in places.get(name, ()):
                    if (split, place) in done:
                        continue
                    path, label = self._rows[split][place]
                    yield SourceImage(split, place, self._name(label), f"images/{path}", container.read(name))

    def files(self) -> list[Mapping[str, object]]:
        """The archives."""
        return [one.facts() for one in self._needed]

    def tidy(self) -> None:
        """Remove the archive if it was downloaded."""
        self._images.remove()

    def _name(self, label: int) -> str:
        most = max(label for rows in self._rows.values() for _, label in rows)
        return f"{label:0{len(str(most))}}"

    def _places(self, container: Container) -> Mapping[str, list[Key]]:
        """Map each file of the archive to its splits and positions."""
        ends: defaultdict[str, list[str]] = defaultdict(list)
        for name in real_names(container):
            ends[name.rpartition("/")[2]].append(name)
        places: defaultdict[str, list[Key]] = defaultdict(list)
        for split, rows in self._rows.items():
            for place, (path, _) in enumerate(rows):
                wanted = f"{self.task.inside}/{path}".strip("/")
                names = ends.get(path.rpartition("/")[2], [])
                matching = [name for name in names if f"/{name}".endswith(f"/{path}")]
                if not matching:
                    raise DataError(
                        f"{self._images.path} has no image {path}, which the {split} split names; archive and split "
                        "files do not belong together."
                    )
                matching.sort(key=lambda name: (name != wanted, len(name)))
                places[matching[0]].append((split, place))
        return places


def _own_splits(task: BenchmarkTask, given: Path) -> Path | None:
    """A folder of the user's that holds the task's three split files."""
    for folder in sorted(path for path in given.rglob("train.json") if path.is_file()):
        if _is_of(task, folder.parent.relative_to(given).as_posix()):
            return folder.parent
    return None


def _split_files(task: BenchmarkTask, container: Container, path: Path) -> dict[str, str]:
    """Which of the files in a container are the task's split files."""
    there = real_names(container)
    folders = [name.rpartition("/")[0] for name in there if name.rpartition("/")[2] == "train.json"]
    own = [folder for folder in folders if _is_of(task, folder)] or ([""] if folders == [""] else [])
    for folder in own:
        files = {split: f"{folder}/{split}.json".strip("/") for split in _SPLITS}
        if set(files.values()) <= set(there):
            return files
    raise DataError(
        f"{path} has no train.json, val.json and test.json in a folder named like {' or '.join(_words(task))} "
        f"(folders with a train.json: {', '.join(sorted(folders)) or 'none'}); put them into a folder "
        f"{task.name} in DIR and name it with --from DIR."
    )


def _words(task: BenchmarkTask) -> tuple[str, ...]:
    return (*task.folders, task.name)


def _is_of(task: BenchmarkTask, folder: str) -> bool:
    """Whether a folder's name is the task's, in some spelling."""
    last = re.sub(r"[^a-z]", "", folder.rpartition("/")[2].lower())
    return any(re.sub(r"[^a-z]", "", word) in last for word in _words(task))


def _rows(content: bytes, where: str) -> list[tuple[str, int]]:
    """Paths and class numbers of a split file, in its order."""
    try:
        read = json.loads(content)
        rows = [(str(path), int(label)) for path, label in read.items()]
    except (ValueError, AttributeError, TypeError) as error:
        raise DataError(f"{where} is no split file ({error}): it should have a class number for each path.") from None
    return [(inside_folder(path, where), label) for path, label in rows]


def _check_apart(rows: Mapping[str, list[tuple[str, int]]], path: Path) -> None:
    """Refuse split files that share an image."""
    seen: dict[str, str] = {}
    for split, own in rows.items():
        for image, _ in own:
            if seen.setdefault(image, split) != split:
                raise DataError(f"{path} has {image} in {seen[image]!r} and in {split!r}; these are no splits.")
