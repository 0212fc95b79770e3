"""Small pictures of images."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from trimtab.report.drawing import Drawing
from trimtab.report.thumbnails import overlay, thumbnail


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
