"""Digests of decoded pixels and labels, which do not depend on the file format."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from trimtab.data import why_unreadable
from trimtab.data.colour import WIDEST
from trimtab.data.decode import open_allowed
from trimtab.data.preprocess import upright_colours
from trimtab.errors import DataError

LOSSLESS_FORMATS = frozenset({"PNG", "BMP", "PPM", "TIFF", "GIF"})
"""Formats, as Pillow names them, that give back the pixels they were given."""
SUFFIXES = {"PNG": ".png", "JPEG": ".jpg", "BMP": ".bmp", "PPM": ".ppm", "TIFF": ".tif", "GIF": ".gif", "WEBP": ".webp"}
"""How the name of a file of each format ends."""


@dataclass(frozen=True)
class DecodedImage:
    """The format of an image file and the digest of its pixels and label."""

    format: str
    sha256: str


def look_at(content: bytes, label: str, where: str, mask: bytes | None = None) -> DecodedImage:
    """Decode an image, and its mask if it has one.

    The digest is SHA-256 over the label, height and width, the pixels as a model is given them (upright, red, green
    and blue, one byte each), and the mask's own numbers. Two files that show the same have the same digest, except
    that releases of the JPEG library may decode a file to slightly other pixels.

    Raises:
        DataError: It is no image that can be read; ``where`` says which.
    """
    try:
        with open_allowed(io.BytesIO(content)) as image:
            kind = image.format or ""
            pixels = np.asarray(upright_colours(image, WIDEST, None))
        digest = hashlib.sha256(f"{label}\n{pixels.shape[0]} {pixels.shape[1]}\n".encode())
        digest.update(pixels.tobytes())
        if mask is not None:
            with open_allowed(io.BytesIO(mask)) as image:
                digest.update(np.asarray(image).astype("<i4").tobytes())
    except Exception as error:
        raise DataError(f"{where} is no image that can be read ({why_unreadable(error)}); fetch it again.") from error
    return DecodedImage(kind, digest.hexdigest())


def format_of(content: bytes, where: str) -> str:
    """Find the format of an image file, as Pillow names it, without decoding its pixels.

    Raises:
        DataError: It is no image of a format that is known here.
    """
    try:
        with open_allowed(io.BytesIO(content)) as image:
            found = image.format or ""
    except Exception as error:
        raise DataError(f"{where} is no image that can be read ({why_unreadable(error)}); fetch it again.") from error
    if found not in SUFFIXES:
        raise DataError(f"{where} is a {found} file; images of benchmarks are {', '.join(SUFFIXES)}.")
    return found


def together(digests: Iterable[str]) -> str:
    """Compute the digest of a split: SHA-256 over the digests of its images in order, one a line."""
    return hashlib.sha256("".join(f"{digest}\n" for digest in digests).encode()).hexdigest()
