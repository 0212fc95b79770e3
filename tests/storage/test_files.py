"""Atomic writing: the old file or the new one, and one line when it fails."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from trimtab.errors import TrainingError
from trimtab.storage.files import remove_drafts, write_atomically, write_bytes, write_json, write_text


def fail(number: int) -> None:
    raise OSError(number, os.strerror(number))


def test_text_is_utf8(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "é\n")
    assert (tmp_path / "a").read_bytes() == b"\xc3\xa9\n"


def test_names_that_are_not_utf8_come_out_as_their_bytes(tmp_path: Path) -> None:
    write_text(tmp_path / "a", os.fsdecode(b"b\xe9d.png"))
    assert (tmp_path / "a").read_bytes() == b"b\xe9d.png"


def test_json_of_names_that_are_not_utf8_comes_back(tmp_path: Path) -> None:
    write_json(tmp_path / "a", {"data": os.fsdecode(b"b\xe9d \\udce9"), "ü": 1})
    assert json.loads((tmp_path / "a").read_text(encoding="utf-8")) == {"data": "b\udce9d \\udce9", "ü": 1}


def test_json_comes_back(tmp_path: Path) -> None:
    write_json(tmp_path / "a", {"ä": [1, None, 0.5]})
    assert json.loads((tmp_path / "a").read_text(encoding="utf-8")) == {"ä": [1, None, 0.5]}


def test_an_existing_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a much longer text")
    write_bytes(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"


def test_nothing_else_is_left(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "x")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_others_may_read_as_the_umask_allows(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_text(tmp_path / "a", "x")
    finally:
        os.umask(old)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_a_failed_write_leaves_the_old_file_alone(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")

    def half(path: Path) -> None:
        path.write_text("ha")
        fail(errno.ENOSPC)

    with pytest.raises(TrainingError):
        write_atomically(tmp_path / "a", half)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old"}


def test_an_interrupted_write_leaves_the_old_file_alone(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")

    def interrupted(path: Path) -> None:
        path.write_text("ha")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "a", interrupted)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old"}


def test_a_full_disk_is_told_with_the_file(tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError, match=r"/a': the disk is full\. What was saved before is untouched; make room"
    ) as told:
        write_atomically(tmp_path / "a", lambda _: fail(errno.ENOSPC))
    assert "--resume" not in str(told.value)


def test_another_failure_is_told_in_the_systems_words(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=os.strerror(errno.EIO)):
        write_atomically(tmp_path / "a", lambda _: fail(errno.EIO))


def test_a_missing_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=os.strerror(errno.ENOENT)):
        write_text(tmp_path / "none" / "a", "x")


def test_drafts_of_a_killed_write_are_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in (".a.x1.tmp", ".a.x2.tmp", ".b.x1.tmp", "a", ".a", "a.tmp"):
        (tmp_path / name).touch()
    remove_drafts(tmp_path, ["a"])
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a", ".b.x1.tmp", "a", "a.tmp"]
