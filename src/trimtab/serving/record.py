"""The record of changes: which tasks were added, replaced and removed while a server ran, for when it starts again."""

from __future__ import annotations

import threading
from pathlib import Path

from trimtab.errors import CheckpointError
from trimtab.serving.catalog import NAME
from trimtab.storage.files import parse_json, write_json

FILE = "tasks.json"
_VERSION = 1


class Record:
    """Changes of tasks, kept in a file of the folder of adapters.

    Args:
        folder: The folder of adapters.

    Raises:
        CheckpointError: If the file is there and is none of ours.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / FILE
        self._lock = threading.Lock()
        self.tasks: dict[str, str | None] = self._read() if self._file.is_file() else {}
        """By the task's name that of its adapter in the folder; ``None`` of one that was removed."""

    def note(self, name: str, folder: str | None) -> None:
        """Write down that a task has this adapter of the folder now, or none.

        Raises:
            OSError: If the file cannot be written.
        """
        with self._lock:
            changed = {**self.tasks, name: folder}
            write_json(self._file, {"format_version": _VERSION, "tasks": changed})
            self.tasks = changed

    def _read(self) -> dict[str, str | None]:
        try:
            value = parse_json(self._file.read_bytes())
        except ValueError as error:
            raise self._foreign("it is no JSON") from error
        tasks = value.get("tasks") if isinstance(value, dict) and value.get("format_version") == _VERSION else None
        if not isinstance(tasks, dict):
            raise self._foreign(f"it has no tasks of format version {_VERSION}")
        for name, folder in tasks.items():
            if not _is_name(name) or not (folder is None or _is_name(folder)):
                raise self._foreign("it has names that no task or adapter has")
        return tasks

    def _foreign(self, why: str) -> CheckpointError:
        return CheckpointError(
            f"{str(self._file)!r} is not what a server wrote there ({why}); move it away to start without it."
        )


def _is_name(value: object) -> bool:
    return isinstance(value, str) and NAME.fullmatch(value) is not None
