"""Colours of image files, of any mode, depth and transparency, as red, green and blue of 8 bits."""

from __future__ import annotations

import io
import re
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from trimtab.data.decode import open_allowed
from trimtab.errors import ConfigError

Array = npt.NDArray[Any]
Colour = tuple[int, int, int]

WIDEST = 16
"""How many bits the values of 16-bit files use, unless something else is known."""

_WITH_ALPHA = frozenset({"RGBA", "LA", "PA", "La", "RGBa"})
_OPAQUE = 65535
_OF_FEW_BITS = {"L;2": 85, "L;4": 17}
"""What Pillow multiplies grey values of 2 and 4 bits by, and not the transparent one among them."""
_ALPHA_UNUSED = frozenset({"BMP", "DIB", "TGA"})
"""Formats whose fourth byte of a pixel is nothing, and zero, as often as alpha."""
_PLANES, _BITS = 284, 258
"""The tags of a TIFF: PlanarConfiguration and BitsPerSample."""


def check_colours(bits: Any, background: Any) -> None:
    """Refuse values that cannot work; they may come from a file, so their types are not sure.

    Raises:
        ConfigError: ``bits`` is no number from 8 to 16, or ``background`` no colour.
    """
    if type(bits) is not int or not 8 <= bits <= WIDEST:
        raise ConfigError(f"bits is {bits!r}; 16-bit files use 8 to 16 bits.")
    if background is None:
        return
    fits = isinstance(background, tuple) and len(background) == 3
    if not fits or not all(type(value) is int and 0 <= value <= 255 for value in background):
        raise ConfigError(f"background is {background!r}; give red, green and blue, each 0 to 255, or nothing.")


def in_colour(image: Image.Image, bits: int = WIDEST, background: Colour | None = None) -> Image.Image:
    """The image in RGB with 8 bits; as stored, with no turn but what Pillow does itself.

    Args:
        image: An open image, decoded or not.
        bits: How many bits the values of 16-bit images use.
        background: What shows through transparent pixels; None drops the transparency.

    Raises:
        ValueError: Its values have an unknown range.
    """
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range; save it with 8 or 16 bits")
    if _is_in_planes(image) and (bits < WIDEST or not _is_colour16(image)):
        raise ValueError("its 16-bit colours lie in planes, of which Pillow decodes half or noise; save it as PNG")
    _scale_key(image)
    keyed = background is not None and "transparency" in image.info
    if _is_grey16(image) or ((bits < WIDEST or keyed) and _is_colour16(image)):
        colours, alpha = _wide(image, bits)
    else:
        image.load()
        alpha = None if background is None else _alpha(image)
        colours = _narrow(image)
    if background is None or alpha is None:
        return colours
    return Image.composite(colours, Image.new("RGB", colours.size, background), alpha)


def bits_used(image: Image.Image) -> int | None:
    """Count the bits of a 16-bit image's greatest value; None for an image of fewer bits.

    Transparent pixels do not count.
    """
    if not (_is_grey16(image) or _is_colour16(image)):
        return None
    if _is_in_planes(image):
        image.load()  # the upper byte of each value, which tells as much
        return int(np.asarray(image)[..., :3].max(initial=0)).bit_length() + 8
    colours, alpha = _samples(image)
    if alpha is not None:
        colours = colours[alpha > 0]
    return int(colours.max(initial=0)).bit_length()


# --- 8 bits -----------------------------------------------------------------------------------------------


