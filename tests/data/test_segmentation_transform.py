"""What is done to an image is done to its mask."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from trimtab.data import VOID, SegmentationTransform
from trimtab.errors import CheckpointError, ConfigError, DataError

GREY = (0.5, 0.5, 0.5)


def joint(**options: Any) -> SegmentationTransform:
    return SegmentationTransform(**{"image_size": (32, 48), "mean": GREY, "std": GREY, **options})


def striped(height: int = 60, width: int = 90) -> Tensor:
    """An image whose red says its class: bright where it is 1, in columns."""
    classes = (torch.arange(width) // 10 % 2).expand(height, -1)
    ramp = torch.arange(height)[:, None].expand(-1, width)
    return torch.stack([classes * 200, ramp, ramp, classes]).to(torch.uint8)


def agrees(image: Tensor, mask: Tensor) -> float:
    """How many of the pixels with a class have its colour."""
    known = mask != VOID
    return float(((image[0] > 100) == mask.bool())[known].float().mean())


@pytest.mark.parametrize("augment", ["none", "flip", "crop", "crop-flip"])
@pytest.mark.parametrize("resize", ["shorter", "squash"])
def test_image_and_mask_stay_together(augment: str, resize: str) -> None:
    prepare = joint(augment=augment, resize=resize)
    for seed in range(20):
        image, mask = prepare.example(striped(), seed)
        assert (image.shape, mask.shape) == ((3, 32, 48), (32, 48))
        assert (image.dtype, mask.dtype, type(image)) == (torch.uint8, torch.uint8, Tensor)
        assert set(mask.unique().tolist()) <= {0, 1, VOID}
        assert agrees(image, mask) > 0.8  # of stripes 3 pixels wide, a border is a pixel; apart, it would be a half


def test_a_seed_alone_decides() -> None:
    prepare = joint()
    torch.manual_seed(1)
    first = prepare.example(striped(), 5)
    torch.manual_seed(2)
    assert all(torch.equal(a, b) for a, b in zip(first, prepare.example(striped(), 5), strict=True))
    assert not torch.equal(first[0], prepare.example(striped(), 6)[0])


def test_scale_varies_as_far_as_it_may() -> None:
    """Widths of the stripes, 10 pixels in the file and 10 * 48 / 90 just covering, tell the factor."""
    prepare = joint(image_size=(60, 90), augment="crop", jitter=(0.5, 2.0))
    void = [float((prepare.example(striped(), seed)[1] == VOID).float().mean()) for seed in range(60)]
    assert min(void) == 0.0
    assert 0.6 < max(void) < 0.75  # at a factor of 0.5, a quarter is image


def test_half_of_all_pairs_are_turned_about() -> None:
    prepare = joint(image_size=(60, 90), augment="flip")
    pair = striped()
    pair[3] = (torch.arange(90) < 45).expand(60, -1)
    turned = [bool(prepare.example(pair, seed)[1][0, 0] == 0) for seed in range(100)]
    assert 30 < sum(turned) < 70


def test_without_a_seed_the_middle_is_taken() -> None:
    prepare = joint(image_size=(60, 60))
    image, mask = prepare.example(striped(), None)
    assert torch.equal(image, striped()[:3, :, 15:75])
    assert torch.equal(mask, striped()[3, :, 15:75])


def test_what_is_beside_a_small_image_is_void_and_grey() -> None:
    image, mask = joint(zoom=0.5, augment="none").example(striped(), None)
    assert (mask[16:] == VOID).all()
    assert (mask[:16, :24] != VOID).all()
    assert (image[:, 16:] == 128).all()


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, (32, 48)),
        ({"image_size": (32, 32)}, (32, 48)),
        ({"zoom": 2.0}, (64, 96)),
        ({"resize": "squash", "image_size": (20, 20)}, (20, 20)),
        ({"resize": "squash", "image_size": (20, 20), "zoom": 1.5}, (30, 30)),
    ],
)
def test_whole_images_just_cover_the_window(options: dict[str, Any], size: tuple[int, int]) -> None:
    prepare = joint(**options)
    assert prepare.whole(striped()[:3]).shape == (3, *size)
    assert prepare.processed_size(60, 90) == size


def test_an_image_of_the_right_size_is_left_alone() -> None:
    assert torch.equal(joint(image_size=(60, 90)).whole(striped()[:3]), striped()[:3])


def test_normalises_as_classification_does() -> None:
    from trimtab.data import Preprocess

    other = Preprocess(image_size=(4, 4), resize="squash", mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    images = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    assert torch.equal(joint(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)).normalise(images), other.normalise(images))


def test_comes_back_from_json() -> None:
    prepare = joint(zoom=1.5, jitter=(0.7, 1.1), resize="squash", augment="flip")
    assert SegmentationTransform.from_dict(json.loads(json.dumps(prepare.to_dict()))) == prepare
    with pytest.raises(CheckpointError, match="lacks"):
        SegmentationTransform.from_dict({"image_size": [4, 4]})
    with pytest.raises(CheckpointError, match="zoom is -1"):
        SegmentationTransform.from_dict(prepare.to_dict() | {"zoom": -1})


@pytest.mark.parametrize(
    "options",
    [
        {"zoom": 0.0},
        {"jitter": (2.0, 0.5)},
        {"jitter": (1.0,)},
        {"resize": "longer"},
        {"interpolation": "lanczos"},
        {"augment": "rotate"},
        {"image_size": (0, 4)},
        {"std": (0.0, 1.0, 1.0)},
    ],
)
def test_what_cannot_work_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        joint(**options)


def test_a_broken_file_is_one_line(tmp_path: Any) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"a\.png cannot be read: it is empty or not an image"):
        joint().read(tmp_path / "a.png")


def test_thin_lines_are_refused() -> None:
    from PIL import Image

    with pytest.raises(ValueError, match="nothing above 1:100"):
        joint().from_image(Image.fromarray(np.zeros((1, 200, 3), dtype=np.uint8)))
