"""Transparent pixels: what shows through them is a background and not what lies under them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests import job, scenes
from tests.hostile import deep
from trimtab import checkpoint
from trimtab.checkpoint import CONFIG, PREPROCESSOR, RUN
from trimtab.data import Preprocess, SegmentationTransform
from trimtab.errors import CheckpointError, ConfigError
from trimtab.recipe import FitConfig
from trimtab.training.fit import fit
from trimtab.training.run_folder import RESUME

HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
WHITE = (255, 255, 255)
Colour = tuple[int, int, int]


def preprocesses(background: Colour | None) -> list[Preprocess | SegmentationTransform]:
    plain: dict[str, Any] = {"image_size": (6, 8), "resize": "squash", "interpolation": "nearest", **HALF}
    return [Preprocess(background=background, **plain), SegmentationTransform(background=background, **plain)]


def read(path: Path, background: Colour | None) -> deep.Array:
    """The pixels (6, 8, 3), which both kinds of preprocessing read alike."""
    first, second = (prepare.read(path) for prepare in preprocesses(background))
    assert torch.equal(first, second)
    return first.permute(1, 2, 0).numpy()


def drawing(path: Path, mode: str) -> Path:
    """A black cross on transparent black, the corner half transparent; (6, 8) pixels of any mode with alpha."""
    alpha = np.zeros((6, 8), dtype=np.uint8)
    alpha[2:4], alpha[:, 3:5], alpha[0, 0] = 255, 255, 128
    pixels = np.zeros((6, 8, 4), dtype=np.uint8)
    pixels[..., 3] = alpha
    image = Image.fromarray(pixels)
    if mode in ("RGBA", "LA"):
        image.convert(mode).save(path)
    elif mode == "P bytes":
        indices = Image.fromarray((alpha > 0).astype(np.uint8)).convert("L")
        palette = Image.frombytes("P", indices.size, indices.tobytes())
        palette.putpalette([0] * 6)
        palette.save(path, transparency=bytes([0, 255]))
    elif mode == "P index":
        indices = Image.fromarray((alpha > 0).astype(np.uint8)).convert("L")
        palette = Image.frombytes("P", indices.size, indices.tobytes())
        palette.putpalette([0, 0, 0, 0, 0, 0])
        palette.save(path, transparency=0)
    else:
        # A key of a colour that nothing else has: 7 is transparent, 0 is drawn.
        grey = np.where(alpha > 0, 0, 7).astype(np.uint8)
        if mode == "1":
            Image.fromarray(grey > 0).save(path, transparency=1)
        elif mode == "L":
            Image.fromarray(grey).save(path, transparency=7)
        elif mode == "RGB":
            Image.fromarray(np.stack([grey] * 3, axis=-1)).save(path, transparency=(7, 7, 7))
        else:
            depth = np.where(alpha > 0, 0, 1799)
            values, key = (depth, (1799,)) if mode == "I;16" else (np.stack([depth] * 3, axis=-1), (1799,) * 3)
            if mode == "RGBA16":
                deep.png(path, np.concatenate([np.zeros((6, 8, 3), int), alpha[..., None].astype(int) * 257], axis=-1))
            else:
                deep.png(path, values, key)
    return path


MODES = {
    "png": ("RGBA", "LA", "P bytes", "P index", "1", "L", "RGB", "I;16", "RGB16", "RGBA16"),
    "webp": ("RGBA",),
    "gif": ("P index",),
    "tif": ("RGBA", "LA"),
    "ico": ("RGBA",),
}


@pytest.mark.parametrize(("suffix", "mode"), [(suffix, mode) for suffix, modes in MODES.items() for mode in modes])
@pytest.mark.parametrize("background", [WHITE, (10, 200, 30)])
def test_the_background_shows_through(tmp_path: Path, suffix: str, mode: str, background: Colour) -> None:
    path = tmp_path / f"a.{suffix}"
    if suffix == "webp":
        drawing(tmp_path / "a.png", mode)
        Image.open(tmp_path / "a.png").save(path, lossless=True, exact=True)
    elif suffix == "ico":
        drawing(tmp_path / "a.png", mode)
        Image.open(tmp_path / "a.png").save(path, sizes=[(8, 6)])
    else:
        drawing(path, mode)
    pixels = read(path, background)
    assert (pixels[1, 1] == background).all()
    assert (pixels[2:4] == 0).all()
    assert (pixels[:, 3:5] == 0).all()
    if mode in ("RGBA", "LA", "RGBA16"):
        expected = np.array(background) * (255 - 128) / 255
        assert np.abs(pixels[0, 0] - expected).max() <= 1


@pytest.mark.parametrize("mode", MODES["png"])
def test_dropped_transparency_is_as_before(tmp_path: Path, mode: str) -> None:
    pixels = read(drawing(tmp_path / "a.png", mode), None)
    transparent = {"1": 255, "L": 7, "RGB": 7, "I;16": 7, "RGB16": 7}.get(mode, 0)
    assert (pixels[2:4] == 0).all()
    assert (pixels[1, 1] == transparent).all()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "PA", "L", "1", "CMYK", "I;16", "key", "RGBa", "La"])
def test_opaque_images_keep_their_bits(tmp_path: Path, mode: str) -> None:
    rgb = Image.fromarray(np.random.default_rng(1).integers(0, 250, (6, 8, 3), dtype=np.uint8))
    first, second = preprocesses(WHITE), preprocesses(None)
    if mode in ("PA", "La", "RGBa", "I;16"):
        image = {
            "PA": lambda: rgb.convert("P").convert("PA"),
            "La": lambda: rgb.convert("LA").convert("La"),
            "RGBa": lambda: rgb.convert("RGBA").convert("RGBa"),
            "I;16": lambda: rgb.convert("L").convert("I").convert("I;16"),
        }[mode]()
        for one, other in zip(first, second, strict=True):
            assert torch.equal(one.from_image(image), other.from_image(image))
        return
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    if mode == "key":
        rgb.save(path, transparency=(255, 255, 255))
    else:
        rgb.convert(mode).save(path)
    assert np.array_equal(read(path, WHITE), read(path, None))
    if mode in ("RGB", "RGBA", "key"):
        assert np.array_equal(read(path, WHITE), np.asarray(rgb))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "La", "RGBa"])
def test_open_images_are_shown_over_the_background(mode: str) -> None:
    image = Image.new("RGBA", (8, 6), (0, 0, 0, 0))
    if mode in ("LA", "La"):
        image = image.convert("LA")
    if mode in ("La", "RGBa"):
        image = image.convert(mode)
    if mode == "PA":
        image = Image.new("PA", (8, 6), (0, 0))
    for prepare in preprocesses((1, 2, 3)):
        assert prepare.from_image(image)[:, 0, 0].tolist() == [1, 2, 3]


# --- the option -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "colour"),
    [
        (None, WHITE),
        ("white", WHITE),
        ("black", (0, 0, 0)),
        ("grey", (128, 128, 128)),
        ("gray", (128, 128, 128)),
        ("#102030", (16, 32, 48)),
        ("1,20, 255", (1, 20, 255)),
        ("drop", None),
    ],
)
def test_backgrounds(word: str | None, colour: Colour | None) -> None:
    assert FitConfig(background=word).background_colour() == colour


@pytest.mark.parametrize(
    "word", ["", "whit", "#10203040", "1,2", "1,2,3,4", "256,0,0", "-1,0,0", "1.5,0,0", "0x1,0,0", 7]
)
def test_no_backgrounds(word: Any) -> None:
    with pytest.raises(ConfigError, match=r"background is .*; use a colour \(white, #rrggbb, or red,green,blue"):
        FitConfig(background=word)


QUICK: dict[str, Any] = {"probe_epochs": 0}


def saved(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / PREPROCESSOR).read_text(encoding="utf-8"))
    return values


@pytest.mark.parametrize(("word", "expected"), [(None, [255, 255, 255]), ("1,2,3", [1, 2, 3]), ("drop", None)])
def test_a_run_records_its_background(tmp_path: Path, word: str | None, expected: list[int] | None) -> None:
    job.run("linear", tmp_path / "out", background=word, **QUICK)
    assert saved(tmp_path / "out").get("background") == expected
    assert checkpoint.read(tmp_path / "out").preprocess.background == (tuple(expected) if expected else None)
    identity = json.loads((tmp_path / "out" / RUN).read_text(encoding="utf-8"))["identity"]
    assert identity["preprocessing"].get("background") == expected


def test_a_segmenter_records_its_background(tmp_path: Path) -> None:
    fit(
        scenes.data(), out=tmp_path, method="linear", task="segmentation", image_size="32", epochs=2, background="black"
    )
    assert saved(tmp_path)["background"] == [0, 0, 0]


def unfinished(out: Path, *, earlier: bool) -> Path:
    """A run that stopped before its end, of this version or as the one before would have left it."""
    job.run("linear", out, **QUICK)
    (out / CONFIG).unlink()
    record = json.loads((out / RUN).read_text(encoding="utf-8"))
    if earlier:
        del record["identity"]["preprocessing"]["background"], record["options"]["background"]
        (out / RUN).write_text(json.dumps(record), encoding="utf-8")
    return out


def test_a_run_of_an_earlier_version_goes_on_as_it_began(tmp_path: Path) -> None:
    out = unfinished(tmp_path / "out", earlier=True)
    job.run("linear", out, resume=True, **QUICK)
    assert "background" not in saved(out)
    assert not (out / RESUME).exists()


def test_another_background_is_another_run(tmp_path: Path) -> None:
    out = unfinished(tmp_path / "out", earlier=False)
    with pytest.raises(CheckpointError, match="cannot be resumed with other settings"):
        job.run("linear", out, resume=True, background="black", **QUICK)
    job.run("linear", out, resume=True, **QUICK)
    assert saved(out)["background"] == [255, 255, 255]
    early = unfinished(tmp_path / "early", earlier=True)
    with pytest.raises(CheckpointError, match="cannot be resumed with other settings"):
        job.run("linear", early, resume=True, background="white", **QUICK)


def test_adapters_of_earlier_versions_predict_as_they_did(tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(job.finished("linear"), adapter)
    values = saved(adapter)
    del values["background"]
    (adapter / PREPROCESSOR).write_text(json.dumps(values), encoding="utf-8")
    config = json.loads((adapter / checkpoint.CONFIG).read_text(encoding="utf-8"))
    del config["checksum"]  # which they did not have either
    (adapter / checkpoint.CONFIG).write_text(json.dumps(config), encoding="utf-8")
    preprocess: Any = checkpoint.read(adapter).preprocess
    assert (preprocess.bits, preprocess.background) == (16, None)
    assert preprocess.to_dict() == values
    cross = drawing(tmp_path / "a.png", "RGBA")
    assert preprocess.read(cross).max() == 0
