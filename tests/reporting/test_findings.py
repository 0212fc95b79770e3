"""Which images a run's model is asked about."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests import job, scenes
from tests.reporting import made
from trimtab.errors import ConfigError, DataError
from trimtab.progress import Progress
from trimtab.reporting.find import _finder, find
from trimtab.reporting.findings import EvaluationOptions, Findings
from trimtab.reporting.runs import read_runs
from trimtab.tasks import TASKS, make_task


def found(folder: Path, **asked: object) -> Findings:
    (run,) = read_runs([folder])
    return find(run, EvaluationOptions(**asked), mistakes=2, examples=2, progress=Progress())  # type: ignore[arg-type]


def test_every_task_has_its_findings() -> None:
    assert all(_finder(make_task(name)).__name__ == "find" for name in TASKS)


def test_validation_images_that_training_set_aside_are_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job.draw_classes(tmp_path / "data", 5)
    job.run("linear", tmp_path / "run", images=Path("data"))
    monkeypatch.chdir(tmp_path / "run")
    findings = found(Path())
    assert (findings.source, findings.split, findings.images) == ("data", "val", 3)


def test_other_images_are_looked_at_on_request() -> None:
    assert found(job.finished("vpt"), split="test").images == 15
    assert found(job.finished("vpt"), data=job.data() / "test", split="all").images == 15


def test_images_that_are_gone_are_an_error(tmp_path: Path) -> None:
    shutil.copytree(job.data(), tmp_path / "data")
    folder = job.run("linear", tmp_path / "run", images=tmp_path / "data")
    shutil.rmtree(tmp_path / "data")
    with pytest.raises(DataError, match="does not exist"):
        found(folder)


@pytest.mark.parametrize("asked", [{"batch_size": 0}, {"threads": 0}])
def test_numbers_of_nothing_are_refused(asked: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="use at least"):
        found(job.finished("linear"), **asked)


def test_masks_that_training_set_aside_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scenes.write(tmp_path / "data", [("", 6)])
    made.segment("linear", tmp_path / "run", Path("data"), val_fraction=0.34)
    monkeypatch.chdir(tmp_path / "run")
    findings = found(Path())
    assert (findings.source, findings.split, findings.images) == ("data", "val", 2)
