"""Small pictures of images."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from trimtab.data import VOID
from trimtab.reporting.figure import Drawing
from trimtab.reporting.thumbnails import SCENE, classes_over, overlay, swatch, thumbnail, wrong_over


def opened(drawing: Drawing) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(drawing.uri.partition(",")[2])))


@pytest.mark.parametrize(("height", "width"), [(32, 32), (500, 250), (20, 200), (224, 224)])
def test_sizes(height: int, width: int) -> None:
    drawing = thumbnail(torch.zeros(3, height, width, dtype=torch.uint8), "black")
    image = opened(drawing)
    assert max(drawing.width, drawing.height) == 112
    assert max(image.size) <= 224
    assert image.width / image.height == pytest.approx(width / height, rel=0.05)


def test_a_thumbnail_is_the_image() -> None:
    pixels = torch.zeros(3, 64, 64, dtype=torch.uint8)
    pixels[0, :, 32:] = 255
    seen = np.asarray(opened(thumbnail(pixels, "half red")))
    assert seen[50, 20].max() < 30
    assert seen[50, -20, 0] > 220


def test_heat_is_where_the_patch_is() -> None:
    heat = torch.zeros(4, 4)
    heat[1, 3] = 0.2
    seen = np.asarray(opened(overlay(torch.full((3, 64, 64), 128, dtype=torch.uint8), heat, "heat"))).astype(int)
    side = seen.shape[0] // 4
    hot = seen[side + side // 2, 3 * side + side // 2]
    cold = seen[side // 2, side // 2]
    # Viridis ends in yellow and begins in purple.
    assert hot[0] > hot[2] + 60
    assert cold[2] > cold[1]


def test_even_heat_can_be_drawn() -> None:
    assert opened(overlay(torch.zeros(3, 8, 8, dtype=torch.uint8), torch.ones(2, 2), "even")).size


PALETTE = ((0, 0, 0), (255, 0, 0), (0, 0, 255))


def quarters(*values: int) -> torch.Tensor:
    """Four squares of 40 pixels: top left, top right, bottom left, bottom right."""
    return torch.tensor(values, dtype=torch.uint8).view(2, 2).repeat_interleave(40, 0).repeat_interleave(40, 1)


def middles(drawing: Drawing) -> list[list[int]]:
    """The colours in the middles of the quarters."""
    seen = np.asarray(opened(drawing)).astype(int)
    height, width = seen.shape[:2]
    return [
        seen[height * (1 + 2 * row) // 4, width * (1 + 2 * column) // 4].tolist() for row in (0, 1) for column in (0, 1)
    ]


def test_classes_lie_over_the_image_in_their_colours_and_void_does_not() -> None:
    drawing = classes_over(torch.full((3, 32, 32), 100, dtype=torch.uint8), quarters(0, 1, 2, VOID), PALETTE, "classes")
    assert max(drawing.width, drawing.height) == SCENE
    black, red, blue, void = middles(drawing)
    assert black == pytest.approx([35, 35, 35], abs=6)
    assert red == pytest.approx([201, 35, 35], abs=6)
    assert blue == pytest.approx([35, 35, 201], abs=6)
    assert void == pytest.approx([100, 100, 100], abs=6)


def test_what_is_wrong_is_orange_and_void_is_never_wrong() -> None:
    pixels = torch.full((3, 32, 32), 100, dtype=torch.uint8)
    drawing = wrong_over(pixels, quarters(0, 1, 2, VOID), quarters(0, 2, 2, 1), "wrong")
    right, wrong, other, void = middles(drawing)
    assert wrong[0] > wrong[1] + 60 > wrong[2] + 120
    assert all(one == pytest.approx([50, 50, 50], abs=6) for one in (right, other, void))


@pytest.mark.parametrize(("colour", "fill"), [((255, 0, 10), 'fill="#ff000a"'), (None, 'fill="none"')])
def test_swatches(colour: tuple[int, int, int] | None, fill: str) -> None:
    assert fill in base64.b64decode(swatch(colour, "a colour").uri.partition(",")[2]).decode()
