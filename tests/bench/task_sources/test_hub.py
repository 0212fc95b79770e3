"""VTAB-1k's tasks as parquet of the hub."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.bench.conftest import Tasks
from tests.bench.made import VTAB, columns, parquet, picture, repository, seed_of
from tests.bench.task_sources.server import Server
from trimtab.bench.task_sources.base import SourceImage
from trimtab.bench.task_sources.hub import HubParquet
from trimtab.bench.task_table import BenchmarkTask
from trimtab.errors import ConfigError, DataError
from trimtab.progress import Progress

QUIET = Progress()


@pytest.fixture
def task(tasks: Tasks) -> BenchmarkTask:
    return tasks["vtab1k"]["svhn"]


def source(task: BenchmarkTask, server: Server, home: Path, files: dict[str, bytes]) -> HubParquet:
    server.repositories[task.hub] = files
    made = HubParquet(task, home)
    made.fetch(QUIET)
    return made


def pictures(made: HubParquet) -> dict[tuple[str, int], SourceImage]:
    return {one.key: one for one in made.pictures(set())}


def test_images_are_the_bytes_of_the_wanted_splits_in_order(
    task: BenchmarkTask, server: Server, tmp_path: Path
) -> None:
    files = repository()
    made = source(task, server, tmp_path, files)
    found = pictures(made)
    assert sorted(found) == sorted(
        (split, place)
        for split, size in (("train", VTAB["train800"]), ("val", VTAB["val200"]), ("test", VTAB["test"]))
        for place in range(size)
    )
    assert all(one.content == picture(seed_of(*key)) for key, one in found.items())
    assert found["train", 4].label == "bee"
    assert found["train", 4].path == "images/train/00004.png"
    assert made.classes() == ("ant", "bee", "cow")
    assert made.name == f"hub data set {task.hub}"
    assert made.revision == server.revision(task.hub)
    assert not [path for _, path, _ in server.asked if "trainval" in path or "train800val200" in path]


def test_sizes_and_checksums_are_those_of_the_wanted_files(task: BenchmarkTask, server: Server, tmp_path: Path) -> None:
    files = repository()
    made = source(task, server, tmp_path, files)
    wanted = [name for name in files if name.startswith(("data/train800-", "data/val200-", "data/test-"))]
    total = sum(len(files[name]) for name in wanted)
    assert made.bytes_needed() == (total, total)
    assert [one["name"] for one in made.files()] == wanted
    assert all(len(str(one["sha256"])) == 64 for one in made.files())


def test_only_what_is_not_done_comes(task: BenchmarkTask, server: Server, tmp_path: Path) -> None:
    made = source(task, server, tmp_path, repository())
    left = {one.key for one in made.pictures({("train", 0), ("test", 3)})}
    assert left == set(pictures(made)) - {("train", 0), ("test", 3)}


def test_downloads_are_removed_when_asked(task: BenchmarkTask, server: Server, tmp_path: Path) -> None:
    made = source(task, server, tmp_path, repository())
    assert list(tmp_path.rglob("*.parquet"))
    made.tidy()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("names", [None, ("0", "1", "2"), ("same", "same", "other"), (" a", "b", "c")])
def test_labels_without_names_that_can_be_told_apart_are_numbers(
    task: BenchmarkTask, server: Server, tmp_path: Path, names: tuple[str, ...] | None
) -> None:
    assert source(task, server, tmp_path, repository(names=names)).classes() == ("0", "1", "2")


def test_files_of_the_hubs_own_converter_are_read_too(task: BenchmarkTask, server: Server, tmp_path: Path) -> None:
    files = {f"default/{name}/0000.parquet": parquet(split, range(VTAB[name]), "JPEG")
             for split, name in (("train", "train800"), ("val", "val200"), ("test", "test"))}  # fmt: skip
    found = pictures(source(task, server, tmp_path, files))
    assert len(found) == 12
    assert found["val", 2].path == "images/val/00002.jpg"


def test_images_may_be_plain_bytes(task: BenchmarkTask, server: Server, tmp_path: Path) -> None:
    files = repository()
    files["data/test-00000-of-00001.parquet"] = columns(image=[picture(k) for k in range(4)], label=[0, 1, 2, 0])
    assert pictures(source(task, server, tmp_path, files))["test", 3].content == picture(3)


def damaged(server: Server, task: BenchmarkTask, home: Path, change: dict[str, bytes]) -> None:
    pictures(source(task, server, home, {**repository(), **change}))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"PAR1 and no more", "is no parquet file that can be read"),
        (parquet("test", range(3)), "has 3 images in 'test', and svhn has 4"),
        (columns(image=[b"no image"] * 4, label=[0] * 4), "image 0 of test is no image that can be read"),
        (columns(image=["text"] * 4, label=[0] * 4), "image 0 of test has no bytes of an image"),
        (columns(image=[picture(0)] * 4, label=[0, 1, 3, 0]), "image 2 of test has the label 3; svhn has 0 to 2"),
        (columns(image=[picture(0)] * 4, label=["a"] * 4), "image 0 of test has the label 'a'"),
    ],
)
def test_test_files_of_another_kind_are_refused(
    task: BenchmarkTask, server: Server, tmp_path: Path, content: bytes, told: str
) -> None:
    with pytest.raises(DataError, match=told):
        damaged(server, task, tmp_path, {"data/test-00000-of-00001.parquet": content})


def test_a_file_damaged_inside_is_told(task: BenchmarkTask, server: Server, tmp_path: Path) -> None:
    content = parquet("test", range(4))
    # All but the last part, which says where the rest is.
    end = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    middle = content[:4] + bytes(end - 4) + content[end:]
    with pytest.raises(DataError, match=r"test-00000-of-00001\.parquet is no parquet file that can be read"):
        damaged(server, task, tmp_path, {"data/test-00000-of-00001.parquet": middle})


def test_another_task_is_refused(task: BenchmarkTask, server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has 4 classes and svhn 3; this is another task"):
        damaged(server, task, tmp_path, repository(names=("a", "b", "c", "d")))


def test_other_columns_are_refused(task: BenchmarkTask, server: Server, tmp_path: Path) -> None:
    half = {
        f"data/train800-0000{k}-of-00002.parquet": columns(img=[b""] * n, label=[0] * n) for k, n in ((0, 2), (1, 3))
    }
    with pytest.raises(DataError, match="have the columns img, label, and not image"):
        damaged(server, task, tmp_path, half)


def test_a_revision_that_is_not_whole_is_refused(task: BenchmarkTask, server: Server, tmp_path: Path) -> None:
    files = repository()
    del files["data/train800-00001-of-00002.parquet"]
    server.repositories[task.hub] = files
    with pytest.raises(DataError, match="has 1 files of the split 'train800', and their names say 2"):
        HubParquet(task, tmp_path)
    del files["data/val200-00000-of-00001.parquet"], files["data/train800-00000-of-00002.parquet"]
    with pytest.raises(DataError, match="no parquet files of the split 'train800'"):
        HubParquet(task, tmp_path)


def test_a_name_that_nobody_has_seen_is_told_as_such(tasks: Tasks, server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"vtab_svhn cannot be had.*inferred.*--from TREE takes svhn"):
        HubParquet(tasks["vtab1k"]["svhn"], tmp_path)
    with pytest.raises(DataError, match=r"vtab_cifar100 cannot be had: [^I]*--from TREE takes cifar100"):
        HubParquet(tasks["vtab1k"]["cifar100"], tmp_path)


def test_without_pyarrow_the_way_out_is_told(
    task: BenchmarkTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ConfigError, match=r"install trimtab\[benchmarks\], or take the images from a tree"):
        HubParquet(task, tmp_path)
