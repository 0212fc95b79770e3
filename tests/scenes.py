"""Small images with masks: rectangles of plain colours on grey, whose class is their colour."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from tests.job import home

COLOURS = ((90, 90, 90), (220, 40, 40), (40, 60, 220))
"""Of the classes: background, red, blue."""
VOID = 255


def scene(seed: int, size: tuple[int, int] = (40, 52)) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """An image (h, w, 3) with noise, and its classes (h, w); a stripe at the top is void."""
    generator = np.random.default_rng(seed)
    mask = np.zeros(size, dtype=np.uint8)
    for label in (1, 2):
        top, left = generator.integers(2, size[0] - 20), generator.integers(0, size[1] - 20)
        height, width = generator.integers(12, 20, 2)
        mask[top : top + height, left : left + width] = label
    image = np.array(COLOURS)[mask] + generator.integers(-30, 30, (*size, 3))
    mask[:2] = VOID
    return image.clip(0, 255).astype(np.uint8), mask


def write(
    folder: Path,
    splits: Sequence[tuple[str, int]] = (("train", 6), ("val", 3), ("test", 3)),
    *,
    masks: str = "masks",
    save: Callable[[npt.NDArray[np.uint8], Path], None] | None = None,
    sizes: Sequence[tuple[int, int]] = ((40, 52),),
) -> Path:
    """``images/`` and ``masks/`` with a folder for each split (none for ``""``); sizes take turns."""
    seed = 0
    for split, count in splits:
        for _ in range(count):
            seed += 1
            image, mask = scene(seed, sizes[seed % len(sizes)])
            place = folder / "images" / split / f"{seed:03}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place, quality=95)
            place = folder / masks / split / f"{seed:03}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            if save is None:
                Image.fromarray(mask).save(place)
            else:
                save(mask, place)
    return folder


@functools.cache
def data() -> Path:
    """Six images to train on, three to validate, three to test, of two sizes; leave it as it is."""
    return write(home() / "scenes", sizes=((40, 52), (52, 44)))
