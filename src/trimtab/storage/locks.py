"""One owner for a folder that is written: a kernel lock, which ends with its process.

The lock is ``flock`` on a file in the folder. A killed process holds no lock, whatever file it leaves. Where there are
no such locks (Windows, some network file systems) only runs of the same process exclude each other.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import json
import os
import platform
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from trimtab.errors import CheckpointError, TrainingError, TrimtabError

try:
    import fcntl

    _LOCKS = True
except ImportError:  # Windows
    _LOCKS = False

LOCK = ".trimtab.lock"
"""The file that is locked; it is there while a run writes the folder, and does not count as one of its files."""
_OPEN = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK if hasattr(os, "O_NOFOLLOW") else 0
_BUSY = (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES)
_TRIES, _PAUSE = 20, 0.02
"""A reader that looks whether the lock is held holds it for a moment itself, so one refusal says nothing."""
_LONGEST = 160
"""Characters of a command that are told."""

_guard = threading.Lock()
_owned: dict[tuple[int, int], int | None] = {}
"""Folders of this process, by device and inode, with the open lock file."""


def _forget() -> None:
    # A forked child would keep its parent's lock after the parent is killed.
    for handle in _owned.values():
        if handle is not None:
            os.close(handle)
    _owned.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_guard.acquire, after_in_parent=_guard.release, after_in_child=_guard.release)
    os.register_at_fork(after_in_child=_forget)


@contextlib.contextmanager
def own(
    folder: Path,
    *,
    way_out: str,
    command: str | None = None,
    say: Callable[[str], None] | None = None,
    error: type[TrimtabError] = CheckpointError,
) -> Iterator[None]:
    """Lock a folder for writing, and make it if it is not there; what is still empty at the end is removed.

    Args:
        folder: Which.
        way_out: What a user can do who is refused, as the end of a sentence.
        command: The command line, for those who are refused.
        say: Is told where the file system has no locks.
        error: What a refusal is raised as.

    Raises:
        TrimtabError: If another run has it, as ``error``.
        TrainingError: If the folder cannot be made.
    """
    made: list[Path] = []
    try:
        _make(folder, made)
        with _registered(folder, way_out, error) as key:
            handle = _acquire(folder, made, way_out, say, error)
            _owned[key] = handle
            try:
                with _signed(handle, folder / LOCK, command):
                    yield
            finally:
                _owned[key] = None
                if handle is not None:
                    os.close(handle)
    finally:
        for path in reversed(made):
            with contextlib.suppress(OSError):
                path.rmdir()


@contextlib.contextmanager
def partner(folder: Path) -> Iterator[None]:
    """Let this process read a folder that another process of the same run owns."""
    key = _key(folder)
    if key is None:
        yield
        return
    with _guard:
        _owned[key] = None
    try:
        yield
    finally:
        with _guard:
            _owned.pop(key, None)


def check_free(folder: Path, way_out: str = "wait until it has ended") -> None:
    """Make sure that no other process writes a folder; nothing is changed.

    Args:
        folder: Which; it need not be there.
        way_out: What a user can do who is refused, as the end of a sentence.

    Raises:
        CheckpointError: If one does.
    """
    if not _LOCKS or _key(folder) in _owned:
        return
    try:
        handle = os.open(folder / LOCK, os.O_RDONLY | _OPEN)
    except OSError:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as failed:
        if failed.errno in _BUSY:
            told = _owner(handle)
            raise CheckpointError(f"{str(folder)!r} is being written by another run{told}; {way_out}.") from None
    finally:
        os.close(handle)


def wait_until_free(folder: Path, seconds: float) -> None:
    """Wait until no other process writes a folder, and no longer than ``seconds``: workers outlive a killed parent."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            check_free(folder)
        except CheckpointError:
            time.sleep(_PAUSE)
            continue
        return


@contextlib.contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Read a folder that no other process writes, neither before nor after.

    Raises:
        CheckpointError: If one does.
    """
    check_free(folder)
    try:
        yield
    finally:
        # A run that begins meanwhile takes files away, which would be told as a broken folder.
        check_free(folder)


def _key(folder: Path) -> tuple[int, int] | None:
    """Identify a folder by whichever path; ``None`` if it is not there."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


@contextlib.contextmanager
def _registered(folder: Path, way_out: str, error: type[TrimtabError]) -> Iterator[tuple[int, int]]:
    """Exclude other threads of this process."""
    status = folder.stat()
    key = status.st_dev, status.st_ino
    with _guard:
        if key in _owned:
            raise error(f"Another run of this process (process {os.getpid()}) works in {str(folder)!r}; {way_out}.")
        _owned[key] = None
    try:
        yield key
    finally:
        with _guard:
            _owned.pop(key, None)


