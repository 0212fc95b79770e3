from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, JpegImagePlugin
from tests.versions import need
from timm.data import create_transform
from torch import Tensor

from trimtab.data import Preprocess
from trimtab.errors import CheckpointError, ConfigError, DataError

Picture = Callable[..., Image.Image]
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def plain(size: tuple[int, int] = (8, 8), **changes: Any) -> Preprocess:
    return Preprocess(**{"image_size": size, "resize": "squash", **HALF, **changes})


def saved(image: Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


# Against timm


@pytest.mark.parametrize("shape", [(61, 90), (90, 61), (40, 40), (300, 37), (33, 32)])
@pytest.mark.parametrize(
    ("size", "crop_pct", "crop_mode", "interpolation", "norm"),
    [
        ((32, 32), 0.9, "center", "bicubic", HALF),
        ((32, 32), 0.875, "center", "bilinear", IMAGENET),
        ((48, 48), 1.0, "center", "bicubic", IMAGENET),
        ((37, 37), 0.95, "center", "lanczos", IMAGENET),
        ((32, 32), 1.0, "squash", "bicubic", HALF),
        ((32, 32), 0.9, "squash", "bilinear", HALF),
        ((32, 48), 0.9, "center", "bicubic", HALF),
        ((48, 32), 0.9, "squash", "nearest", HALF),
    ],
)
def test_equals_timms_evaluation_transform(
    tmp_path: Path,
    picture: Picture,
    shape: tuple[int, int],
    size: tuple[int, int],
    crop_pct: float,
    crop_mode: str,
    interpolation: Any,
    norm: dict[str, Any],
) -> None:
    if crop_mode == "center" and size[0] != size[1]:
        need("timm", "1.0.31")  # older ones take bilinear, whatever is asked for
    image = picture(*shape)
    transform = create_transform(
        (3, *size),
        crop_pct=crop_pct,
        crop_mode=crop_mode,
        interpolation=interpolation,
        is_training=False,
        **norm,
    )
    preprocess = Preprocess(
        image_size=size,
        resize="squash" if crop_mode == "squash" else "shorter",
        crop_pct=crop_pct,
        interpolation=interpolation,
        **norm,
    )
    stored = preprocess.read(saved(image, tmp_path / "image.png"))
    assert torch.equal(preprocess.normalise(preprocess.finish([stored]))[0], transform(image))


# Reading files


def test_read_gives_contiguous_bytes_that_own_their_memory(tmp_path: Path, picture: Picture) -> None:
    image = plain((6, 9)).read(saved(picture(20, 20), tmp_path / "image.png"))
    assert (image.shape, image.dtype) == ((3, 6, 9), torch.uint8)
    assert image.is_contiguous()
    assert image.untyped_storage().nbytes() == 3 * 6 * 9
    image.zero_()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, picture: Picture, orientation: int) -> None:
    upright = picture(16, 24)
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = upright.transpose(undo[orientation]) if orientation in undo else upright
    path = saved(turned, tmp_path / "turned.png", exif=exif)
    preprocess = plain((16, 24), interpolation="nearest")
    assert torch.equal(preprocess.read(path), torch.from_numpy(np.array(upright)).permute(2, 0, 1))


def colour_of(path: Path) -> tuple[int, ...]:
    image = plain((4, 4)).read(path)
    assert image.shape == (3, 4, 4)
    assert bool((image == image[:, :1, :1]).all())
    return tuple(image[:, 0, 0].tolist())


