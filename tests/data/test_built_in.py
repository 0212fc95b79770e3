from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trimtab.data import BUILT_IN, BuiltInImage, list_images, named_splits, open_split, open_training, write_folder
from trimtab.data.built_in import hidden_by, named_images
from trimtab.errors import DataError, TrainingError

Folders = Callable[..., Path]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder where nothing is."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_set_is_taken_by_name(name: str) -> None:
    data, built_in = open_training(name), BUILT_IN[name]
    assert (data.source, data.split_made) == ("built-in", False)
    assert data.train.classes == data.val.classes == built_in.classes
    assert data.train.paths == built_in.images("train")
    assert data.val.paths == built_in.images("val")
    assert tuple(data.val.classes[label] for label in data.val.labels) == built_in.labels("val")
    assert data.notes == (
        f"{name} comes with trimtab; its {built_in.sizes['test']} test images are left for the evaluation.",
    )
    assert named_splits(name) == {"train", "val", "test"}
    assert open_split(name, "testing", built_in.classes).paths == built_in.images("test")
    assert len(open_split(name, "all", built_in.classes)) == sum(built_in.sizes.values())


def test_nothing_is_made_before_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BuiltInImage, "open", None)
    open_training("sprites/count")
    open_split("digits", "test", BUILT_IN["digits"].classes)


def test_other_classes_are_refused() -> None:
    with pytest.raises(DataError, match="digits/test/0000 has the class '0', which is none of the 2"):
        open_split("digits", "test", ["a", "b"])


@pytest.mark.parametrize(
    ("name", "near"),
    [("digitz", "'digits'"), ("sprites/orientatoin", "'sprites/orientation'"), ("sprites", "'sprites/"), ("zzz", "")],
)
def test_unknown_names_are_one_line_with_all_names(name: str, near: str) -> None:
    with pytest.raises(DataError) as raised:
        open_training(name)
    text = str(raised.value)
    assert "\n" not in text
    assert all(known in text for known in BUILT_IN)
    assert (f"Did you mean {near}" in text) == bool(near)


def test_a_folder_of_that_name_goes_before(class_folders: Folders) -> None:
    class_folders(Path("digits"), {"a": 3, "b": 3})
    data = open_training("digits")
    assert data.source == "folder"
    assert data.notes[0] == "digits is the one in this folder, not the data of that name that comes with trimtab."
    assert hidden_by("digits") == data.notes[0]
    assert named_splits("digits") == set()
    assert named_images("digits") == []
    assert [path.as_posix() for path in list_images(["digits/a"])] == [f"digits/a/00{k}.png" for k in range(3)]
    assert hidden_by("sprites/shape") is None


def test_a_file_of_that_name_goes_before() -> None:
    Path("digits").write_text("mine")
    with pytest.raises(DataError, match=r"digits is neither a folder nor a \.csv file"):
        open_training("digits")


def test_names_stand_for_images(class_folders: Folders) -> None:
    test = [f"digits/test/{number:04}" for number in range(797)]
    assert [str(image) for image in list_images(["digits"])] == test
    assert [str(image) for image in list_images(["digits/test/", "digits/test/0005"])] == test
    assert [str(image) for image in list_images(["sprites/count/val/0007"])] == ["sprites/count/val/0007"]
    assert len(list_images(["digits/val"])) == 200
    class_folders(Path("photos"), {"a": 1})
    mixed = list_images(["digits/val/0001", "photos"])
    assert [str(image) for image in mixed] == [str(Path("photos/a/000.png")), "digits/val/0001"]


@pytest.mark.parametrize("name", ["digits/holdout", "digits/test/797", "digits/test/00", "digits2", "sprites", "ts"])
def test_names_that_stand_for_nothing(name: str) -> None:
    with pytest.raises(DataError, match="matches no image"):
        list_images([name])


@pytest.mark.nightly
def test_a_set_is_written_out_as_folders() -> None:
    folder = write_folder("sprites/shape", "out/shapes")
    data, named = open_training(folder), open_training("sprites/shape")
    assert data.train.classes == named.train.classes
    assert len(data.train) == len(named.train)
    test = open_split(folder, "test", data.train.classes)
    assert len(test) == 800
    built_in = BUILT_IN["sprites/shape"]
    for path in test.paths[::100]:
        assert isinstance(path, Path)
        number = int(path.stem)
        assert built_in.labels("test")[number] == path.parent.name
        with Image.open(path) as image:
            assert np.array_equal(np.asarray(image), np.asarray(built_in.image("test", number)))
    with pytest.raises(DataError, match="is not an empty folder"):
        write_folder("digits", "out/shapes")
    with pytest.raises(DataError, match=r"only digits, sprites/colour, .* Did you mean 'digits'\?"):
        write_folder("digit", "out/more")
    assert [path.name for path in Path("out").iterdir()] == ["shapes"]


def test_a_folder_appears_whole_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(TrainingError, match="Could not write the folder 'out/digits': No space left"):
        write_folder("digits", "out/digits")
    assert [path.name for path in Path("out").iterdir()] == []
