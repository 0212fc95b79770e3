"""A task of VTAB-1k as parquet files of the Hugging Face hub, one data set a task."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any

from trimtab.bench.pixels import SUFFIXES, format_of
from trimtab.bench.task_sources.base import Key, SourceImage, TaskSource, check_count, numbered
from trimtab.bench.task_sources.fetch import HubFile, Repository
from trimtab.bench.task_table import BenchmarkTask
from trimtab.errors import ConfigError, DataError
from trimtab.progress import Progress

_SPLITS = {"train": "train800", "val": "val200", "test": "test"}
_ROWS = 64


class HubParquet(TaskSource):
    """The splits train800, val200 and test of a data set with the columns ``image`` and ``label``.

    Args:
        task: A task of VTAB-1k.
        downloads: Where the parquet files are kept until the task is prepared.
        revision: Which revision; the newest without it, and the manifest says which that was.

    Raises:
        DataError: The hub has no such data set, or not these splits.
        ConfigError: pyarrow is not installed.
    """

    def __init__(self, task: BenchmarkTask, downloads: Path, revision: str | None = None) -> None:
        _parquet()
        try:
            self._repository = Repository(task.hub, revision)
        except DataError as error:
            inferred = "" if task.hub_seen else f" Its name is inferred and nobody has seen it ({task.name});"
            raise DataError(f"{error}{inferred} --from TREE takes {task.name} from a tree of NOAH's layout.") from error
        super().__init__(task, f"hub data set {task.hub}", self._repository.revision)
        self._shards = {split: _shards(self._repository, split) for split in _SPLITS}
        self._downloads = downloads / task.hub.replace("/", "--")
        self._paths: dict[str, list[Path]] = {}

    def bytes_needed(self) -> tuple[int, int]:
        """The parquet files; the images in them take about the same again."""
        total = sum(file.bytes for files in self._shards.values() for file in files)
        return total, total

    def fetch(self, progress: Progress) -> None:
        """Download what is missing, and compare the numbers of rows with the benchmark's."""
        parquet = _parquet()
        for split, files in self._shards.items():
            paths = [self._repository.fetch(file.name, self._downloads, progress) for file in files]
            rows = sum(_opened(parquet, path).metadata.num_rows for path in paths)
            check_count(self.task, split, rows, f"The hub's data set {self.task.hub}")
            self._paths[split] = paths

    def classes(self) -> tuple[str, ...]:
        """The names that the files give their labels, or numbers where they give none that can be told apart."""
        names = _names(_opened(_parquet(), self._paths["train"][0]).schema_arrow)
        if names is None:
            return numbered(self.task.classes)
        if len(names) != self.task.classes:
            raise DataError(
                f"The hub's data set {self.task.hub} has {len(names)} classes and {self.task.name} "
                f"{self.task.classes}; this is another task."
            )
        usable = len(set(names)) == len(names) and all(name and name == name.strip() for name in names)
        # Numbers as they are would sort as text: 0, 1, 10, 11, 2.
        return names if usable and not all(name.isdecimal() for name in names) else numbered(self.task.classes)

    def pictures(self, done: Set[Key]) -> Iterator[SourceImage]:
        """The bytes of every row's image as they are."""
        parquet, names = _parquet(), self.classes()
        for split, paths in self._paths.items():
            place = -1
            for path in paths:
                for row in _rows(parquet, path):
                    place += 1
                    if (split, place) not in done:
                        yield self._picture(split, place, row, names, path)

    def files(self) -> list[Mapping[str, object]]:
        """The parquet files."""
        return [
            {"name": file.name, "bytes": file.bytes, "sha256": file.sha256}
            for files in self._shards.values()
            for file in files
        ]

    def tidy(self) -> None:
        """Remove the parquet files."""
        shutil.rmtree(self._downloads, ignore_errors=True)

    def _picture(
        self, split: str, place: int, row: Mapping[str, Any], names: tuple[str, ...], path: Path
    ) -> SourceImage:
        where = f"{path.name} of {self.task.hub}, image {place} of {split}"
        image, label = row["image"], row["label"]
        content = image.get("bytes") if isinstance(image, Mapping) else image
        if not isinstance(content, bytes):
            raise DataError(f"{where} has no bytes of an image; this data set is of another layout.")
        if not isinstance(label, int) or not 0 <= label < len(names):
            raise DataError(f"{where} has the label {label!r}; {self.task.name} has 0 to {len(names) - 1}.")
        suffix = SUFFIXES[format_of(content, where)]
        return SourceImage(split, place, names[label], f"images/{split}/{place:05}{suffix}", content)


def _shards(repository: Repository, split: str) -> list[HubFile]:
    """The parquet files of a split in order, named as `datasets` or the hub's own converter names them."""
    name = _SPLITS[split]
    pattern = re.compile(rf"(.*/)?{name}(-(\d+)-of-(\d+)(-[0-9a-f]+)?)?\.parquet|(.*/)?{name}/\d+\.parquet")
    found = [(pattern.fullmatch(file), repository.files[file]) for file in sorted(repository.files)]
    shards = [(match, file) for match, file in found if match is not None]
    if not shards:
        raise DataError(
            f"The hub's data set {repository.name} has no parquet files of the split {name!r} at revision "
            f"{repository.revision}; this data set is of another layout."
        )
    told = {int(match[4]) for match, _ in shards if match[4]}
    if told and told != {len(shards)}:
        raise DataError(
            f"The hub's data set {repository.name} has {len(shards)} files of the split {name!r}, and their names say "
            f"{' or '.join(map(str, sorted(told)))}; this revision is not whole."
        )
    return [file for _, file in shards]


def _names(schema: Any) -> tuple[str, ...] | None:
    """The names of the labels in a parquet file's metadata, as `datasets` writes them."""
    missing = [name for name in ("image", "label") if name not in schema.names]
    if missing:
        raise DataError(
            f"The parquet files have the columns {', '.join(schema.names)}, and not {' and '.join(missing)}; this data "
            "set is of another layout."
        )
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(str(name) for name in features["label"]["names"])
    except (KeyError, TypeError, ValueError):
        return None


def _rows(parquet: Any, path: Path) -> Iterator[Mapping[str, Any]]:
    """The rows of a parquet file, a few in memory at a time."""
    batches = _opened(parquet, path).iter_batches(_ROWS, columns=["image", "label"])
    while True:
        try:
            batch = next(batches, None)
        except (OSError, ValueError) as error:  # pyarrow's own errors are among these
            raise _unreadable(path, error) from error
        if batch is None:
            return
        yield from batch.to_pylist()


def _opened(parquet: Any, path: Path) -> Any:
    try:
        return parquet.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} is no parquet file that can be read ({error}); remove it and run the same command again.")


def _parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise ConfigError(
            "Reading parquet files of the hub needs pyarrow; install trimtab[benchmarks], or take the images from a "
            "tree of NOAH's layout with --from TREE."
        ) from None
    return pyarrow.parquet
