"""What a run's model says of images, against what it predicts."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tests import job
from tests.report import made
from trimtab.errors import DataError
from trimtab.evaluate import evaluate, load
from trimtab.progress import Progress
from trimtab.report.findings import Asked, Findings, find
from trimtab.report.runs import read_runs


def found(folder: Path, *, mistakes: int = 100, examples: int = 2, **asked: object) -> Findings:
    (run,) = read_runs([folder])
    return find(run, Asked(**asked), mistakes=mistakes, examples=examples, progress=Progress())  # type: ignore[arg-type]


def test_counts_and_metrics_are_those_of_evaluate() -> None:
    findings = found(job.finished("vpt"))
    measured = evaluate(job.finished("vpt"), job.data(), split="val")
    assert findings.split == "val"
    assert findings.images == 9
    assert findings.metrics == {name: measured[name] for name in findings.metrics}
    assert findings.wrong == 9 - round(9 * measured["accuracy"])
    assert findings.confusion.sum(1).tolist() == [3, 3, 3]


def test_mistakes_are_the_wrong_ones_and_the_surest_first() -> None:
    folder = job.finished("vpt")
    predicted = {Path(str(p.path)).name: p for p in load(folder).predict(job.data() / "val")}
    mistakes = found(folder).mistakes
    assert mistakes
    assert {one.name for one in mistakes} == {
        name for name, p in predicted.items() if p.label != Path(str(p.path)).parent.name
    }
    sure = [one.probability for one in mistakes]
    assert sure == sorted(sure, reverse=True)
    for one in mistakes:
        assert one.said == predicted[one.name].label
        assert one.probability == pytest.approx(predicted[one.name].probability, abs=1e-5)
    assert found(folder, mistakes=1).mistakes[0].name == mistakes[0].name


def test_examples_are_the_first_of_their_classes() -> None:
    findings = found(job.finished("vpt"), examples=3)
    assert [one.name for one in findings.examples] == ["blue0.png", "green0.png", "red0.png"]
    assert [one.name for one in found(job.finished("vpt"), examples=2).examples] == ["blue0.png", "red0.png"]
    assert findings.attention.saliency.shape[0] == 3
    assert findings.examples[0].pixels.shape == (3, 32, 32)


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


def test_examples_are_spread_over_many_classes() -> None:
    findings = found(made.many(), examples=4)
    assert [one.target for one in findings.examples] == [
        findings.labels[k] for k in torch.linspace(0, 59, 4).round().int()
    ]
