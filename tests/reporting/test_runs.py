"""What a result folder says of its run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import job
from tests.reporting import made
from trimtab.errors import CheckpointError, ConfigError
from trimtab.reporting.runs import read_runs


def test_a_run_is_read_without_the_backbones_weights(tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(job.weights().read_bytes())
    folder = job.run("ship", tmp_path / "a", weights=str(weights))
    weights.unlink()
    (run,) = read_runs([folder])
    assert run.notes == ()
    assert run.depth == 6
    assert [one.name for one in run.sets] == [
        *("hierarchy 1", "hierarchy 2", "hierarchy 3", "attributes 2", "attributes 3", "shared")
    ]
    (affinity,) = run.figures
    assert affinity.starts == (0, 2, 4)
    assert float(affinity.values.diagonal().min()) == pytest.approx(1, abs=1e-5)
    assert run.trainable == run.metrics["trainable_parameters"]
    assert len(run.history) == 2


@pytest.mark.parametrize("method", ["linear", "vpt"])
def test_methods_without_figures_have_none(method: str) -> None:
    (run,) = read_runs([job.finished(method)])
    assert run.figures == ()
    assert len(run.sets) == (method == "vpt")


def test_runs_are_called_by_what_tells_them_apart(tmp_path: Path) -> None:
    a = job.copy_of(job.finished("linear"), tmp_path / "a" / "run")
    b = job.copy_of(job.finished("linear"), tmp_path / "b" / "run")
    assert [run.name for run in read_runs([a, b, a / ".." / "run"])] == ["a/run", "b/run"]
    assert [run.name for run in read_runs([a])] == ["run"]


def test_a_lost_record_is_told_and_no_reason_to_stop(tmp_path: Path) -> None:
    folder = job.copy_of(job.finished("vpt"), tmp_path / "a")
    (folder / "config.json").unlink()
    (run,) = read_runs([folder])
    assert run.record == {}
    assert run.notes == ("The run's configuration is missing: config.json cannot be read (FileNotFoundError).",)


def test_what_is_no_result_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="There is no folder"):
        read_runs([tmp_path / "nowhere"])
    with pytest.raises(ConfigError, match="at least one result folder"):
        read_runs([])


def test_runs_of_two_tasks_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"is a run of classification and '.*' one of segmentation.* report them apart"
    ):
        read_runs([job.finished("vpt"), made.segmenter()])
