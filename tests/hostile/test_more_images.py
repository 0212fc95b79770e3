"""More of what folders, files and masks are like: names of splits, formats, depths and keys, conventions of a set."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import scenes
from tests.hostile.test_finding import CLASSES, noise
from trimtab.data import open_scenes, open_split, open_training
from trimtab.data.found import split_like, split_pairs
from trimtab.errors import DataError

# --- names of splits --------------------------------------------------------------------------------------

PAIRS = [
    ("red_train", "red_test"), ("train_red", "val_red"), ("trainA", "testA"), ("trn", "tst"), ("train", "hold_out"),
    ("train", "Held-Out"), ("train.old", "test.old"), ("my train", "my validate"), ("1/train_a", "1/test_a"),
]  # fmt: skip


@pytest.mark.parametrize("inner", PAIRS)
def test_pairs_of_names_inside_classes_are_splits(tmp_path: Path, inner: tuple[str, str]) -> None:
    for label in CLASSES:
        for place in inner:
            noise(tmp_path / label / place / "0.png", 1)
    with pytest.raises(DataError, match="named for splits inside") as caught:
        open_training(tmp_path)
    assert "\n" not in str(caught.value)
    assert all(repr(place) in str(caught.value) for place in inner)
    assert len(open_split(tmp_path, "all", CLASSES)) == 4


def test_pairs_of_names_are_no_classes(tmp_path: Path) -> None:
    for name in ("red_train", "red_test", "green_train", "green_test"):
        noise(tmp_path / name / "0.png", 1)
    with pytest.raises(DataError, match="look like splits and would be used as classes"):
        open_training(tmp_path)


def test_pairs_of_names_in_folders_of_masks(tmp_path: Path) -> None:
    scenes.write(tmp_path, [("street_train", 2), ("street_test", 2)])
    with pytest.raises(DataError, match="used alike"):
        open_scenes(tmp_path)


def test_links_to_splits_are_splits_whatever_they_are_called(tmp_path: Path) -> None:
    for label in CLASSES:
        (tmp_path / "set" / label).mkdir(parents=True)
        for split in ("train", "test"):
            noise(tmp_path / "store" / label / split / "0.png", 1)
            (tmp_path / "set" / label / f"part {split[1]}").symlink_to(tmp_path / "store" / label / split)
    with pytest.raises(DataError, match=r"named for splits inside .*'part e', 'part r'"):
        open_training(tmp_path / "set")


@pytest.mark.parametrize(
    "names", [("train station", "test bench"), ("bus_test", "bus"), ("train 1", "train 2"), ("test_a", "val_a")]
)
def test_other_names_are_no_pairs(tmp_path: Path, names: tuple[str, ...]) -> None:
    assert split_pairs(names) == {}
    for name in names:
        noise(tmp_path / "red" / name / "0.png", 1)
        noise(tmp_path / "green" / "0.png", 1)
    open_training(tmp_path)
    assert split_like("hold up") is None
