"""Writing files so that a reader finds the old one or the new one, never half of one."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from trimtab.errors import TrainingError

DRAFT = ".tmp"
"""How the name of a file ends that is not whole yet."""


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Have ``write`` fill a temporary file beside ``path``, flush it to disk and put it in place.

    Raises:
        TrainingError: If the disk is full or cannot be written; what was at ``path`` is still there.
    """
    temporary: Path | None = None
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=DRAFT)
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else (error.strerror or str(error))
        raise TrainingError(
            f"Could not write {str(path)!r}: {reason}. What was saved before is untouched; "
            "make room (or choose another place) and run it again."
        ) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` atomically."""
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def write_text(path: Path, text: str) -> None:
    """Write ``text`` atomically, in UTF-8; names of files that are not come out as the bytes they are."""
    write_bytes(path, text.encode("utf-8", errors="surrogateescape"))


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` atomically as indented JSON."""
    write_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """``value`` as indented JSON in UTF-8."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    # Only halves of surrogate pairs (names of files that are not UTF-8) cannot be encoded; JSON has an escape for
    # them, which is Python's.
    return text.encode("utf-8", errors="backslashreplace")


def remove_drafts(folder: Path, names: Iterable[str]) -> None:
    """Remove what a killed process left of files of these names that it was writing."""
    for name in names:
        for draft in folder.glob(f".{name}.*{DRAFT}"):
            draft.unlink(missing_ok=True)


def _umask() -> int:
    # The mask can only be read by setting it.
    mask = os.umask(0)
    os.umask(mask)
    return mask
