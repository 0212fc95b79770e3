"""What an image shows, as a number."""

from __future__ import annotations

import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from tests.bench.made import mask, picture
from trimtab.bench.pixels import SUFFIXES, format_of, look_at, together
from trimtab.errors import DataError


def saved(pixels: np.ndarray, kind: str, **settings: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **settings)
    return buffer.getvalue()


def test_the_digest_is_of_label_size_and_pixels() -> None:
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    expected = hashlib.sha256(b"cat\n2 3\n" + pixels.tobytes()).hexdigest()
    for kind in ("PNG", "BMP", "PPM", "TIFF"):
        look = look_at(saved(pixels, kind), "cat", "x")
        assert (look.format, look.sha256) == (kind, expected)
    assert look_at(saved(pixels, "PNG"), "dog", "x").sha256 != expected
    assert look_at(saved(pixels.reshape(3, 2, 3), "PNG"), "cat", "x").sha256 != expected
    assert look_at(saved(pixels + np.uint8(1), "PNG"), "cat", "x").sha256 != expected
    assert look_at(saved(pixels, "JPEG"), "cat", "x").sha256 != expected


def test_grey_is_seen_as_a_model_sees_it() -> None:
    grey = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert look_at(saved(grey, "PNG"), "", "") == look_at(saved(np.stack([grey] * 3, -1), "PNG"), "", "")


def test_images_are_seen_upright() -> None:
    pixels = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    turned = Image.Exif()
    turned[0x0112] = 3
    lying = saved(pixels[::-1, ::-1], "PNG", exif=turned)
    assert look_at(lying, "", "").sha256 == look_at(saved(pixels, "PNG"), "", "").sha256


def test_a_mask_counts() -> None:
    one = look_at(picture(0), "", "", mask(1)).sha256
    assert one == look_at(picture(0), "", "", mask(1)).sha256
    assert len({one, look_at(picture(0), "", "", mask(2)).sha256, look_at(picture(0), "", "").sha256}) == 3


@pytest.mark.parametrize("content", [b"", b"no image", picture(0)[:100]])
def test_what_is_no_image_is_named(content: bytes) -> None:
    with pytest.raises(DataError, match=r"a\.png is no image that can be read .*; fetch it again"):
        look_at(content, "", "a.png")
    with pytest.raises(DataError, match=r"a\.png is no image"):
        look_at(picture(0), "", "a.png", mask=content)


def test_formats() -> None:
    pixels = np.zeros((4, 4, 3), dtype=np.uint8)
    assert [format_of(saved(pixels, kind), "") for kind in SUFFIXES] == list(SUFFIXES)
    with pytest.raises(DataError, match="x is a ICO file; images of benchmarks are PNG, JPEG"):
        format_of(saved(np.zeros((16, 16, 3), dtype=np.uint8), "ICO"), "x")
    with pytest.raises(DataError, match="x is no image that can be read"):
        format_of(b"", "x")


def test_the_order_of_images_counts() -> None:
    assert together(["a", "b"]) == hashlib.sha256(b"a\nb\n").hexdigest()
    assert together(["a", "b"]) != together(["b", "a"])