@pytest.mark.parametrize(
    ("mode", "colour", "suffix", "expected"),
    [
        ("1", 1, "png", (255, 255, 255)),
        ("L", 90, "png", (90, 90, 90)),
        ("LA", (90, 10), "png", (90, 90, 90)),
        ("RGB", (10, 200, 30), "webp", (10, 200, 30)),
        ("RGBA", (10, 200, 30, 128), "png", (10, 200, 30)),
        ("P", 3, "png", (3, 4, 5)),
        ("P", 3, "gif", (3, 4, 5)),
        ("CMYK", (255, 0, 0, 0), "tiff", (0, 255, 255)),
        ("CMYK", (255, 0, 0, 0), "jpg", (0, 255, 255)),
        ("YCbCr", (120, 128, 128), "jpg", (120, 120, 120)),
        ("I;16", 0x5A80, "png", (0x5A, 0x5A, 0x5A)),
        ("I;16", 0xFFFF, "tiff", (255, 255, 255)),
        ("I", 0x5A80, "tiff", (0x5A, 0x5A, 0x5A)),
    ],
)
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str, colour: Any, suffix: str, expected: tuple[int, ...]) -> None:
    image = Image.new(mode, (9, 7), colour)
    if mode == "P":
        image.putpalette([min(255, entry + channel) for entry in range(256) for channel in range(3)])
    found = colour_of(saved(image, tmp_path / f"image.{suffix}"))
    assert found == pytest.approx(expected, abs=2 if suffix in ("jpg", "webp") else 0)


def test_palette_with_transparency_gives_no_warning(tmp_path: Path) -> None:
    image = Image.new("P", (9, 7), 1)
    image.putpalette([0, 0, 0, 9, 8, 7])
    assert colour_of(saved(image, tmp_path / "image.png", transparency=bytes([0, 128]))) == (9, 8, 7)


def test_16_bit_keeps_its_shades(tmp_path: Path) -> None:
    pixels = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    path = saved(Image.fromarray(pixels), tmp_path / "image.png")
    assert plain(interpolation="nearest").read(path)[0].flatten().tolist() == (pixels >> 8).flatten().tolist()


def test_the_first_frame_is_taken(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "blue")]
    path = saved(frames[0], tmp_path / "image.gif", save_all=True, append_images=frames[1:])
    assert colour_of(path) == (255, 0, 0)


