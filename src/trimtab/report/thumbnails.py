"""Small pictures of images, with what was looked at laid over them."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image
from torch import Tensor

from trimtab.report.drawing import Drawing, shown

_SIDE = 112
"""CSS pixels of the longer side."""
_DENSITY = 2
"""Pixels a CSS pixel, for sharp screens; an image that has fewer is not blown up by more than it needs."""
_HEAT = 0.6
"""How much of an overlay is heat and not image."""


def thumbnail(pixels: Tensor, alt: str) -> Drawing:
    """An image (3, height, width) uint8, small."""
    return _drawing(_image(pixels), alt)


def overlay(pixels: Tensor, heat: Tensor, alt: str) -> Drawing:
    """An image in grey under a heat map (h, w) of any range, each patch in one colour: dark little, yellow much."""
    import matplotlib as mpl

    image = _image(pixels)
    low, high = float(heat.min()), float(heat.max())
    level = (heat.numpy() - low) / (high - low) if high > low else np.zeros(heat.shape)
    coloured = (mpl.colormaps["viridis"](level)[..., :3] * 255).astype(np.uint8)
    over = Image.fromarray(coloured).resize(image.size, Image.Resampling.NEAREST)
    return _drawing(Image.blend(image.convert("L").convert("RGB"), over, _HEAT), alt)


def _image(pixels: Tensor) -> Image.Image:
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    factor = _DENSITY * _SIDE / max(image.size)
    if factor < 1:
        return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.LANCZOS)
    # Patches stay sharp if every pixel becomes a whole number of them.
    whole = int(factor)
    return image.resize((image.width * whole, image.height * whole), Image.Resampling.BICUBIC) if whole > 1 else image


def _drawing(image: Image.Image, alt: str) -> Drawing:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82, optimize=True)
    uri = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    factor = _SIDE / max(image.size)
    return Drawing(uri, max(1, round(image.width * factor)), max(1, round(image.height * factor)), shown(alt))
