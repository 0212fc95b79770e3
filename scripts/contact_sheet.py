"""Writes docs/data.png: some images of every set that comes with trimtab, with their classes."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from trimtab.data import BUILT_IN, BuiltInImage

SHEET = Path(__file__).parents[1] / "docs" / "data.png"
COLUMNS = 8
_SPRITES = ("shape", "orientation", "position", "colour", "count", "middle")
ROWS = (*(f"sprites/{factor}" for factor in _SPRITES), "digits")
_MASK_COLOURS = mpl.colors.ListedColormap(["black", *mpl.color_sequences["tab10"][:6]])


def chosen(name: str) -> list[tuple[BuiltInImage, str]]:
    """A validation image of each class, as far as there is room: another image in every row."""
    built_in = BUILT_IN[name]
    labels, images = built_in.labels("val"), built_in.images("val")
    classes = built_in.classes[:: max(1, len(built_in.classes) // COLUMNS)]
    turn = ROWS.index(name)
    found = []
    for column in range(COLUMNS):
        label = classes[column % len(classes)]
        members = [image for image, own in zip(images, labels, strict=True) if own == label]
        found.append((members[turn + column // len(classes)], label))
    return found


def show(axes: Axes, image: np.ndarray, title: str, **options: object) -> None:
    """One image with its class under it."""
    axes.imshow(image, interpolation="nearest", **options)
    axes.set_xlabel(title, fontsize=8, labelpad=2)
    axes.set(xticks=[], yticks=[])


def main() -> None:
    """Draw the sheet."""
    figure, grid = plt.subplots(len(ROWS) + 1, COLUMNS, figsize=(9.6, 10.7), layout="constrained")
    rows = [*ROWS[:-1], None, ROWS[-1]]
    for axes, name in zip(grid, rows, strict=True):
        for one, (image, label) in zip(axes, chosen(name or "sprites/middle"), strict=True):
            if name is None:
                show(one, np.asarray(image.mask()), "", cmap=_MASK_COLOURS, vmin=0, vmax=6)
            else:
                show(one, np.asarray(image.open()), label, cmap="grey")
        axes[0].set_ylabel((name or "the masks").replace("/", "/\n"), fontsize=9)
    figure.savefig(SHEET, dpi=100, metadata={"Software": None})


if __name__ == "__main__":
    main()
