"""Small data sets made of images whose content tells them apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """A colourful image with smooth and sharp parts, other for every seed."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).copy()
    pixels[height // 4 : height // 2, width // 3 : width // 2] = generator.integers(0, 256, 3)
    return Image.fromarray(pixels)


@pytest.fixture(name="picture")
def picture_fixture() -> Callable[..., Image.Image]:
    return picture


@pytest.fixture
def class_folders() -> Callable[..., Path]:
    """Writes ``{class: count}`` as class folders of images named by number."""

    def write(root: Path, counts: Mapping[str, int], size: tuple[int, int] = (10, 12)) -> Path:
        for position, (label, count) in enumerate(counts.items()):
            (root / label).mkdir(parents=True)
            for number in range(count):
                picture(*size, seed=100 * position + number).save(root / label / f"{number:03}.png")
        return root

    return write
