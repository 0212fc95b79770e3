"""VTAB-1k's tasks in trees of NOAH's layout."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.bench.conftest import Tasks
from tests.bench.made import NOAH, VTAB, noah_tree, picture, seed_of
from trimtab.bench.task_sources.noah import NoahTree
from trimtab.bench.task_table import BenchmarkTask
from trimtab.errors import DataError
from trimtab.progress import Progress


@pytest.fixture
def task(tasks: Tasks) -> BenchmarkTask:
    return tasks["vtab1k"]["cifar100"]


@pytest.mark.parametrize("above", ["", "vtab-1k", "vtab1k"])
@pytest.mark.parametrize("folder", ["cifar", "cifar100"])
@pytest.mark.parametrize("packed", [False, True])
def test_files_come_as_they_are_with_numbers_for_labels(
    task: BenchmarkTask, tmp_path: Path, above: str, folder: str, packed: bool
) -> None:
    tree = tmp_path / "tree"
    noah_tree(tree / above, task, folder=folder)
    if packed:
        tree = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", tree))
    source = NoahTree(task, tree)
    source.fetch(Progress())
    found = {one.key: one for one in source.pictures({("val", 1)})}
    assert len(found) == VTAB["train800val200"] + VTAB["test"] - 1
    assert all(one.content == picture(seed_of(*key), "JPEG") for key, one in found.items())
    assert (found["train", 4].label, found["train", 4].path) == ("1", "images/train/00004.jpg")
    assert source.classes() == ("0", "1", "2")
    fetched, images = source.bytes_needed()
    assert fetched == 0
    assert images == pytest.approx(sum(len(one.content) for one in found.values()), rel=0.25)
    assert source.copy is True


def test_the_revision_is_that_of_the_lists(task: BenchmarkTask, tmp_path: Path) -> None:
    own = noah_tree(tmp_path, task)
    before = NoahTree(task, tmp_path).revision
    assert NoahTree(task, tmp_path).revision == before
    text = (own / "test.txt").read_text().replace("000000.jpg 0", "000000.jpg 1")
    (own / "test.txt").write_text(text)
    assert NoahTree(task, tmp_path).revision != before


def test_an_image_of_another_format_than_its_name_is_named_after_what_it_is(
    task: BenchmarkTask, tmp_path: Path
) -> None:
    own = noah_tree(tmp_path, task)
    (own / "images" / "test" / "000002.jpg").write_bytes(picture(7, "PNG"))
    found = {one.key: one.path for one in NoahTree(task, tmp_path).pictures(set())}
    assert found["test", 2] == "images/test/00002.png"


def change(own: Path, name: str, text: str) -> None:
    (own / f"{name}.txt").write_text(text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("images/test/000000.jpg 0\n", "has 1 images in 'test', and cifar100 has 4"),
        ("images/test/000000.jpg\n", "line 1: 'images/test/000000.jpg' is no path and label from 0 to 2"),
        ("images/test/000000.jpg 3\n", "line 1: 'images/test/000000.jpg 3' is no path and label from 0 to 2"),
        ("\n../../secret.jpg 0\n", "names '../../secret.jpg', which leads out of its folder"),
        ("/etc/passwd 0\n", "leads out of its folder"),
        ("images/test/\udcff.jpg x\n", "is no path and label"),
    ],
)
def test_lists_of_another_kind_are_refused(task: BenchmarkTask, tmp_path: Path, text: str, told: str) -> None:
    own = noah_tree(tmp_path, task)
    (own / "test.txt").write_bytes(text.encode("utf-8", errors="surrogateescape"))
    with pytest.raises(DataError, match=told):
        NoahTree(task, tmp_path)


@pytest.mark.parametrize("lost", ["val200.txt", "images/test/000001.jpg"])
def test_what_a_tree_lacks_is_told(task: BenchmarkTask, tmp_path: Path, lost: str) -> None:
    (noah_tree(tmp_path, task) / lost).unlink()
    with pytest.raises(DataError, match=f"{lost} cannot be read .*; copy it again"):
        NoahTree(task, tmp_path)


def test_an_image_lost_after_the_first_ones_is_told_too(task: BenchmarkTask, tmp_path: Path) -> None:
    own = noah_tree(tmp_path, task)
    source = NoahTree(task, tmp_path)
    (own / "images" / NOAH["val"] / "000002.jpg").write_bytes(b"half an im")
    with pytest.raises(DataError, match=r"000002\.jpg is no image that can be read"):
        list(source.pictures(set()))
    (own / "images" / NOAH["val"] / "000002.jpg").unlink()
    with pytest.raises(DataError, match=r"000002\.jpg cannot be read"):
        list(source.pictures(set()))


def test_what_is_no_tree_is_told(task: BenchmarkTask, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none does not exist; name the folder with cifar/train800\.txt in it"):
        NoahTree(task, tmp_path / "none")
    with pytest.raises(DataError, match=r"has no cifar/train800\.txt or cifar100/train800\.txt; cifar100 needs"):
        NoahTree(task, tmp_path)
    (tmp_path / "a.zip").write_bytes(b"no zip")
    with pytest.raises(DataError, match=r"a\.zip is no zip file that can be read"):
        NoahTree(task, tmp_path / "a.zip")
