"""The runner, whole: real trainings of a real (random) ViT-Tiny on drawn images, in worker processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
from benchmarks.studies import BACKBONE
from safetensors.torch import save_file

from benchmarks import methods, tables
from tests.benchmarks.pretended import lines_of
from tests.job import draw_classes


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder laid out as the real one."""
    folder = tmp_path_factory.mktemp("shared")
    for seed, part in enumerate(("train", "test")):
        draw_classes(folder / "data" / "cifar10" / part, 8, seed=seed)
    (folder / "weights").mkdir()
    model = timm.create_model(BACKBONE.partition(".")[0])
    save_file(model.state_dict(), folder / "weights" / f"{BACKBONE}.fp16.safetensors")
    return folder


def command(shared: Path, work: Path, *more: str) -> list[str]:
    small = "--sets cifar10 --rows linear --train-images 9 --val-images 6 --test-images 12 --image-size 32"
    return [*small.split(), "--work", str(work), "--shared", str(shared), "--workers", "1", *more]


def test_a_row_is_tuned_measured_once_and_shown(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / "work"
    assert methods.main(command(shared, work)) == 0
    lines = lines_of(work / "trials.jsonl")
    kinds = [line["kind"] for line in lines]
    assert {kind: kinds.count(kind) for kind in kinds} == {"trial": 6, "choice": 1, "test-opened": 3, "test": 3}
    trials = [line for line in lines if line["kind"] == "trial"]
    assert {line["seed"] for line in trials} == {0, 1, 2}
    assert all(line["failed"] is None and line["resolved"]["recipe"]["weight_decay"] == 1e-4 for line in trials)
    assert {line["test_images"] for line in lines if line["kind"] == "test"} == {12}
    # No trained model is left, and nothing that a worker was given names a test image.
    assert not any((work / "models").iterdir())
    assert not any("/test/" in path.read_text(encoding="utf-8") for path in (work / "splits").iterdir())

    assert methods.main(command(shared, work)) == 0
    assert len(lines_of(work / "trials.jsonl")) == len(lines)
    assert "Nothing is left to do" in capsys.readouterr().err

    assert tables.main(["--work", str(work), "--out", str(tmp_path / "out")]) == 0
    shown = json.loads((tmp_path / "out" / "methods.json").read_text(encoding="utf-8"))
    assert [row["name"] for row in shown["rows"]] == ["linear"]
    assert len(shown["test_openings"]) == 3


def test_other_test_images_in_the_same_place_are_refused_and_told(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / "work"
    assert methods.main(command(shared, work, "--seeds", "1")) == 0
    assert methods.main(command(shared, work, "--seeds", "2", "--test-images", "6")) == 1
    assert "NOT DONE cifar10, linear" in capsys.readouterr().err
    assert len([line for line in lines_of(work / "trials.jsonl") if line["kind"] == "test"]) == 1


def test_unknown_rows_are_told_with_the_nearest(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert methods.main([*command(shared, tmp_path), "--rows", "linea"]) != 0
    assert "There is no row 'linea'. Did you mean 'linear'" in capsys.readouterr().err
