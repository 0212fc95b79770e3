"""The CamVid runner, whole: real trainings of a real (random) ViT-Tiny on drawn scenes."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
from benchmarks.studies import BACKBONE
from safetensors.torch import save_file

from benchmarks import camvid
from tests import scenes
from tests.benchmarks.pretended import lines_of


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder laid out as the real one."""
    folder = tmp_path_factory.mktemp("shared")
    splits = [("training", 4), ("validation", 3), ("test", 2)]

    def saved(mask: object, path: Path) -> None:
        import numpy as np
        from PIL import Image

        array = np.asarray(mask)
        Image.fromarray(np.where(array == scenes.VOID, 11, array).astype(np.uint8)).save(path)

    scenes.write(folder / "data" / "camvid", splits, masks="annotations", save=saved)
    (folder / "weights").mkdir()
    model = timm.create_model(BACKBONE.partition(".")[0])
    save_file(model.state_dict(), folder / "weights" / f"{BACKBONE}.fp16.safetensors")
    return folder


def test_a_row_is_tuned_and_its_models_see_the_test_images_once(shared: Path, tmp_path: Path) -> None:
    small = (
        "--image-size 32 --train-images 4 --val-images 2 --epochs 2 --warmup-epochs 0 --probe-epochs 2 --batch-size 2"
    )
    command = [*small.split(), "--rows", "VPT-deep", "--seeds", "2"]
    command += ["--work", str(tmp_path / "work"), "--shared", str(shared)]
    assert camvid.main(command) == 0
    lines = lines_of(tmp_path / "work" / "trials.jsonl")
    kinds = [line["kind"] for line in lines]
    assert {kind: kinds.count(kind) for kind in kinds} == {"trial": 4, "test-opened": 2, "test": 2}
    tuned = [line for line in lines if line["kind"] == "trial" and line["seed"] == 0]
    chosen = max(tuned, key=lambda line: line["val_miou"])["lr"]
    assert {line["lr"] for line in lines if line["kind"] == "test"} == {chosen}
    assert {line["test_images"] for line in lines if line["kind"] == "test"} == {2}
    assert all("/test/" not in path.read_text() for path in (tmp_path / "work").glob("*-[0-9].csv"))

    assert camvid.main(command) == 0
    assert len(lines_of(tmp_path / "work" / "trials.jsonl")) == len(lines)

    assert camvid.main([*command, "--table", str(tmp_path / "t.md")]) == 0
    shown = (tmp_path / "t.md").read_text(encoding="utf-8")
    assert f"| VPT-deep | {12 * 10 * 192:,} |" in shown
    assert "head only" not in shown


def test_without_the_data_it_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert camvid.main(["--work", str(tmp_path / "w"), "--shared", str(tmp_path)]) == 1
    assert "There are no images in" in capsys.readouterr().err
