from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

from trimtab.data import Digits


def positions(digits: Digits, split: str) -> list[int]:
    """Where a split's images are in scikit-learn's order, found by their pixels."""
    where = {(pixels * (255 / 16)).astype(np.uint8).tobytes(): k for k, pixels in enumerate(load_digits().images)}
    return [where[image.open().tobytes()] for image in digits.images(split)]


def test_every_image_is_in_one_split() -> None:
    parts = [positions(Digits(), split) for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [800, 200, 797]
    assert sorted(position for part in parts for position in part) == list(range(1797))


def test_labels_are_the_digits() -> None:
    target = load_digits().target
    for split in Digits.sizes:
        found = positions(Digits(), split)
        assert Digits().labels(split) == tuple(str(target[position]) for position in found)


def test_digits_are_balanced() -> None:
    for split, counts in {"train": {80}, "val": {20}, "test": set(range(74, 84))}.items():
        labels = Digits().labels(split)
        assert {labels.count(digit) for digit in Digits.classes} <= counts


def test_the_seed_decides_the_split() -> None:
    assert positions(Digits(), "val")[:8] == positions(Digits(seed=0), "val")[:8]
    assert set(positions(Digits(seed=1), "val")) != set(positions(Digits(), "val"))


def test_the_split_is_the_same_on_every_machine() -> None:
    assert positions(Digits(), "train")[:5] == [0, 861, 518, 345, 1254]


def test_images_are_grey() -> None:
    image = Digits().images("test")[0].open()
    assert (image.size, image.mode) == ((8, 8), "L")
    assert max(np.asarray(image.open()).max() for image in Digits().images("test")) == 255
