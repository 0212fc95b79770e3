"""Images that clients send: some are refused, others are read as ``trimtab predict`` reads them."""

from __future__ import annotations

import io
import struct
from http import HTTPStatus
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.serving.served import picture
from trimtab.data import Preprocess
from trimtab.serving.images import read_image
from trimtab.serving.refused import RefusedError
from trimtab.tasks import make_task

_SMALL = Preprocess(image_size=(8, 8), resize="squash", mean=(0.5,) * 3, std=(0.5,) * 3)


def read(content: bytes) -> tuple[int, int]:
    return read_image(content, make_task(), _SMALL, 10_000).size


def icon(content: bytes) -> bytes:
    """An ICO file of one image, that says to be of 16 by 16 pixels."""
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(content), 22) + content


def test_the_size_of_an_icon_is_that_of_its_image(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(icon(picture(0, (16, 16)))) == (16, 16)
    large = picture(0, (101, 100))

    def decoded(*_: object) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr(Image.Image, "load", decoded)
    bitmap = struct.pack("<IiiHHIIiiII", 40, 101, 200, 1, 1, 0, 0, 0, 0, 0, 0)
    for content in (large, bitmap):
        with pytest.raises(RefusedError, match="101x100 pixels") as refused:
            read(icon(content))
        assert refused.value.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE


def test_an_icon_that_ends_early_is_told() -> None:
    for end in (4, 5, 10, 22, 30):
        with pytest.raises(RefusedError, match="cannot be read") as refused:
            read(icon(picture(0, (16, 16)))[:end])
        assert refused.value.status == HTTPStatus.UNPROCESSABLE_ENTITY


def test_scans_of_a_jpeg_are_counted() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (100, 20, 200)).save(buffer, "JPEG", progressive=True)
    content = buffer.getvalue()
    assert read(content) == (64, 64)
    start = content.rindex(b"\xff\xda")
    length = int.from_bytes(content[start + 2 : start + 4], "big")
    again = content[start : start + 2 + length] + b"\0"
    assert read(content[:-2] + again * 50 + content[-2:]) == (64, 64)
    with pytest.raises(RefusedError, match="more than 500 scans") as refused:
        read(content[:-2] + again * 501 + content[-2:])
    assert refused.value.status == HTTPStatus.UNPROCESSABLE_ENTITY


SIZE = (640, 480)


@pytest.mark.parametrize("resize", ["squash", "shorter"])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_bytes_are_read_as_the_file_is(tmp_path: Path, kind: str, scaled: bool, resize: str) -> None:
    content = picture(5, SIZE, kind)
    path = tmp_path / "picture"
    path.write_bytes(content)
    preprocess = Preprocess(
        image_size=(32, 24), resize=resize, mean=(0.5,) * 3, std=(0.5,) * 3, scaled_decoding=scaled
    )  # fmt: skip
    found = read_image(content, make_task(), preprocess, SIZE[0] * SIZE[1])
    assert torch.equal(found.pixels, preprocess.read(str(path)))
    assert found.size == SIZE[::-1]
    with Image.open(path) as image:
        in_full = preprocess.from_image(image)
    assert torch.equal(found.pixels, in_full) is not (scaled and kind == "JPEG")
