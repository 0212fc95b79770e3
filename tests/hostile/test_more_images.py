"""More of what folders, files and masks are like: names of splits, formats, depths and keys, conventions of a set."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from tests import scenes
from tests.bench.pretended import Inline, go, make_suite
from tests.hostile.test_finding import CLASSES, Heard, classes, noise
from trimtab import fit, report
from trimtab.data import (
    MaskSet,
    MaskStore,
    Preprocess,
    SegmentationTransform,
    bits_in_use,
    open_segmentation_data,
    open_split,
    open_training,
)
from trimtab.data.colour import in_colour
from trimtab.data.decode import open_allowed, sniff
from trimtab.data.labelled import split_like, split_pairs
from trimtab.data.masks import read_raw
from trimtab.data.orientation import turned_array
from trimtab.errors import DataError

Array = npt.NDArray[Any]
WHOLE = Preprocess(image_size=(20, 30), resize="squash", mean=(0.5,) * 3, std=(0.5,) * 3)  # type: ignore[arg-type]
JOINT = SegmentationTransform(image_size=(20, 20), mean=(0.5,) * 3, std=(0.5,) * 3)  # type: ignore[arg-type]

# --- names of splits --------------------------------------------------------------------------------------

PAIRS = [
    ("red_train", "red_test"), ("train_red", "val_red"), ("trainA", "testA"), ("trn", "tst"), ("train", "hold_out"),
    ("train", "Held-Out"), ("train.old", "test.old"), ("my train", "my validate"), ("1/train_a", "1/test_a"),
]  # fmt: skip


@pytest.mark.parametrize("inner", PAIRS)
def test_pairs_of_names_inside_classes_are_splits(tmp_path: Path, inner: tuple[str, str]) -> None:
    for label in CLASSES:
        for place in inner:
            noise(tmp_path / label / place / "0.png", 1)
    with pytest.raises(DataError, match="named for splits inside") as caught:
        open_training(tmp_path)
    assert "\n" not in str(caught.value)
    assert all(repr(place) in str(caught.value) for place in inner)
    assert len(open_split(tmp_path, "all", CLASSES)) == 4


def test_pairs_of_names_are_no_classes(tmp_path: Path) -> None:
    for name in ("red_train", "red_test", "green_train", "green_test"):
        noise(tmp_path / name / "0.png", 1)
    with pytest.raises(DataError, match="look like splits and would be used as classes"):
        open_training(tmp_path)


def test_pairs_of_names_in_folders_of_masks(tmp_path: Path) -> None:
    scenes.write(tmp_path, [("street_train", 2), ("street_test", 2)])
    with pytest.raises(DataError, match="used alike"):
        open_segmentation_data(tmp_path)


def test_links_to_splits_are_splits_whatever_they_are_called(tmp_path: Path) -> None:
    for label in CLASSES:
        (tmp_path / "set" / label).mkdir(parents=True)
        for split in ("train", "test"):
            noise(tmp_path / "store" / label / split / "0.png", 1)
            (tmp_path / "set" / label / f"part {split[1]}").symlink_to(tmp_path / "store" / label / split)
    with pytest.raises(DataError, match=r"named for splits inside .*'part e', 'part r'"):
        open_training(tmp_path / "set")


@pytest.mark.parametrize(
    "names", [("train station", "test bench"), ("bus_test", "bus"), ("train 1", "train 2"), ("test_a", "val_a")]
)
def test_other_names_are_no_pairs(tmp_path: Path, names: tuple[str, ...]) -> None:
    assert split_pairs(names) == {}
    for name in names:
        noise(tmp_path / "red" / name / "0.png", 1)
        noise(tmp_path / "green" / "0.png", 1)
    open_training(tmp_path)
    assert split_like("hold up") is None


# --- depth and transparency of files that are met less often ----------------------------------------------


def wide_ppm(path: Path, values: Array, greatest: int) -> Path:
    height, width = values.shape[:2]
    if path.stem == "plain":
        text = "\n".join(" ".join(map(str, row)) for row in values.reshape(height, -1).tolist())
        path.write_text(f"P3 # in words\n{width} {height}\n{greatest}\n# values\n{text}\n")
    else:
        path.write_bytes(b"P6\n%d %d\n%d\n" % (width, height, greatest) + values.astype(">u2").tobytes())
    return path


@pytest.mark.parametrize("name", ["raw.ppm", "plain.ppm"])
def test_the_depth_of_a_colour_ppm_is_found_and_used(tmp_path: Path, name: str) -> None:
    values = np.random.default_rng(0).integers(0, 4096, (6, 8, 3))
    values[0, 0] = 4095
    path = wide_ppm(tmp_path / name, values, 65535)
    assert bits_in_use([path]) == 12
    with Image.open(path) as image:
        assert (np.asarray(in_colour(image, 12)) == values >> 4).all()
    assert bits_in_use([wide_ppm(path, values, 4095)]) == 16
    with Image.open(path) as image:
        whole = np.asarray(in_colour(image, 15)).astype(int)
    assert abs(whole - np.minimum(values * 65535 // 4095 >> 7, 255)).max() <= 1
    path.write_bytes(path.read_bytes()[:-40])
    with Image.open(path) as image, pytest.raises(ValueError, match="ends before its last pixel"):
        in_colour(image, 12)


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("key", ["least", "low", "most"])
def test_the_transparent_value_of_few_bits(tmp_path: Path, bits: int, key: str) -> None:
    value = {"least": 0, "low": 1, "most": (1 << bits) - 1}[key]
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 8, 2, bits, 0, 0, 0, 0)),
        (b"tRNS", struct.pack(">H", value)),
        # The first row has the transparent value, the second another.
        (b"IDAT", zlib.compress(b"".join(b"\0" + byte(v, bits) * bits for v in (value, value ^ 1)))),
        (b"IEND", b""),
    ]
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    )
    with Image.open(tmp_path / "a.png") as image:
        for _ in range(2):  # once decoded, it is the same
            shown = np.asarray(in_colour(image, background=(10, 20, 30)))
            assert (shown[0] == (10, 20, 30)).all()
            assert (shown[1] == (value ^ 1) * 255 // ((1 << bits) - 1)).all()


def byte(value: int, bits: int) -> bytes:
    """A byte full of one value of so many bits."""
    return bytes([sum(value << place for place in range(0, 8, bits))])


@pytest.mark.parametrize("alpha", [0, 128])
def test_a_fourth_byte_that_is_no_alpha(tmp_path: Path, alpha: int) -> None:
    head = struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, 8, 8, 32, 0)
    (tmp_path / "a.tga").write_bytes(head + bytes([10, 20, 30, alpha]) * 64)
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    sizes = struct.pack("<IiiHHIIiiII", 56, 8, 8, 1, 32, 3, 256, 0, 0, 0, 0)
    (tmp_path / "a.bmp").write_bytes(
        b"BM" + struct.pack("<IHHI", 326, 0, 0, 70) + sizes + masks + bytes([10, 20, 30, alpha]) * 64
    )
    for name in ("a.tga", "a.bmp"):
        with open_allowed(tmp_path / name) as image:
            shown = np.asarray(in_colour(image, background=(255, 255, 255)))[0, 0].tolist()
        assert (shown == [30, 20, 10]) == (alpha == 0)


# --- formats ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "name"),
    [(b"%PDF-1.5\n", "PDF"), (b"#define a_width 8\n", "XBM"), (b"GRIB\0\0\0\1", "GRIB"), (b"\x89HDF\r\n\x1a\n", "HDF5"),
     (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"), (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "FlashPix")],
)  # fmt: skip
def test_what_is_no_image_is_named(tmp_path: Path, start: bytes, name: str) -> None:
    (tmp_path / "photo.jpg").write_bytes(start + bytes(60))
    with pytest.raises(DataError, match=rf"photo\.jpg cannot be read: it is a file of the format .*{name}") as caught:
        WHOLE.read(tmp_path / "photo.jpg")
    assert "\n" not in str(caught.value)
    assert sniff(tmp_path / "photo.jpg") is None


def test_an_open_image_of_a_plugin_is_its_owners_choice(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20), "red").save(tmp_path / "a.dds")
    with Image.open(tmp_path / "a.dds") as image:
        assert WHOLE.from_image(image).shape == (3, 20, 30)
    (tmp_path / "a.grib").write_bytes(b"GRIB\0\0\0\1" + bytes(60))
    with Image.open(tmp_path / "a.grib") as image, pytest.raises(DataError, match="the format GRIB"):
        WHOLE.from_image(image)


def test_numbered_files_without_extensions_have_masks(tmp_path: Path) -> None:
    scenes.write(tmp_path, [("", 3)])
    for number, image in enumerate(sorted((tmp_path / "images").iterdir())):
        (tmp_path / "masks" / f"{image.stem}.png").rename(tmp_path / f"masks/scene.{number}.png")
        image.rename(tmp_path / f"images/scene.{number}")
    data = open_segmentation_data(tmp_path, val_fraction=0)
    assert [path.name for path in data.train.paths] == ["scene.0", "scene.1", "scene.2"]


@pytest.mark.parametrize(("name", "kind", "fits"), [("a.png", "JPEG", False), ("a.jpg", "PNG", True)])
def test_whether_a_mask_is_lossy_is_known_by_content(tmp_path: Path, name: str, kind: str, fits: bool) -> None:
    Image.fromarray(np.eye(8, dtype=np.uint8)).save(tmp_path / name, format=kind)
    if fits:
        assert (read_raw(tmp_path / name, coloured=False) == np.eye(8)).all()
    else:
        with pytest.raises(ValueError, match="save masks as PNG"):
            read_raw(tmp_path / name, coloured=False)


def test_a_report_says_what_it_left_out(tmp_path: Path) -> None:
    data = classes(tmp_path / "data")
    fit(data, out=tmp_path / "out", method="linear", image_size=32, epochs=2)
    (data / "red" / "drawing.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    heard = Heard()
    report(tmp_path / "out", data=data, split="all", out=tmp_path / "out.html", progress=heard)
    assert any("1 EPS ('drawing.eps'" in line for line in heard.said)


def test_a_benchmark_says_what_it_left_out(tmp_path: Path) -> None:
    suite = make_suite(tmp_path / "sets", {"maps": "drawn"})
    for split in ("train", "test"):
        (tmp_path / "sets/maps" / split / "ant" / f"{split}.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    heard = Heard()
    go(suite, tmp_path / "out", Inline(), "linear", seeds=1, progress=heard)
    for split in ("train", "test"):
        assert any("Left out of" in line and f"{split}.eps" in line for line in heard.said)


# --- orientation ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("upright", [True, False])
def test_a_mask_that_fits_both_ways_is_read_as_others_of_its_set(tmp_path: Path, upright: bool) -> None:
    for k, orientation in enumerate((1, 3, 6, 4)):
        shape = np.zeros((20, 30), np.uint8)
        shape[:6, :9] = 1
        exif = Image.Exif()
        exif[0x112] = orientation
        for folder in ("images", "masks"):
            (tmp_path / folder).mkdir(exist_ok=True)
        Image.fromarray(shape * 200).convert("RGB").save(tmp_path / f"images/{k}.png", exif=exif)
        Image.fromarray(turned_array(shape, orientation) if upright else shape).save(tmp_path / f"masks/{k}.png")
    data = open_segmentation_data(tmp_path, val_fraction=0).train
    assert isinstance(data, MaskSet)
    store = MaskStore(data, JOINT, cache_bytes=0, whole=True)
    for pixels, mask in store.batches([[k] for k in range(4)]):
        assert ((pixels[:, 0] > 100) == (mask == 1)).all()
    assert store.orientations == {"upright" if upright else "with image": 3}
