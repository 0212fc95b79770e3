"""A folder that another run takes although one works there: the lock's file is removed, or the folder is replaced."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import job
from trimtab.bench.results import Results
from trimtab.errors import CheckpointError, DataError
from trimtab.storage.locks import LOCK
from trimtab.training.run_folder import RunFolder


def lock_removed(out: Path) -> None:
    (out / LOCK).unlink()


def replaced(out: Path) -> None:
    shutil.rmtree(out)


def moved(out: Path) -> None:
    out.rename(out.with_name("moved"))


TAKEN: list[Callable[[Path], None]] = [lock_removed, replaced, moved]


@pytest.mark.parametrize("taken", TAKEN)
def test_a_run_whose_folder_was_taken_writes_nothing_more(taken: Callable[[Path], None], tmp_path: Path) -> None:
    """Until it was so, the first run's files went among those of the second."""
    out, after = tmp_path / "out", {}

    def second(*_: Any) -> None:
        if not after:
            taken(out)
            # As another process would: this one knows its own folders by more than the lock's file.
            other = RunFolder(out, overwrite=out.exists())
            other.begin({"identity": {"seed": 4711}})
            after.update(job.contents(out))

    with pytest.raises(CheckpointError, match="no longer the folder of this run"):
        job.run("linear", out, watch=second)
    assert job.contents(out) == after


def test_a_run_whose_record_is_gone_says_so(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "out")
    folder.begin({"identity": {"seed": 1}})
    assert folder.kept() == tmp_path / "out"
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(CheckpointError, match="gone or another run's"):
        folder.kept()


def test_results_that_another_process_wrote_to_get_no_more_lines(tmp_path: Path) -> None:
    first, second = Results(tmp_path / "results.jsonl"), Results(tmp_path / "results.jsonl")
    first.append("trial", {"key": "a"})
    second.append("trial", {"key": "a"})
    before = first.path.read_bytes()
    with pytest.raises(DataError, match="changed by somebody else"):
        first.append("trial", {"key": "b"})
    assert first.path.read_bytes() == before
    second.append("trial", {"key": "b"})
