"""Archives, packed and unpacked, the user's and downloaded ones."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.bench.conftest import Tasks
from tests.bench.made import tarred, zipped
from tests.bench.task_sources.server import Server
from trimtab.bench.task_sources.archives import Fetched, opened, real_names
from trimtab.bench.task_table import Archive, BenchmarkTask
from trimtab.errors import DataError
from trimtab.progress import Progress

FILES = {"a/1.jpg": b"one", "a/2.jpg": b"two", "__MACOSX/a/1.jpg": b"x", "a/._1.jpg": b"x"}
QUIET = Progress()


@pytest.fixture
def task(tasks: Tasks) -> BenchmarkTask:
    return tasks["fgvc"]["stanford_dogs"]


@pytest.mark.parametrize("name", ["x.zip", "x.ZIP", "x.tar", "x.tgz", "x.tar.gz", "x"])
def test_all_kinds_are_read_alike(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "x":
        for inner, content in FILES.items():
            (path / inner).parent.mkdir(parents=True, exist_ok=True)
            (path / inner).write_bytes(content)
    else:
        packed = zipped(FILES) if name.lower().endswith("zip") else tarred(FILES, "w" if name == "x.tar" else "w:gz")
        path.write_bytes(packed)
    with opened(path) as container:
        assert set(container.names) == set(FILES)
        assert real_names(container) == ["a/1.jpg", "a/2.jpg"]
        assert [container.read(inner) for inner in ("a/2.jpg", "a/1.jpg")] == [b"two", b"one"]


@pytest.mark.parametrize("name", ["x.zip", "x.tgz"])
@pytest.mark.parametrize("content", [b"no archive", b""])
def test_what_is_no_archive_is_told(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name} cannot be read .*; fetch it again"), opened(tmp_path / name):
        pass


@pytest.mark.parametrize("packed", [tarred(FILES), zipped({"a/1.jpg": bytes(5000)})])
def test_half_an_archive_is_told(tmp_path: Path, packed: bytes) -> None:
    path = tmp_path / ("x.tgz" if packed[:2] == b"\x1f\x8b" else "x.zip")
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match="cannot be read"), opened(path) as container:
        container.read("a/1.jpg")


def test_a_file_that_is_not_in_it_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(zipped(FILES))
    with pytest.raises(DataError, match="cannot be read"), opened(tmp_path / "x.zip") as container:
        container.read("b.jpg")


@pytest.mark.parametrize("name", ["images.tar", "IMAGES.zip", "stanford_dogs.tgz"])
def test_the_users_archive_goes_before_and_stays(task: BenchmarkTask, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"content")
    assert task.archive is not None
    found = Fetched(task, task.archive, tmp_path / "downloads", tmp_path)
    found.fetch(QUIET)
    sha256 = hashlib.sha256(b"content").hexdigest()
    assert (found.path, found.bytes, found.where) == (tmp_path / name, 0, f"{name} (the user's)")
    assert found.facts() == {"name": name, "bytes": 7, "checksum": f"sha256:{sha256}"}
    found.remove()
    assert (tmp_path / name).exists()


def test_an_unpacked_archive_will_do_and_a_packed_one_goes_before(task: BenchmarkTask, tmp_path: Path) -> None:
    assert task.archive is not None
    (tmp_path / "Images" / "n1").mkdir(parents=True)
    (tmp_path / "Images" / "n1" / "1.jpg").write_bytes(b"12345")
    found = Fetched(task, task.archive, tmp_path / "downloads", tmp_path)
    found.fetch(QUIET)
    assert found.facts() == {"name": "Images", "bytes": 5, "checksum": ""}
    (tmp_path / "images.tar").write_bytes(b"")
    assert Fetched(task, task.archive, tmp_path / "downloads", tmp_path).path == tmp_path / "images.tar"


def test_a_file_of_the_archives_name_must_be_that_file(task: BenchmarkTask, tmp_path: Path) -> None:
    archive = Archive("images.tar", checksum=f"md5:{'0' * 32}")
    (tmp_path / "images.tar").write_bytes(b"content")
    found = Fetched(task, archive, tmp_path / "downloads", tmp_path)
    with pytest.raises(DataError, match=r"images\.tar is damaged or another file"):
        found.fetch(QUIET)
    assert (tmp_path / "images.tar").exists()
    (tmp_path / "images.tar").rename(tmp_path / "images.tar.gz")
    Fetched(task, archive, tmp_path / "downloads", tmp_path).fetch(QUIET)


def test_an_archive_at_an_address(task: BenchmarkTask, server: Server, tmp_path: Path) -> None:
    server.files["/images.tar"] = b"content"
    archive = Archive("images.tar", url=f"{server.address}/images.tar")
    found = Fetched(task, archive, tmp_path / "downloads", None)
    assert (found.bytes, found.size()) == (7, 7)
    found.fetch(QUIET)
    assert found.path.read_bytes() == b"content"
    assert found.where == archive.url
    again = Fetched(task, archive, tmp_path / "downloads", None)
    assert again.bytes == 0
    again.fetch(QUIET)
    assert len(server.got("images.tar")) == 1
    again.remove()
    assert not found.path.exists()


def test_a_damaged_download_is_fetched_anew(task: BenchmarkTask, server: Server, tmp_path: Path) -> None:
    server.files["/images.tar"] = b"other"
    checksum = f"md5:{hashlib.md5(b'content').hexdigest()}"
    archive = Archive("images.tar", url=f"{server.address}/images.tar", checksum=checksum)
    with pytest.raises(DataError, match="run the same command to fetch it anew"):
        Fetched(task, archive, tmp_path, None).fetch(QUIET)
    server.files["/images.tar"] = b"content"
    found = Fetched(task, archive, tmp_path, None)
    found.fetch(QUIET)
    assert found.facts()["checksum"] == checksum


def test_an_archive_of_the_hub_at_its_pinned_revision(task: BenchmarkTask, server: Server, tmp_path: Path) -> None:
    server.repositories["o/set"] = {"images.tar": b"content"}
    pinned = f"o/set@{server.revision('o/set')}"
    found = Fetched(task, Archive("images.tar", hub=pinned), tmp_path, None)
    assert (found.bytes, found.where) == (7, f"hub data set {pinned}")
    found.fetch(QUIET)
    assert found.path == tmp_path / "images.tar"
    assert found.path.read_bytes() == b"content"
    server.repositories["o/set"]["more"] = b"x"
    with pytest.raises(
        DataError, match=r"it has no revision .*\. Or fetch others\.tar yourself, put it as others\.tar"
    ):
        Fetched(task, Archive("others.tar", hub=pinned), tmp_path, None)
    with pytest.raises(DataError, match=r"o/set has no others\.tar; fetch others\.tar yourself, put it as others\.tar"):
        Fetched(task, Archive("others.tar", hub="o/set"), tmp_path, None)


def test_what_a_person_has_to_fetch_says_how_and_where_to_put_it(tasks: Tasks, tmp_path: Path) -> None:
    task = tasks["fgvc"]["nabirds"]
    assert task.archive is not None
    with pytest.raises(
        DataError, match=r"fill in the form at .*put it as nabirds\.tar\.gz into a folder DIR, and run .* --from DIR"
    ):
        Fetched(task, task.archive, tmp_path / "downloads", None)
    where = tmp_path / "nabirds.tar.gz"
    with pytest.raises(DataError, match=f"put it there as {where}, and run the same command again"):
        Fetched(task, task.archive, tmp_path / "downloads", tmp_path)
    with pytest.raises(DataError, match=r"none is no folder; name one that has nabirds\.tar\.gz in it"):
        Fetched(task, task.archive, tmp_path / "downloads", tmp_path / "none")
