"""Real handwritten digits, which come with scikit-learn."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from PIL import Image

from trimtab.data.images import BuiltInSet, drawn


@dataclass(frozen=True)
class Digits(BuiltInSet):
    """The 1797 grey images of 8x8 pixels that scikit-learn carries along, in a split of our own.

    The first 800 of a random order are for training, 200 for validation and 797 for testing, with 80, 20 and
    74 to 83 of each digit. Who wrote which image is not known, so a writer can be in all three.

    Attributes:
        seed: Which images are in which split.

    References:
        | E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits (UCI, 1998), its test part
        | https://scikit-learn.org/stable/modules/generated/sklearn.datasets.load_digits.html
    """

    seed: int = 0
    name: ClassVar[str] = "digits"
    classes: ClassVar[tuple[str, ...]] = tuple("0123456789")
    sizes: ClassVar[Mapping[str, int]] = {"train": 800, "val": 200, "test": 797}

    def labels(self, split: str) -> tuple[str, ...]:
        """The digit in every image of a split."""
        _, digits = _loaded()
        return tuple(str(digits[position]) for position in self._positions(split))

    def image(self, split: str, number: int) -> Image.Image:
        """One image of 8x8 pixels, white on black."""
        pixels, _ = _loaded()
        return Image.fromarray(pixels[self._positions(split)[number]])

    def _positions(self, split: str) -> tuple[int, ...]:
        """Positions of a split's images in scikit-learn's order."""
        first = 0
        for name, size in self.sizes.items():
            if name == split:
                return _order(self.seed)[first : first + size]
            first += size
        raise KeyError(split)


@functools.cache
def _loaded() -> tuple[np.ndarray, tuple[int, ...]]:
    """All images, (1797, 8, 8) uint8, and their digits."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    # Ink is counted from 0 to 16.
    return (loaded.images * (255 / 16)).astype(np.uint8), tuple(loaded.target.tolist())


@functools.cache
def _order(seed: int) -> tuple[int, ...]:
    """All positions in a random order in which the digits take turns, so that every part of it is balanced."""
    _, digits = _loaded()
    members: defaultdict[int, list[int]] = defaultdict(list)
    for position in sorted(range(len(digits)), key=lambda position: drawn("digits", seed, position)):
        members[digits[position]].append(position)
    turns = [(turn, digit, position) for digit, own in members.items() for turn, position in enumerate(own)]
    return tuple(position for _, _, position in sorted(turns))
