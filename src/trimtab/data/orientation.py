"""EXIF orientation: how a camera says that its pixels are to be turned, for images and for their masks."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy.typing as npt
from PIL import ExifTags, Image

Array = npt.NDArray[Any]
MaskOrientation: TypeAlias = Literal["own", "with image", "upright"]
"""How a mask was taken whose image has an EXIF orientation (see `readings`)."""

UPRIGHT = 1
"""The orientation of pixels that are stored as they are shown."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = frozenset({5, 6, 7, 8})
"""The orientations that change height for width."""


def orientation_tag(image: Image.Image) -> int | None:
    """The orientation that an image's metadata give, 1 to 8; None without one.

    Metadata that cannot be read give none, as viewers have it. Pillow turns a TIFF itself when it decodes it, and has
    it without an orientation from then on.
    """
    try:
        value = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # noqa: BLE001 - a broken block can fail in any way, and says nothing about the pixels
        return None
    return value if isinstance(value, int) and 1 <= value <= 8 else None


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """Turn an image stored with an orientation upright; the image itself where there is nothing to turn."""
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def turned_array(pixels: Array, orientation: int) -> Array:
    """Turn pixels (h, w) as `turned` does images."""
    if orientation in SIDEWAYS:
        pixels = pixels.T
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def stored_array(pixels: Array, orientation: int) -> Array:
    """Undo `turned_array`."""
    return turned_array(pixels, {6: 8, 8: 6}.get(orientation, orientation))


def readings(mask: Array, own: int | None, orientation: int) -> list[tuple[Array, MaskOrientation]]:
    """A mask's pixels as they may lie on the upright image, the likeliest first.

    Args:
        mask: The pixels (h, w) as stored.
        own: The mask's own orientation, if it has one.
        orientation: That of its image.

    Returns:
        Turned by its own orientation if it has one; turned with its image, as both are stored in one pixel grid; and as
        it is, drawn on the upright image.
    """
    found: list[tuple[Array, MaskOrientation]] = [(turned_array(mask, orientation), "with image"), (mask, "upright")]
    return found if own is None else [(turned_array(mask, own), "own"), *found]


def stored_size(height: int, width: int, orientation: int) -> tuple[int, int]:
    """Height and width as stored, of an image that is so large when it is upright."""
    return (width, height) if orientation in SIDEWAYS else (height, width)