def test_unreadable_files(tmp_path: Path, picture: Picture) -> None:
    whole = saved(picture(64, 64), tmp_path / "whole.jpg").read_bytes()
    saved(Image.new("F", (4, 4), 0.5), tmp_path / "float.tiff")
    saved(Image.new("I", (4, 4), 70000), tmp_path / "deep.tiff")
    contents = {
        "empty.jpg": (b"", "empty or not an image"),
        "text.jpg": (b"hello", "empty or not an image"),
        "cut.jpg": (whole[: len(whole) // 2], "truncated"),
        "float.tiff": (None, "floating-point"),
        "deep.tiff": (None, "more than 16 bits"),
        "gone.jpg": (None, "No such file"),
    }
    for name, (content, message) in contents.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name} cannot be read: .*{message}.*; replace or remove it") as caught:
            plain().read(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_an_open_image_is_not_changed(picture: Picture) -> None:
    image = picture(16, 24)
    image.getexif()[0x0112] = 6
    assert plain().from_image(image).shape == (3, 8, 8)
    assert image == picture(16, 24)
    assert image.getexif()[0x0112] == 6


def test_too_many_pixels(tmp_path: Path, picture: Picture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(DataError, match="more pixels than Pillow opens safely"):
        plain().read(saved(picture(20, 20), tmp_path / "image.png"))


@pytest.mark.parametrize("size", [(1, 30_000), (30_000, 1)])
def test_a_thin_line_is_refused_where_its_shape_would_be_kept(tmp_path: Path, size: tuple[int, int]) -> None:
    path = saved(Image.new("RGB", size), tmp_path / "line.png")
    with pytest.raises(DataError, match=r"line\.png cannot be read: it is \d+ pixels high and \d+ wide"):
        plain(resize="shorter").read(path)
    assert plain(resize="squash").read(path).shape == (3, 8, 8)
    assert plain(resize="shorter").from_image(Image.new("RGB", (10, 1000))).shape == (3, 8, 8)


def test_an_open_image_reads_as_its_file(tmp_path: Path, picture: Picture) -> None:
    image = picture(30, 20)
    assert torch.equal(plain().from_image(image), plain().read(saved(image, tmp_path / "image.png")))


# Augmentation


@pytest.fixture
def stored(picture: Picture) -> list[Tensor]:
    """What `read` gives for random crops of 8 x 8: 10 high and from 10 to 16 wide."""
    preprocess = plain(resize="shorter", crop_pct=0.8, augment="crop-flip")
    return [preprocess.from_image(picture(20, 20 + 4 * number, seed=number)) for number in range(4)]


def test_read_leaves_room_for_random_crops_only(stored: list[Tensor], picture: Picture) -> None:
    assert [image.shape for image in stored] == [(3, 10, 10), (3, 10, 12), (3, 10, 14), (3, 10, 16)]
    for augment in ("none", "flip"):
        preprocess = plain(resize="shorter", crop_pct=0.8, augment=augment)
        assert preprocess.from_image(picture(20, 32)).shape == (3, 8, 8)
    assert plain(crop_pct=0.8, augment="crop").from_image(picture(20, 32)).shape == (3, 10, 10)


def test_without_seeds_the_crop_is_central(picture: Picture) -> None:
    still = plain(resize="shorter", crop_pct=0.8)
    moving = plain(resize="shorter", crop_pct=0.8, augment="crop-flip")
    for shape in ((20, 33), (41, 20), (15, 15)):
        image = picture(*shape)
        central = moving.finish([moving.from_image(image)])
        assert torch.equal(central, still.finish([still.from_image(image)]))
        assert torch.equal(still.finish([still.from_image(image)], [7]), central)


def test_seeds_decide_each_image_alone(stored: list[Tensor]) -> None:
    preprocess = plain(resize="shorter", crop_pct=0.8, augment="crop-flip")
    batch = preprocess.finish(stored, [5, 6, 7, 8])
    assert batch.shape == (4, 3, 8, 8)
    assert torch.equal(preprocess.finish(stored, [5, 6, 7, 8]), batch)
    assert torch.equal(preprocess.finish(stored[::-1], [8, 7, 6, 5]), batch.flip(0))
    assert torch.equal(preprocess.finish(stored[2:3], [7])[0], batch[2])
    assert not torch.equal(preprocess.finish(stored, [9, 10, 11, 12]), batch)


def test_random_crops_reach_every_place_and_no_other(stored: list[Tensor]) -> None:
    preprocess = plain(resize="shorter", crop_pct=0.8, augment="crop")
    places = {stored[1][:, t : t + 8, x : x + 8].numpy().tobytes() for t in range(3) for x in range(5)}
    drawn = {preprocess.finish([stored[1]], [seed]).numpy().tobytes() for seed in range(300)}
    assert drawn == places


def test_half_of_the_images_are_flipped(picture: Picture) -> None:
    preprocess = plain(augment="flip")
    image = preprocess.from_image(picture(20, 20))
    batch = preprocess.finish([image] * 1000, list(range(1000)))
    flipped = sum(bool(torch.equal(one, image.flip(-1))) for one in batch)
    assert flipped + sum(bool(torch.equal(one, image)) for one in batch) == 1000
    assert 450 < flipped < 550


def test_the_augmentation_is_pinned() -> None:
    preprocess = plain((1, 1), resize="shorter", crop_pct=0.1, augment="crop-flip")
    image = torch.arange(300, dtype=torch.uint8).view(3, 10, 10)
    drawn = preprocess.finish([image] * 5, [0, 1, 2, 3, 2**40])[:, 0].flatten()
    assert drawn.tolist() == [87, 18, 99, 25, 16]


def test_a_seed_for_each_image(stored: list[Tensor]) -> None:
    with pytest.raises(ValueError, match="zip"):
        plain(resize="shorter", crop_pct=0.8, augment="crop").finish(stored, [1, 2])


# Normalising


def test_normalise() -> None:
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    result = plain(mean=(0.5, 0.2, 0.0), std=(0.5, 1.0, 2.0)).normalise(images)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.flatten(), torch.tensor([-1.0, 0.0, 0.5]), atol=1e-7, rtol=0)
    assert images.flatten().tolist() == [0, 51, 255]


# Values


def test_round_trip_through_json() -> None:
    preprocess = plain((224, 336), resize="shorter", crop_pct=0.9, augment="crop", **IMAGENET)
    assert Preprocess.from_dict(json.loads(json.dumps(preprocess.to_dict()))) == preprocess


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 3}, r"unknown \['size'\]"),
        ({"std": None}, "cannot be used"),
        ({"resize": "crop"}, "resize is 'crop'"),
        ({"image_size": ["a", 3]}, "image_size"),
        ({"crop_pct": "all"}, "cannot be used"),
    ],
)
def test_from_dict_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        Preprocess.from_dict(plain().to_dict() | changes)