def _narrow(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode == "P":
        image = image.convert("RGBA")  # straight to RGB, Pillow warns where the palette has transparency
    if image.mode == "La":  # Pillow converts it to nothing else
        image = image.convert("LA")
    return image.convert("RGB")


def _alpha(image: Image.Image) -> Image.Image | None:
    """Opacity of each pixel; None where all are opaque."""
    palette = image.palette.mode if image.mode == "P" and image.palette is not None else ""
    if image.mode not in _WITH_ALPHA and "transparency" not in image.info and palette != "RGBA":
        return None
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode == "1":  # older releases of Pillow do not look at its transparent value
        key = bool(image.info["transparency"])
        alpha = image.convert("L").point([255 if key else 0, *[0 if key else 255] * 255])
    else:
        alpha = image.convert("RGBA").getchannel("A")
    least, most = alpha.getextrema()
    unused = most == 0 and image.format in _ALPHA_UNUSED
    return None if least == 255 or unused else alpha


def _scale_key(image: Image.Image) -> None:
    """Have the transparent value of a grey PNG of 2 or 4 bits on the scale of its pixels, as it will be decoded."""
    key, tile = image.info.get("transparency"), getattr(image, "tile", ())
    if isinstance(key, int) and image.mode == "L" and tile and (scale := _OF_FEW_BITS.get(_rawmode(tile[0]))):
        image.load()  # afterwards nothing says how many bits there were, and the value is not scaled again
        image.info["transparency"] = key * scale


# --- 16 bits ----------------------------------------------------------------------------------------------


def _is_grey16(image: Image.Image) -> bool:
    return image.mode == "I" or image.mode.startswith("I;")


def _is_colour16(image: Image.Image) -> bool:
    """Whether Pillow is going to drop the lower byte of each value: it has no mode for 16-bit colours."""
    return image.mode != "I" and any(
        _half(tile) is not None or _greatest_of_ppm(tile) > 255 for tile in getattr(image, "tile", ())
    )


def _is_in_planes(image: Image.Image) -> bool:
    """Whether it is a TIFF of 16-bit colours, one after the other; without compression Pillow takes them for 8 bits."""
    tags = getattr(image, "tag_v2", {})
    several = 16 in tags.get(_BITS, ()) and len(tags[_BITS]) > 1
    return several and tags.get(_PLANES) == 2 and bool(getattr(image, "tile", ()))


def _wide(image: Image.Image, bits: int) -> tuple[Image.Image, Image.Image | None]:
    """An image of 16 bits, and how opaque its pixels are, in 8 bits."""
    colours, alpha = _samples(image)
    found = _upper(colours, bits).convert("RGB")
    if alpha is None or alpha.min() == _OPAQUE:
        return found, None
    # Alpha may have the depth of the colours, or all 16 bits beside colours that have fewer.
    return found, _upper(alpha, bits if alpha.max() < 1 << bits else WIDEST)


def _upper(values: Array, bits: int) -> Image.Image:
    return Image.fromarray(np.minimum(values >> (bits - 8), 255).astype(np.uint8))


def _samples(image: Image.Image) -> tuple[Array, Array | None]:
    """All 16 bits of colours, (h, w) or (h, w, 3), and of alpha, (h, w), if there is any."""
    key = image.info.get("transparency")
    if _is_grey16(image):
        # Before, as numpy takes the size that a TIFF has while Pillow has not turned it yet.
        image.load()
        # Pillow would clip 16 bits to 8 and turn most of the image white.
        colours = np.asarray(image).astype(np.int64)
        if colours.min() < 0 or colours.max() > _OPAQUE:
            raise ValueError("its pixels have more than 16 bits; save it with 8 or 16 bits")
        return colours, np.where(colours == key, 0, _OPAQUE) if isinstance(key, int) else None
    if _greatest_of_ppm(image.tile[0]):  # type: ignore[attr-defined]
        return _values_of_ppm(image), None
    values = _both_halves(image)
    if values.shape[2] == 2:
        return values[..., 0], values[..., 1]
    if values.shape[2] == 4:
        return values[..., :3], values[..., 3] if image.mode == "RGBA" else None
    keyed = isinstance(key, tuple) and len(key) == 3
    return values, np.where((values == np.array(key)).all(-1), 0, _OPAQUE) if keyed else None


def _both_halves(image: Image.Image) -> Array:
    """Decode an image of 16-bit colours twice, with the upper and the lower byte of each value: (h, w, c)."""
    file: Any = image.fp  # type: ignore[attr-defined]
    place = file.tell()
    file.seek(0)
    other: Any = open_allowed(io.BytesIO(file.read()))
    file.seek(place)
    other.seek(image.tell())
    grey = _rawmode(other.tile[0]) == "LA;16B"
    other.tile = [_with_rawmode(tile, _half(tile)) for tile in other.tile]
    for half in (other, image):  # numpy would not say why one cannot be decoded
        half.load()
    lower = np.asarray(other).astype(np.int64)
    if grey:
        return lower[..., 0::2] << 8 | lower[..., 1::2]
    return np.asarray(image).astype(np.int64) << 8 | lower


def _greatest_of_ppm(tile: Any) -> int:
    """Maximum value that a PPM file declares, where Pillow scales by it; otherwise 0."""
    return int(tile[3][1]) if tile[0] in ("ppm", "ppm_plain") and tile[3][0] == "RGB" else 0


def _values_of_ppm(image: Image.Image) -> Array:
    """The colours (h, w, 3) of a PPM file of 16 bits, on a scale of 16 bits."""
    tile, file = image.tile[0], image.fp  # type: ignore[attr-defined]
    place = file.tell()
    file.seek(tile[2])
    content = file.read()
    file.seek(place)
    count = 3 * image.width * image.height
    if tile[0] == "ppm":
        values = np.frombuffer(content[: 2 * count], ">u2")
    else:
        values = np.array(re.sub(rb"#[^\r\n]*", b" ", content).split()[:count], dtype=np.float64)
    if len(values) < count:
        raise ValueError("the file ends before its last pixel")
    scaled = np.rint(values * (_OPAQUE / _greatest_of_ppm(tile))).astype(np.int64)
    return scaled.clip(0, _OPAQUE).reshape(image.height, image.width, 3)


def _half(tile: Any) -> str | None:
    """Pillow's name for the bytes of a tile that it leaves out; None where it keeps all."""
    rawmode = _rawmode(tile)
    if rawmode == "LA;16B":
        return "RGBA"  # no name for the lower bytes, so all four as they come
    mode, _, order = rawmode.partition(";16")
    if mode not in ("RGB", "RGBA", "RGBX") or not order:
        return None
    if order == "N":
        order = "L" if sys.byteorder == "little" else "B"
    return f"{mode};16{'B' if order == 'L' else 'L'}" if order in ("B", "L") else None


def _rawmode(tile: Any) -> str:
    arguments = tile[3]
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _with_rawmode(tile: Any, rawmode: str | None) -> Any:
    arguments = (rawmode, *tile[3][1:]) if isinstance(tile[3], tuple) else rawmode
    # A tuple with names since Pillow 11, and plain before.
    return tile._replace(args=arguments) if hasattr(tile, "_replace") else (*tile[:3], arguments)
