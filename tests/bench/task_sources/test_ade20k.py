"""ADE20K's archive."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.conftest import Tasks
from tests.bench.made import SCENES, mask, picture, scene_archive, seed_of, zipped
from trimtab.bench.task_sources.ade20k import SceneArchive
from trimtab.bench.task_table import BenchmarkTask
from trimtab.errors import DataError
from trimtab.progress import Progress


@pytest.fixture
def task(tasks: Tasks) -> BenchmarkTask:
    return tasks["ade20k"]["ade20k"]


def made(task: BenchmarkTask, home: Path, files: dict[str, bytes]) -> SceneArchive:
    (home / "ADEChallengeData2016.zip").write_bytes(zipped(files))
    source = SceneArchive(task, home / "downloads", home)
    source.fetch(Progress())
    return source


@pytest.mark.parametrize("top", ["ADEChallengeData2016/", ""])
def test_images_come_with_their_masks_and_the_list(task: BenchmarkTask, tmp_path: Path, top: str) -> None:
    source = made(task, tmp_path, scene_archive(top))
    found = {one.key: one for one in source.pictures(set())}
    assert sorted(found) == [(split, k) for split in ("train", "val") for k in range(SCENES[split])]
    for (split, place), one in found.items():
        assert one.content == picture(seed_of(split, place), "JPEG")
        assert one.mask is not None
        assert one.mask[1] == mask(seed_of(split, place))
    one = found["val", 1]
    assert one.path == "images/validation/ADE_validation_00000002.jpg"
    assert one.mask is not None
    assert one.mask[0] == "annotations/validation/ADE_validation_00000002.png"
    assert source.classes() == ("wall", "door 2", "door 3")
    assert list(source.extras()) == ["objectInfo150.txt"]
    assert len(list(source.pictures({("train", 1)}))) == 4
    assert source.bytes_needed()[0] == 0
    assert str(source.files()[0]["checksum"]).startswith("sha256:")
    source.tidy()
    assert (tmp_path / "ADEChallengeData2016.zip").exists()


def test_other_archives_are_refused(task: BenchmarkTask, tmp_path: Path) -> None:
    files = scene_archive()
    top = "ADEChallengeData2016/"
    with pytest.raises(DataError, match=r"has no objectInfo150\.txt"):
        made(task, tmp_path, {"a.jpg": b"x"})
    lacking = {name: content for name, content in files.items() if "annotations/validation" not in name}
    with pytest.raises(DataError, match=r"lacks .*annotations/validation/ADE_validation_00000001\.png"):
        made(task, tmp_path, lacking)
    fewer = {name: content for name, content in files.items() if "00000003" not in name}
    with pytest.raises(DataError, match="has 2 images in 'train', and ade20k has 3"):
        made(task, tmp_path, fewer)
    source = made(task, tmp_path, {**files, f"{top}objectInfo150.txt": b"Idx\tName\n1\twall\n"})
    with pytest.raises(DataError, match=r"objectInfo150\.txt has 1 classes and ade20k 3"):
        source.classes()
