"""Records with something in them that is no record, told in one line wherever they are read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import job
from trimtab import load
from trimtab.bench.report import _earlier
from trimtab.bench.trial import _remove
from trimtab.checkpoint import CONFIG, METRICS, PREPROCESSOR, RUN, describe
from trimtab.errors import CheckpointError, TrimtabError
from trimtab.reporting.runs import read_runs
from trimtab.storage.files import parse_json
from trimtab.storage.locks import LOCK, own
from trimtab.training.run_folder import RunFolder

DEEP = "[" * 200_000


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return job.copy_of(job.finished("linear"), tmp_path / "adapter")


@pytest.mark.parametrize(
    ("file", "read"),
    [
        (CONFIG, load),
        (PREPROCESSOR, load),
        (METRICS, describe),
        (RUN, lambda folder: RunFolder(folder, resume=True).check({"identity": {}})),
    ],
)
def test_a_file_of_brackets_is_no_bug(file: str, read: Callable[[Path], Any], adapter: Path) -> None:
    (adapter / file).write_text(DEEP)
    with pytest.raises(CheckpointError) as raised:
        read(adapter)
    assert file in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_run_with_brackets_for_a_record_is_replaced_and_shown(adapter: Path, tmp_path: Path) -> None:
    (adapter / RUN).write_text(DEEP)
    assert "cannot be read" in read_runs([adapter])[0].notes[0]
    RunFolder(adapter, overwrite=True)
    (tmp_path / "summary.json").write_text(DEEP)
    assert _earlier(tmp_path) == []


def test_a_lock_of_brackets_is_not_ours_and_stays(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text(DEEP)
    with own(tmp_path, way_out="wait"):
        pass
    assert (tmp_path / LOCK).read_text() == DEEP


def test_json_in_json_without_end_is_no_json() -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json(DEEP.encode())


@pytest.mark.parametrize("weights", [5, ["x"], {}, True])
def test_a_place_of_weights_that_is_no_path_is_told(weights: Any, adapter: Path) -> None:
    """It is not in the checksum, as weights may be moved."""
    config = json.loads((adapter / CONFIG).read_text())
    config["backbone"]["weights"] = weights
    (adapter / CONFIG).write_text(json.dumps(config))
    with pytest.raises(TrimtabError, match=r"backbone\.weights"):
        load(adapter)


def test_a_trial_killed_while_its_folder_is_removed_can_be_done_again(
    adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a folder was refused by the next run for ever: an adapter without a record."""

    def killed(folder: Path, **_: Any) -> None:
        if Path(folder).exists():
            (Path(folder) / RUN).unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            _remove(adapter)
    RunFolder(adapter, resume=True)
    assert not adapter.exists()
    adapter.mkdir()
    _remove(adapter)
    assert list(adapter.parent.iterdir()) == []
