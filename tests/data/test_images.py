from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trimtab.data import BUILT_IN, Digits, open_image, stamp
from trimtab.data.images import drawn, randomness
from trimtab.errors import DataError


def test_an_image_is_told_by_its_name() -> None:
    image = Digits().images("val")[7]
    assert str(image) == "digits/val/0007"
    assert image == Digits().images("val")[7]
    assert image != Digits(seed=1).images("val")[7]
    assert len({*Digits().images("val"), *Digits().images("test")}) == 997


def test_files_and_built_in_images_are_opened_alike(tmp_path: Path) -> None:
    image = BUILT_IN["sprites/shape"].images("train")[0]
    image.open().save(tmp_path / "a.png")
    opened = [np.asarray(open_image(source)) for source in (image, tmp_path / "a.png", str(tmp_path / "a.png"))]
    assert all(np.array_equal(opened[0], other) for other in opened[1:])


def test_a_stamp_opens_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "open", None)
    (tmp_path / "a.png").write_bytes(b"12345")
    assert stamp(tmp_path / "a.png") == ("a.png", 5)
    assert stamp(BUILT_IN["sprites/count"].images("test")[3]) == ("sprites/count/test/0003", 1)


def test_a_set_without_masks_says_so() -> None:
    with pytest.raises(DataError, match="digits have no masks; those of sprites"):
        Digits().images("train")[0].mask()


def test_draws_are_the_same_everywhere() -> None:
    assert drawn("a", 1).hex().startswith("773232abe934")  # printf a/1 | sha256sum
    assert randomness("a", 1).random() == 0.6289219413824404
    assert randomness("a", 2).random() != 0.6289219413824404
