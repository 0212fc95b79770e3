"""Which images are trained on, validated on and tested on.

Images are drawn by a hash of their name and the seed, so a draw depends on neither the machine nor the order of files.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trimtab.storage.files import write_text

_SUFFIXES = {".jpg", ".jpeg", ".png"}


@dataclass(frozen=True)
class Split:
    """The two CSV files of a set and seed. Neither names a test image."""

    train: Path
    """Training images only, for ``fit``."""
    val: Path
    """Validation images only, for ``evaluate``."""
    digest: str
    """Of what both hold."""


def draw_split(data: Path, folder: Path, *, seed: int, train_images: int, val_images: int) -> Split:
    """Draw disjoint training and validation images from ``data/train`` and write them into ``folder``.

    Both are stratified; every class has a training image.

    Raises:
        ValueError: If there are fewer images than wanted, or fewer are wanted than there are classes.
    """
    classes = _by_class(data / "train", f"train/{seed}")
    train, rest = _take(classes, train_images, least=1)
    val, _ = _take(rest, val_images, least=0)
    stem = f"{data.name}-{train_images}-{val_images}-seed{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    texts = [_csv(images, name) for images, name in ((train, "train"), (val, "val"))]
    paths = [folder / f"{stem}-train.csv", folder / f"{stem}-val.csv"]
    for path, text in zip(paths, texts, strict=True):
        write_text(path, text)
    return Split(paths[0], paths[1], digest_of(data, {**_named(train, "train"), **_named(val, "val")}))


def write_test(data: Path, path: Path, count: int) -> str:
    """Write the same test images for everybody, at most ``count`` and stratified, and return their digest."""
    classes = _by_class(data / "test", "test")
    total = sum(map(len, classes.values()))
    images, _ = _take(classes, min(count, total), least=0)
    write_text(path, _csv(images, "test"))
    return digest_of(data, _named(images, "test"))


def digest_of(data: Path, images: dict[Path, str]) -> str:
    """A short name for a list of images, the same wherever the data lies."""
    lines = sorted(f"{image.relative_to(data).as_posix()} {split}" for image, split in images.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def _by_class(folder: Path, draw: str) -> dict[str, list[Path]]:
    """The images of every class in the order in which they are drawn."""
    classes = {}
    for sub in sorted(entry for entry in folder.iterdir() if entry.is_dir()):
        images = [image for image in sub.iterdir() if image.suffix.lower() in _SUFFIXES]
        classes[sub.name] = sorted(images, key=lambda image: _hash(f"{draw}/{image.parent.name}/{image.name}"))
    return classes


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _take(
    classes: dict[str, list[Path]], count: int, least: int
) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    """The first images of every class, ``count`` in all, and the rest."""
    sizes = {name: len(images) for name, images in classes.items()}
    counts = apportion(list(sizes.values()), count, least)
    taken = {name: images[:k] for (name, images), k in zip(classes.items(), counts, strict=True)}
    rest = {name: images[k:] for (name, images), k in zip(classes.items(), counts, strict=True)}
    return taken, rest


def apportion(sizes: Sequence[int], count: int, least: int) -> list[int]:
    """How many of each class, in proportion to ``sizes``: ``count`` in all and at least ``least`` of each.

    Raises:
        ValueError: If that cannot be had.
    """
    total = sum(sizes)
    if count > total or count < least * len(sizes) or min(sizes) < least:
        raise ValueError(f"{count} images are wanted of {total} in {len(sizes)} classes, at least {least} of each.")
    counts = [least] * len(sizes)
    while sum(counts) < count:
        # The class that is furthest behind its share gets the next one; the first of equals.
        behind = [
            size * count / total - have if have < size else float("-inf")
            for size, have in zip(sizes, counts, strict=True)
        ]
        counts[behind.index(max(behind))] += 1
    return counts


def _named(classes: dict[str, list[Path]], split: str) -> dict[Path, str]:
    return {image: split for images in classes.values() for image in images}


def _csv(classes: dict[str, list[Path]], split: str) -> str:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("path", "label", "split"))
    for name, images in classes.items():
        writer.writerows((image.resolve(), name, split) for image in images)
    return buffer.getvalue()
