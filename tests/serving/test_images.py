"""Images that clients send: read as ``trimtab predict`` reads the same file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.serving.served import picture
from trimtab.data import Preprocess
from trimtab.serving.images import read_image
from trimtab.tasks import make_task

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
    found = read_image(content, make_task("classification"), preprocess, SIZE[0] * SIZE[1])
    assert torch.equal(found.pixels, preprocess.read(str(path)))
    assert found.size == SIZE[::-1]
    with Image.open(path) as image:
        in_full = preprocess.from_image(image)
    assert torch.equal(found.pixels, in_full) is not (scaled and kind == "JPEG")
