"""FGVC: archives with split files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench.conftest import Tasks
from tests.bench.made import FGVC, listed_images, lists, tarred, zipped
from tests.bench.task_sources.server import Server
from trimtab.bench.task_sources.listed import ListedArchive
from trimtab.bench.task_table import BenchmarkTask
from trimtab.errors import DataError
from trimtab.progress import Progress

QUIET = Progress()


@pytest.fixture
def task(tasks: Tasks) -> BenchmarkTask:
    return tasks["fgvc"]["cub200_2011"]


def folder(home: Path, task: BenchmarkTask, own: dict[str, bytes], images: dict[str, bytes] | None = None) -> Path:
    """What a user may have: the archive, and split files in a folder of the task's name."""
    (home / task.name).mkdir(parents=True)
    for name, content in own.items():
        (home / task.name / name).write_bytes(content)
    assert task.archive is not None
    (home / task.archive.file).write_bytes(tarred(images or listed_images(own, task.inside)))
    return home


def made(task: BenchmarkTask, home: Path) -> ListedArchive:
    source = ListedArchive(task, home / "downloads", home)
    source.fetch(QUIET)
    return source


def test_images_are_those_of_the_split_files(task: BenchmarkTask, tmp_path: Path) -> None:
    own = lists()
    images = listed_images(own, task.inside)
    source = made(task, folder(tmp_path, task, own))
    found = {one.key: one for one in source.pictures(set())}
    assert len(found) == sum(FGVC.values())
    for split in FGVC:
        for place, (path, label) in enumerate(json.loads(own[f"{split}.json"]).items()):
            one = found[split, place]
            assert (one.content, one.path) == (images[f"{task.inside}/{path}"], f"images/{path}")
            assert one.label == f"{label:02}"
    assert source.classes() == ("01", "02", "12")
    assert sorted(source.classes()) == list(source.classes())
    assert source.name == "CUB_200_2011.tgz (the user's), split files of cub200_2011 (the user's)"
    assert len({one.key for one in source.pictures({("val", 0)})}) == sum(FGVC.values()) - 1
    assert [one["name"] for one in source.files()] == ["CUB_200_2011.tgz"]
    assert source.bytes_needed()[0] == 0


def test_labels_may_be_digits_in_text(task: BenchmarkTask, tmp_path: Path) -> None:
    source = made(task, folder(tmp_path, task, lists(("001", "002", "012"))))
    assert source.classes() == ("01", "02", "12")


def test_images_may_lie_elsewhere_in_the_archive(task: BenchmarkTask, tmp_path: Path) -> None:
    own = lists(paths="{label}/{split}_{place}.jpg")
    source = made(task, folder(tmp_path, task, own, listed_images(own, "other/place")))
    assert len(list(source.pictures(set()))) == sum(FGVC.values())


def test_the_place_that_the_table_names_goes_before(task: BenchmarkTask, tmp_path: Path) -> None:
    own = lists()
    images = listed_images(own, task.inside)
    others = {f"x/{name}": b"another" for name in images}
    source = made(task, folder(tmp_path, task, own, {**others, **images}))
    assert all(one.content != b"another" for one in source.pictures(set()))


def test_split_files_of_the_hub_are_found_in_their_archive(
    tasks: Tasks, task: BenchmarkTask, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert task.archive is not None
    assert task.splits is not None
    name, _, pinned = task.splits.hub.partition("@")
    own = lists()
    others = lists((5, 6, 7))
    server.repositories[name] = {
        "CUB_200_2011.tgz": tarred(listed_images(own, task.inside)),
        "json.zip": zipped(
            {f"json/{kind}/{file}": files[file] for kind, files in (("NABirds", others), ("CUB", own)) for file in own}
        ),
    }
    monkeypatch.setattr(Server, "revision", lambda self, name: pinned)
    source = ListedArchive(task, tmp_path)
    fetched, images = source.bytes_needed()
    archive = len(server.repositories[name]["CUB_200_2011.tgz"])
    assert (fetched, images) == (archive + len(server.repositories[name]["json.zip"]), archive)
    source.fetch(QUIET)
    assert source.classes() == ("01", "02", "12")
    assert source.name == f"hub data set {task.splits.hub}, split files of hub data set {task.splits.hub}"
    source.tidy()
    assert not (tmp_path / "CUB_200_2011.tgz").exists()
    assert (tmp_path / "json.zip").exists()


def test_the_revision_is_that_of_the_split_files(task: BenchmarkTask, tmp_path: Path) -> None:
    first = made(task, folder(tmp_path / "a", task, lists())).revision
    assert made(task, folder(tmp_path / "b", task, lists())).revision == first
    assert made(task, folder(tmp_path / "c", task, lists((1, 2, 13)))).revision != first


def changed(split: str, rows: object) -> dict[str, bytes]:
    return {**lists(), f"{split}.json": json.dumps(rows).encode()}


@pytest.mark.parametrize(
    ("own", "told"),
    [
        (changed("test", {"1.kind/a.jpg": 1}), "has 1 images in 'test', and cub200_2011 has 5"),
        (changed("val", [1, 2]), "is no split file"),
        (changed("val", {"a.jpg": "cat"}), "is no split file"),
        ({**lists(), "val.json": b"{"}, "is no split file"),
        (changed("val", {"../a.jpg": 1, "b.jpg": 2, "c.jpg": 12}), "leads out of its folder"),
        (lists((1, 2, 2)), "have 2 classes and cub200_2011 has 3"),
        (lists(paths="{place}.jpg"), r"has 0\.jpg in 'train' and in 'val'; these are no splits"),
    ],
)
def test_split_files_of_another_kind_are_refused(
    task: BenchmarkTask, tmp_path: Path, own: dict[str, bytes], told: str
) -> None:
    with pytest.raises(DataError, match=told):
        made(task, folder(tmp_path, task, own, {"x": b""}))


def test_archive_and_split_files_must_belong_together(task: BenchmarkTask, tmp_path: Path) -> None:
    own = lists()
    images = listed_images(own, task.inside)
    del images[f"{task.inside}/2.kind/test_1.jpg"]
    source = made(task, folder(tmp_path, task, own, images))
    with pytest.raises(DataError, match=r"has no image 2\.kind/test_1\.jpg, which the test split names"):
        list(source.pictures(set()))


def test_split_files_that_are_not_there_are_told(task: BenchmarkTask, tmp_path: Path) -> None:
    home = folder(tmp_path, task, lists())
    for name in ("train", "val", "test"):
        (home / task.name / f"{name}.json").unlink()
    (home / "json.zip").write_bytes(zipped({"dogs/train.json": b"{}"}))
    with pytest.raises(DataError, match=r"folder named like cub or cub200 or cub200_2011 \(folders .*: dogs\)"):
        made(task, home)


def test_split_files_at_the_top_of_their_archive_are_the_tasks(task: BenchmarkTask, tmp_path: Path) -> None:
    own = lists()
    assert task.archive is not None
    (tmp_path / task.archive.file).write_bytes(tarred(listed_images(own, task.inside)))
    (tmp_path / "splits.zip").write_bytes(zipped(own))
    assert made(task, tmp_path).classes() == ("01", "02", "12")
