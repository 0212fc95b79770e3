"""Downloads: whole, interrupted, gone on with, damaged."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.bench.task_sources.server import Server
from tests.versions import has
from trimtab.bench.task_sources import fetch
from trimtab.bench.task_sources.fetch import Repository, check, fetch_url, size_of_url
from trimtab.errors import DataError
from trimtab.progress import Progress

CONTENT = bytes(range(256)) * 12_000  # 3 MB
QUIET = Progress()


class Told(Progress):
    """Remembers the stages, and how far each came."""

    def __init__(self) -> None:
        self.stages: list[list[object]] = []

    def stage(self, title, total, unit, done=0):  # type: ignore[no-untyped-def]
        entry = [title, total, done]
        self.stages.append(entry)
        parent = super().stage(title, total, unit, done)

        class Follow:
            def __enter__(self):  # type: ignore[no-untyped-def]
                parent.__enter__()

                def advance(count: int = 1, note: str = "") -> None:
                    entry[2] += count

                return advance

            def __exit__(self, *error: object) -> None:
                parent.__exit__(None, None, None)

        return Follow()


def test_a_file_comes_whole_and_is_told_in_megabytes(server: Server, tmp_path: Path) -> None:
    server.files["/a/set.zip"] = CONTENT
    told = Told()
    assert size_of_url(f"{server.address}/a/set.zip") == len(CONTENT)
    fetch_url(f"{server.address}/a/set.zip", tmp_path / "set.zip", told)
    assert (tmp_path / "set.zip").read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["set.zip"]
    assert told.stages == [["Downloading set.zip", 3, 3]]


@pytest.mark.parametrize("sized", [True, False])
def test_a_broken_answer_is_gone_on_with(server: Server, tmp_path: Path, sized: bool) -> None:
    server.files["/set.zip"] = CONTENT
    server.breaks["set.zip"] = 2_000_000
    if sized:
        fetch_url(f"{server.address}/set.zip", tmp_path / "set.zip", QUIET)
        assert server.got("set.zip") == ["", "bytes=2000000-"]
        assert (tmp_path / "set.zip").read_bytes() == CONTENT
    else:
        # Without a length nobody can tell that something is missing; an archive's checksum or reader will.
        server.sized, server.breaks = False, {}
        fetch_url(f"{server.address}/set.zip", tmp_path / "set.zip", QUIET)
        assert (tmp_path / "set.zip").read_bytes() == CONTENT


def broken(server: Server, folder: Path) -> None:
    """Leave two of three megabytes, as a process that was killed."""
    server.files["/set.zip"] = CONTENT
    with pytest.raises(RuntimeError):
        fetch_url(f"{server.address}/set.zip", folder / "set.zip", Killed(2))


class Killed(Progress):
    """Ends the download after some megabytes."""

    def __init__(self, after: int) -> None:
        self.left = after

    def stage(self, title, total, unit, done=0):  # type: ignore[no-untyped-def]
        outer = self

        class Follow:
            def __enter__(self):  # type: ignore[no-untyped-def]
                def advance(count: int = 1, note: str = "") -> None:
                    outer.left -= count
                    if outer.left <= 0:
                        raise RuntimeError

                return advance

            def __exit__(self, *error: object) -> None:
                pass

        return Follow()


def test_a_later_process_goes_on(server: Server, tmp_path: Path) -> None:
    broken(server, tmp_path)
    assert not (tmp_path / "set.zip").exists()
    told = Told()
    fetch_url(f"{server.address}/set.zip", tmp_path / "set.zip", told)
    assert server.got("set.zip")[1].startswith("bytes=2")
    assert (tmp_path / "set.zip").read_bytes() == CONTENT
    assert told.stages == [["Downloading set.zip", 3, 3]]


def test_another_file_at_the_address_comes_from_its_beginning(server: Server, tmp_path: Path) -> None:
    broken(server, tmp_path)
    server.files["/set.zip"] = CONTENT[::-1]
    fetch_url(f"{server.address}/set.zip", tmp_path / "set.zip", QUIET)
    assert (tmp_path / "set.zip").read_bytes() == CONTENT[::-1]


def test_what_may_be_another_file_is_not_gone_on_with(server: Server, tmp_path: Path) -> None:
    server.stamped = False
    broken(server, tmp_path)
    fetch_url(f"{server.address}/set.zip", tmp_path / "set.zip", QUIET)
    assert server.got("set.zip") == ["", ""]
    assert (tmp_path / "set.zip").read_bytes() == CONTENT


def test_a_server_that_serves_no_parts_sends_all(server: Server, tmp_path: Path) -> None:
    broken(server, tmp_path)
    server.ranges = False
    fetch_url(f"{server.address}/set.zip", tmp_path / "set.zip", QUIET)
    assert (tmp_path / "set.zip").read_bytes() == CONTENT


def test_what_was_complete_but_not_in_place_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    broken(server, tmp_path)
    (tmp_path / "set.zip.part").write_bytes(CONTENT)
    fetch_url(f"{server.address}/set.zip", tmp_path / "set.zip", QUIET)
    assert (tmp_path / "set.zip").read_bytes() == CONTENT
    assert server.got("set.zip") == ["", f"bytes={len(CONTENT)}-"]


def test_a_part_that_is_too_long_is_refused(server: Server, tmp_path: Path) -> None:
    broken(server, tmp_path)
    (tmp_path / "set.zip.part").write_bytes(CONTENT + b"x")
    with pytest.raises(DataError, match="416"):
        fetch_url(f"{server.address}/set.zip", tmp_path / "set.zip", QUIET)


def test_a_server_out_of_order_is_asked_again_and_a_refusal_is_final(server: Server, tmp_path: Path) -> None:
    server.files["/set.zip"] = CONTENT
    server.failing = 2
    fetch_url(f"{server.address}/set.zip", tmp_path / "set.zip", QUIET)
    assert len(server.got("set.zip")) == 3
    with pytest.raises(DataError, match=r"none\.zip cannot be downloaded \(HTTP Error 404.*none\.zip by hand"):
        fetch_url(f"{server.address}/none.zip", tmp_path / "none.zip", QUIET)
    assert len(server.got("none.zip")) == 1
    with pytest.raises(DataError, match=r"does not answer.*none\.zip by hand"):
        size_of_url(f"{server.address}/none.zip")
    with pytest.raises(DataError, match="is no http address"):
        fetch_url("file:///etc/hostname", tmp_path / "x", QUIET)


def test_checksums(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(b"content")
    sha256, md5 = hashlib.sha256(b"content").hexdigest(), hashlib.md5(b"content").hexdigest()
    assert check(path, "", QUIET) == check(path, f"sha256:{sha256}", QUIET) == f"sha256:{sha256}"
    assert check(path, f"md5:{md5}", QUIET) == f"md5:{md5}"
    with pytest.raises(DataError, match=f"its md5 is {md5}, and it should be {'0' * 32}; remove it"):
        check(path, f"md5:{'0' * 32}", QUIET)
    assert path.exists()
    with pytest.raises(DataError, match="run the same command to fetch it anew"):
        check(path, f"md5:{'0' * 32}", QUIET, remove=True)
    assert not path.exists()


def test_a_file_of_the_hub(server: Server, tmp_path: Path) -> None:
    server.repositories["o/set"] = {"data/a.parquet": CONTENT, "README.md": b"text"}
    repository, told = Repository("o/set"), Told()
    assert repository.revision == server.revision("o/set")
    assert repository.files["data/a.parquet"].sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert repository.files["README.md"].sha256 == ""
    path = repository.fetch("data/a.parquet", tmp_path, told)
    assert path.read_bytes() == CONTENT
    assert path == tmp_path / "data" / "a.parquet"
    assert [stage[0] for stage in told.stages] == ["Downloading data/a.parquet", "Checking a.parquet"]
    # A client before 1.1 cannot be told where to show how far it is.
    told_of = told.stages if has("huggingface_hub", "1.1") else told.stages[1:]
    assert all(0 < done <= total for _, total, done in told_of)  # type: ignore[operator]
    asked = len(server.asked)
    assert repository.fetch("data/a.parquet", tmp_path, QUIET) == path
    assert len(server.asked) == asked


@pytest.mark.skipif(
    not has("huggingface_hub", "1.0"), reason="an older client of the hub gives up where one breaks off"
)
def test_a_file_of_the_hub_that_breaks_off_is_gone_on_with(server: Server, tmp_path: Path) -> None:
    server.repositories["o/set"] = {"a.parquet": CONTENT}
    server.breaks["a.parquet"] = 2_000_000
    assert Repository("o/set").fetch("a.parquet", tmp_path, QUIET).read_bytes() == CONTENT
    assert len(server.got("a.parquet")) == 2


def test_a_file_of_the_hub_that_was_damaged_on_the_disk_is_removed(server: Server, tmp_path: Path) -> None:
    server.repositories["o/set"] = {"a.parquet": CONTENT}
    path = Repository("o/set").fetch("a.parquet", tmp_path, QUIET)
    path.write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(DataError, match="is damaged or another file"):
        Repository("o/set").fetch("a.parquet", tmp_path, QUIET)
    assert Repository("o/set").fetch("a.parquet", tmp_path, QUIET).read_bytes() == CONTENT


def test_what_the_hub_refuses_is_told(server: Server, tmp_path: Path) -> None:
    server.repositories["o/set"] = {"a.parquet": CONTENT}
    server.gated.add("o/gated")
    with pytest.raises(DataError, match="o/none cannot be had: the hub shows no data set of this name"):
        Repository("o/none")
    with pytest.raises(DataError, match="it has no revision v9"):
        Repository("o/set", "v9")
    with pytest.raises(DataError, match=r"asks for more; accept that on its page and log in with `hf auth login`"):
        Repository("o/gated")
    with pytest.raises(DataError, match=r"has no file b\.parquet at revision"):
        Repository("o/set").fetch("b.parquet", tmp_path, QUIET)
    repository = Repository("o/set")
    del server.repositories["o/set"]["a.parquet"]
    with pytest.raises(DataError, match=r"a\.parquet of the hub's data set o/set cannot be had.*goes on"):
        repository.fetch("a.parquet", tmp_path, QUIET)


def test_no_hub_at_all_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DataError, match=r"does not answer or refuses .*; check the network"):
        Repository("o/set")


def test_a_hub_that_names_no_revision_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.repositories["o/set"] = {}
    monkeypatch.setattr(Server, "revision", lambda self, name: "")
    with pytest.raises(DataError, match="does not say which revision of o/set"):
        Repository("o/set")


def test_clients_that_cannot_be_told_how_to_show_progress_are_used(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    whole = huggingface_hub.hf_hub_download

    def older(repo: str, name: str, *, repo_type: str, revision: str, local_dir: Path, endpoint: str) -> str:
        return str(whole(repo, name, repo_type=repo_type, revision=revision, local_dir=local_dir, endpoint=endpoint))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", older)
    server.repositories["o/set"] = {"a.parquet": b"content"}
    assert Repository("o/set").fetch("a.parquet", tmp_path, QUIET).read_bytes() == b"content"
    assert fetch._megabytes(0) == 1
