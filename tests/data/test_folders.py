from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from trimtab.data import find_images, list_images
from trimtab.errors import DataError


@pytest.fixture(autouse=True)
def photos(tmp_path: Path, class_folders: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    class_folders(tmp_path / "photos", {"a": 2, "b": 1, ".hidden": 1})
    (tmp_path / "photos" / "notes.txt").write_text("not an image")
    (tmp_path / "photos" / "odd[1].dat").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def listed(*patterns: str | Path) -> list[str]:
    return [path.as_posix() for path in list_images(patterns)]


def test_a_folder_is_searched_whole() -> None:
    assert listed("photos") == ["photos/a/000.png", "photos/a/001.png", "photos/b/000.png"]


def test_globs() -> None:
    assert listed("photos/*/000.png") == ["photos/a/000.png", "photos/b/000.png"]
    assert listed("photos/**/0*") == listed("photos/*") == listed("photos")


def test_a_named_file_is_taken_as_it_is() -> None:
    assert listed("photos/odd[1].dat") == ["photos/odd[1].dat"]


def test_each_image_once(photos: Path) -> None:
    assert listed("photos/b/000.png", photos / "photos/b", "./photos/b/*.png") == ["photos/b/000.png"]


def test_what_matches_nothing_is_named_beside_the_rest() -> None:
    images, unmatched = find_images(["photos/b", "gone.png", "photos/*.jpg"])
    assert [path.as_posix() for path in images] == ["photos/b/000.png"]
    assert list(unmatched) == ["gone.png", "photos/*.jpg"]
    assert unmatched["gone.png"].startswith("'gone.png' matches no image")


@pytest.mark.parametrize("pattern", ["", "photos/*.jpg", "nowhere", "photos/.hidden/none", "photos/*.txt"])
def test_nothing_matched(pattern: str) -> None:
    with pytest.raises(DataError, match="matches no image") as caught:
        listed("photos", pattern)
    assert repr(pattern) in str(caught.value)