def _make(folder: Path, made: list[Path]) -> None:
    """Make a folder with its parents, and note which ones."""
    try:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        for path in reversed(missing):
            with contextlib.suppress(FileExistsError):
                path.mkdir()
                made.append(path)
        folder.mkdir(exist_ok=True)
    except OSError as failed:
        raise TrainingError(
            f"Could not make the folder {str(folder)!r}: {failed.strerror}; name another place."
        ) from failed


def _acquire(
    folder: Path, made: list[Path], way_out: str, say: Callable[[str], None] | None, error: type[TrimtabError]
) -> int | None:
    """Open and lock the lock file; ``None`` where there can be none."""
    if not _LOCKS:
        return None
    for attempt in range(_TRIES):
        try:
            handle = _open(folder / LOCK)
        except FileNotFoundError:
            # Another run has just failed here and removed the folder that it had made.
            _make(folder, made)
            continue
        if handle is None:
            return None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as failed:
            told = _owner(handle)
            if failed.errno not in _BUSY:
                if say is not None:
                    say(f"The file system of {str(folder)!r} has no locks; make sure that no other run writes there.")
                return handle
            os.close(handle)
            if attempt == _TRIES - 1:
                raise error(f"Another run works in {str(folder)!r}{told}; {way_out}.") from None
            time.sleep(_PAUSE)
            continue
        if _is_at(handle, folder / LOCK):
            return handle
        # The owner before has removed the file after it was opened here.
        os.close(handle)
    raise error(f"Other runs come and go in {str(folder)!r}; {way_out}.")


def _open(path: Path) -> int | None:
    """Open the lock file, made if need be; ``None`` if the folder is not to be written."""
    try:
        return _regular(os.open(path, os.O_RDWR | os.O_CREAT | _OPEN, 0o666), path)
    except FileNotFoundError:
        raise
    except OSError as failed:
        if failed.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise TrainingError(
                f"Could not lock {str(path.parent)!r}: {path.name} cannot be opened ({failed.strerror}); "
                "make room, remove that file, or name another folder."
            ) from failed
    try:
        return _regular(os.open(path, os.O_RDONLY | _OPEN), path)
    except OSError:
        return None


def _regular(handle: int, path: Path) -> int:
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise TrainingError(f"{str(path)!r} is no lock file of trimtab; remove it, or name another folder.")
    return handle


def _is_at(handle: int, path: Path) -> bool:
    """Whether an open file is still the one of that name."""
    try:
        there = path.stat(follow_symlinks=False)
    except OSError:
        return False
    return os.path.samestat(os.fstat(handle), there)


@contextlib.contextmanager
def _signed(handle: int | None, path: Path, command: str | None) -> Iterator[None]:
    """Have the lock file say who owns the folder, and remove it at the end."""
    before = b"" if handle is None else _content(handle)
    if handle is None or (before and _parsed(before) is None):
        # There is no file, or it is not trimtab's and stays as it is.
        yield
        return
    facts: dict[str, Any] = {
        "process": os.getpid(),
        "since": dt.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S"),
        "host": platform.node(),
    }
    if command is not None and len(command) <= _LONGEST:
        facts["command"] = command
    try:
        _write(handle, json.dumps(facts).encode("ascii"))
        yield
    except BaseException:
        # What fails leaves the folder as it was, with the file that a killed run had left.
        if before:
            _write(handle, before)
        else:
            _remove(path, handle)
        raise
    _remove(path, handle)


def _write(handle: int, content: bytes) -> None:
    # It only helps those who are refused: a full disk is no reason to stop.
    with contextlib.suppress(OSError):
        os.ftruncate(handle, 0)
        os.pwrite(handle, content, 0)


def _remove(path: Path, handle: int) -> None:
    # While it is locked, so that nobody's file is removed but this one.
    if _is_at(handle, path):
        with contextlib.suppress(OSError):
            path.unlink()


def _owner(handle: int) -> str:
    """Say who wrote a lock file, in parentheses; nothing if it does not say."""
    facts = _parsed(_content(handle))
    if facts is None:
        return ""
    words = f"process {facts['process']}"
    if facts.get("host") not in (None, platform.node()):
        words += f" on {_line(facts['host'])}"
    if "since" in facts:
        words += f", since {_line(facts['since'])}"
    if "command" in facts:
        words += f": {_line(facts['command'])}"
    return f" ({words})"


def _content(handle: int) -> bytes:
    with contextlib.suppress(OSError):
        return os.pread(handle, 4096, 0)
    return b""


def _parsed(content: bytes) -> dict[str, Any] | None:
    """Parse a lock file of trimtab; ``None`` if it is another's, or empty."""
    try:
        facts = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return facts if isinstance(facts, dict) and isinstance(facts.get("process"), int) else None


def _line(value: object) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in str(value))[:_LONGEST]
