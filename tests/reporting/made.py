"""What the tests of reports share."""

from __future__ import annotations

import csv
import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests import job, scenes
from trimtab.reporting.runs import Run, read_runs
from trimtab.training.fit import fit

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "$x^2$ {{ 7 * 7 }} %s",
    "日本語のクラス",
    "right\u202eleft",
    "bell\x07",
    "new\nline",
    "a very long name that goes on and on " * 3 + "to its end",
)
"""Names of classes that a page has to survive."""


def run(method: str = "vpt") -> Run:
    """A finished small run."""
    (found,) = read_runs([job.finished(method)])
    return found


@functools.cache
def hostile() -> Path:
    """A run on classes with such names, of files and in a folder of such names; leave it as it is."""
    home = Path(tempfile.mkdtemp(dir=job.home()))
    rows = [
        (f"<b>{label}-{k}\"'.png", name, "val" if k else "train")
        for label, name in enumerate(_names())
        for k in range(2)
    ]
    return _fit(home, rows, home / "<i>run & co", 'trimtab fit "</pre><script>alert(3)</script>"')


@functools.cache
def many(classes: int = 60) -> Path:
    """A run on more classes than a confusion matrix can show."""
    home = Path(tempfile.mkdtemp(dir=job.home()))
    rows = [
        (f"{label}-{k}.png", f"class {label}", "val" if k else "train") for label in range(classes) for k in range(2)
    ]
    return _fit(home, rows, home / "many", None)


def segment(method: str, out: Path, images: Path, **more: Any) -> Path:
    """A small segmentation run into ``out``."""
    small = {"epochs": 2, "batch_size": 4, "image_size": "32x48", "probe_epochs": 0, **more}
    return job.run(method, out, images=images, task="segmentation", **small)


@functools.cache
def segmenter(method: str = "vpt") -> Path:
    """A finished small segmentation run, made once a session; leave it as it is."""
    return segment(method, Path(tempfile.mkdtemp(dir=job.home())) / method, scenes.data())


@functools.cache
def hostile_scenes() -> Path:
    """A segmentation run on classes, files and a folder of such names; leave it as it is."""
    home = Path(tempfile.mkdtemp(dir=job.home()))
    _draw_scenes(home / "data", _names(), "<b>{}\"'")
    return segment("vpt", home / "<i>run & co", home / "data", command='trimtab fit "</pre><script>alert(3)</script>"')


@functools.cache
def many_scenes(classes: int = 60) -> Path:
    """A segmentation run on more classes than pictures can show."""
    home = Path(tempfile.mkdtemp(dir=job.home()))
    _draw_scenes(home / "data", [f"class {label}" for label in range(classes)], "{}")
    return segment("vpt", home / "many", home / "data")


def _draw_scenes(folder: Path, names: Sequence[str], file: str) -> None:
    """Squares of 8 pixels, each of one class, and a palette that names them."""
    for number, split in enumerate(("train", "train", "val", "val", "val")):
        generator = np.random.default_rng(number)
        mask = generator.integers(0, len(names), (4, 6)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
        image = (np.stack([mask * 4, 255 - mask * 4, mask // 2 * 8], -1)).astype(np.uint8)
        for kind, pixels in (("images", image), ("masks", mask)):
            place = folder / kind / split / f"{file.format(number)}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(place)
    with (folder / "palette.csv").open("w", encoding="utf-8", newline="") as palette:
        csv.writer(palette).writerows([("value", "name"), *enumerate(names)])


def _names() -> list[str]:
    return [name.strip() for name in HOSTILE]


def _fit(home: Path, rows: Sequence[tuple[str, str, str]], out: Path, command: str | None) -> Path:
    for number, (name, _, _) in enumerate(rows):
        job.draw(home / name, number, number)
    with (home / "data.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split"), *rows])
    fit(home / "data.csv", out=out, command=command, **job.options("vpt", epochs=2, batch_size=64))
    return out