def test_from_dict_refuses_a_missing_value() -> None:
    values = plain().to_dict()
    del values["mean"]
    with pytest.raises(CheckpointError, match=r"lacks \['mean'\]"):
        Preprocess.from_dict(values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resize": "squish"}, r"resize is 'squish'; use one of squash, shorter\. Did you mean 'squash'\?"),
        ({"interpolation": "cubic"}, "interpolation is 'cubic'.*'bicubic'"),
        ({"augment": "crops"}, "augment is 'crops'"),
        ({"size": (0, 8)}, "image_size"),
        ({"size": (8, 8, 3)}, "image_size"),
        ({"crop_pct": 0.0}, "crop_pct"),
        ({"crop_pct": 1.1}, "crop_pct"),
        ({"mean": (0.5,)}, "mean"),
        ({"std": (0.5, 0.5, 0.0)}, "std"),
        ({"augment": "crop"}, "leaves nothing to crop; use resize 'shorter'"),
    ],
)
def test_values_that_cannot_work(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plain(**changes)


# JPEGs that are much larger than needed


def photo(path: Path, size: tuple[int, int], mode: str = "RGB", **options: Any) -> Path:
    """A JPEG with smooth shades, so that what decoding at a reduced scale leaves out is little."""
    width, height = size
    x, y = np.meshgrid(np.linspace(0, 6, width), np.linspace(0, 9, height))
    shades = np.stack([np.sin(x), np.cos(y), np.sin(x + y)], -1) * 100 + 128
    image = Image.fromarray(shades.astype(np.uint8)).convert(mode)
    return saved(image, path, quality=95, **{"format": "JPEG", **options})


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    return found


def decoded_sizes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Sizes of what is decoded from now on."""
    sizes: list[tuple[int, int]] = []
    load = JpegImagePlugin.JpegImageFile.load

    def watched(image: Any) -> Any:
        if image.tile:
            sizes.append(image.size)
        return load(image)

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "load", watched)
    return sizes


@pytest.mark.parametrize(
    ("size", "changes", "decoded"),
    [
        ((640, 480), {}, (80, 60)),  # squash: both sides become 16
        ((640, 480), {"resize": "shorter"}, (80, 60)),
        ((640, 480), {"resize": "shorter", "crop_pct": 0.5}, (160, 120)),  # 32 before the crop
        ((640, 480), {"resize": "shorter", "crop_pct": 0.5, "augment": "crop"}, (160, 120)),
        ((480, 130), {}, (120, 33)),  # the shorter side decides, and is rounded up
        ((64, 64), {}, (32, 32)),
        ((63, 200), {}, (63, 200)),  # less than four times as large
        ((16, 16), {}, (16, 16)),
        ((4, 9), {}, (4, 9)),
    ],
)
def test_a_large_jpeg_is_decoded_at_twice_what_is_needed_or_more(
    tmp_path: Path,
    size: tuple[int, int],
    changes: dict[str, Any],
    decoded: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, usual = photo(tmp_path / "photo.jpg", size), plain((16, 16), **changes)
    expected = usual.read(path)
    sizes = decoded_sizes(monkeypatch)
    found = dataclasses.replace(usual, scaled_decoding=True).read(path)
    assert sizes == [decoded]
    assert found.shape == expected.shape
    if decoded == size:
        assert torch.equal(found, expected)
    else:
        assert (found.int() - expected.int()).abs().max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_scaled_photo_is_turned_as_it_is_held(tmp_path: Path, orientation: int) -> None:
    """Its sides are odd, so that the decoded picture is a little larger than the photo."""
    path = photo(tmp_path / "photo.jpg", (501, 333), exif=exif(orientation))
    for changes in ({"resize": "shorter"}, {"resize": "squash"}):
        usual = plain((16, 24), **changes)
        difference = usual.read(path).int() - dataclasses.replace(usual, scaled_decoding=True).read(path).int()
        assert difference.abs().max() <= 3


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_a_scaled_photo_keeps_its_colours(tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path, usual = photo(tmp_path / "photo.jpg", (640, 480), mode), plain((16, 16))
    expected = usual.read(path)
    sizes = decoded_sizes(monkeypatch)
    assert (dataclasses.replace(usual, scaled_decoding=True).read(path).int() - expected.int()).abs().max() <= 3
    assert sizes == [(80, 60)]


def test_of_several_photos_in_a_file_the_first_is_scaled(tmp_path: Path) -> None:
    with Image.open(photo(tmp_path / "a.jpg", (640, 480))) as first:
        other = Image.new("RGB", (640, 480))
        path = saved(first, tmp_path / "photo.mpo", format="MPO", save_all=True, append_images=[other])
    with Image.open(path) as image:
        assert image.format == "MPO"
    usual = plain((16, 16))
    scaled = dataclasses.replace(usual, scaled_decoding=True).read(path)
    assert not torch.equal(scaled, usual.read(path))
    assert (scaled.int() - usual.read(path).int()).abs().max() <= 6


@pytest.mark.parametrize("options", [{"format": "PNG"}, {"format": "TIFF"}, {"format": "WEBP", "lossless": True}])
def test_other_formats_are_decoded_in_full(tmp_path: Path, options: dict[str, Any]) -> None:
    with Image.open(photo(tmp_path / "photo.jpg", (640, 480))) as image:
        path, usual = saved(image, tmp_path / "picture", **options), plain((16, 16))
    assert torch.equal(dataclasses.replace(usual, scaled_decoding=True).read(path), usual.read(path))


def test_an_open_photo_is_decoded_in_full_and_left_as_it_is(tmp_path: Path) -> None:
    path, usual = photo(tmp_path / "photo.jpg", (640, 480)), plain((16, 16))
    with Image.open(path) as image:
        found = dataclasses.replace(usual, scaled_decoding=True).from_image(image)
        assert image.size == (640, 480)
    assert torch.equal(found, usual.read(path))


def test_a_damaged_photo_is_told_as_ever(tmp_path: Path) -> None:
    path = photo(tmp_path / "photo.jpg", (640, 480))
    path.write_bytes(path.read_bytes()[:2000])
    told = []
    for scaled in (False, True):
        with pytest.raises(DataError) as error:
            plain((16, 16), scaled_decoding=scaled).read(path)
        told.append(re.sub(r"\d+ bytes", "bytes", str(error.value)))
    assert told[0] == told[1]


def test_scaled_decoding_is_saved_where_it_is_on() -> None:
    assert "scaled_decoding" not in plain().to_dict()
    scaled = plain(scaled_decoding=True)
    assert Preprocess.from_dict(json.loads(json.dumps(scaled.to_dict()))) == scaled
    with pytest.raises(CheckpointError, match="scaled_decoding is 'yes'; use true or false"):
        Preprocess.from_dict({**scaled.to_dict(), "scaled_decoding": "yes"})
