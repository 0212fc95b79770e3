"""Tar files, zip files and folders, read alike: the names in them, and the bytes of one."""

from __future__ import annotations

import abc
import contextlib
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from trimtab.bench.task_sources.fetch import Repository, check, fetch_url, size_of_url
from trimtab.bench.task_table import Archive, BenchmarkTask
from trimtab.errors import DataError
from trimtab.progress import Progress

_ENDINGS = (".tar.gz", ".tgz", ".tar", ".zip")
_BROKEN = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError, KeyError, RuntimeError)
"""What reading a damaged archive raises."""


class Container(abc.ABC):
    """Files under one roof. Reading them in the order of ``names`` is fast, in another it may be slow."""

    names: list[str]
    """Paths with slashes, of files only."""

    @abc.abstractmethod
    def read(self, name: str) -> bytes:
        """The bytes of a file."""


class _Tar(Container):
    def __init__(self, archive: tarfile.TarFile) -> None:
        self._archive = archive
        self._members = {member.name.removeprefix("./"): member for member in archive if member.isfile()}
        self.names = list(self._members)

    def read(self, name: str) -> bytes:
        file = self._archive.extractfile(self._members[name])
        if file is None:
            raise KeyError(name)
        return file.read()


class _Zip(Container):
    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self.names = [entry.filename for entry in archive.infolist() if not entry.is_dir()]

    def read(self, name: str) -> bytes:
        return self._archive.read(name)


class _Folder(Container):
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())

    def read(self, name: str) -> bytes:
        return (self._folder / name).read_bytes()


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Container]:
    """Open an archive or folder. Nothing is unpacked.

    Raises:
        DataError: It cannot be read, now or while it is in use.
    """
    try:
        if path.is_dir():
            yield _Folder(path)
        elif path.name.lower().endswith(".zip"):
            with zipfile.ZipFile(path) as zipped:
                yield _Zip(zipped)
        else:
            with tarfile.open(path) as tarred:
                yield _Tar(tarred)
    except _BROKEN as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise DataError(f"{path} cannot be read ({reason.rstrip(':')}); fetch it again.") from error


def real_names(container: Container) -> list[str]:
    """The names without what some systems add to archives."""
    return [n for n in container.names if not n.startswith("__MACOSX/") and not n.rpartition("/")[2].startswith(".")]


class Fetched:
    """An archive that the user has, or that is downloaded.

    Args:
        task: What it is for, in messages.
        archive: Which one.
        downloads: Where it is kept if it is downloaded.
        given: The user's folder, if there is one; an archive there goes before downloading. It may have another of the
            usual endings, be unpacked into a folder of its name, or be named after the task.

    Raises:
        DataError: It is not there, and only a person can fetch it, or its server does not answer.
    """

    def __init__(self, task: BenchmarkTask, archive: Archive, downloads: Path, given: Path | None) -> None:
        self._archive, self._downloads, self._found = archive, downloads, ""
        self._own = None if given is None else _given(given, archive, task)
        self._repository: Repository | None = None
        self.path = self._own or downloads / archive.file
        if self._own is not None or self.path.is_file():
            self.bytes = 0
        elif archive.hub:
            name, _, pinned = archive.hub.partition("@")
            try:
                self._repository = Repository(name, pinned or None)
            except DataError as error:
                raise DataError(f"{error} Or {_by_hand(archive, given)}.") from error
            file = self._repository.files.get(archive.file)
            if file is None:
                raise DataError(f"The hub's data set {archive.hub} has no {archive.file}; {_by_hand(archive, given)}.")
            self.bytes = file.bytes
        elif archive.url:
            self.bytes = size_of_url(archive.url)
        else:
            raise DataError(f"{task.name} has to be fetched by hand: {_by_hand(archive, given)}.")

    @property
    def where(self) -> str:
        """The archive's entry in the manifest."""
        if self._own is not None:
            return f"{self._own.name} (the user's)"
        return f"hub data set {self._archive.hub}" if self._archive.hub else self._archive.url

    def size(self) -> int:
        """Bytes on disk; before the download, bytes to download."""
        if self.path.is_dir():
            return sum(path.stat().st_size for path in self.path.rglob("*") if path.is_file())
        return self.path.stat().st_size if self.path.is_file() else self.bytes

    def fetch(self, progress: Progress) -> None:
        """Download it if it is not here, and compare its checksum where one is known.

        Raises:
            DataError: It cannot be had, or is another file.
        """
        self._downloads.mkdir(parents=True, exist_ok=True)
        known = self._archive.checksum
        if not self.path.exists() and self._repository is not None:
            self._repository.fetch(self._archive.file, self._downloads / "hub", progress).replace(self.path)
        elif not self.path.exists():
            fetch_url(self._archive.url, self.path, progress)
        if self.path.is_file():
            # Under its own name it has to be that very file; another name may be another packing.
            wanted = known if self._own is None or self._own.name == self._archive.file else ""
            self._found = check(self.path, wanted, progress, remove=self._own is None)

    def facts(self) -> dict[str, object]:
        """Return the file's entry in the manifest; a folder has no checksum."""
        return {"name": self.path.name, "bytes": self.size(), "checksum": self._found}

    def remove(self) -> None:
        """Remove what was downloaded; never what the user has."""
        if self._own is None:
            self.path.unlink(missing_ok=True)


def _given(folder: Path, archive: Archive, task: BenchmarkTask) -> Path | None:
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; name one that has {archive.file} in it, or leave --from out.")
    wanted = {_stem(archive.file), task.name} if archive == task.archive else {_stem(archive.file), "splits"}
    found = [path for path in sorted(folder.iterdir()) if _stem(path.name) in {name.lower() for name in wanted}]
    packed = [path for path in found if path.is_file() and path.name.lower().endswith(_ENDINGS)]
    # A folder may be there for its split files alone.
    folders = [path for path in found if any(f.is_file() and f.suffix != ".json" for f in path.rglob("*"))]
    return next(iter([*packed, *folders]), None)


def _stem(name: str) -> str:
    name = name.lower()
    return next((name.removesuffix(ending) for ending in _ENDINGS if name.endswith(ending)), name)


def _by_hand(archive: Archive, given: Path | None) -> str:
    how = archive.by_hand or f"fetch {archive.file} yourself"
    where = f"put it there as {given / archive.file}" if given else f"put it as {archive.file} into a folder DIR"
    return f"{how}, {where}, and run the same command {'again' if given else 'with --from DIR'}"
