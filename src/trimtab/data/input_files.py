"""Which files a data set is read from, for commands that must not write over them."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Iterator
from pathlib import Path

from trimtab.data.folders import list_images
from trimtab.data.segmentation_data import ADE20K, PALETTE
from trimtab.errors import DataError


def files_of(data: str | Path) -> Iterator[Path]:
    """List the files that a data set may be read from: images and masks of all splits, palettes, the CSV file itself.

    Nothing is refused here; what cannot be read is left out. A built-in set has no files.
    """
    path = Path(data)
    if path.is_dir():
        folder = path
        with contextlib.suppress(DataError):
            yield from (image for image in list_images([path]) if isinstance(image, Path))
    elif path.is_file():
        folder = path.parent
        yield path
        yield from _named_in(path)
    else:
        return
    yield from (folder / name for name in (PALETTE, ADE20K))


def _named_in(path: Path) -> Iterator[Path]:
    """The images and masks that the rows of a CSV file name."""
    with (
        contextlib.suppress(OSError, csv.Error, UnicodeDecodeError),
        path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file,
    ):
        rows = csv.reader(file)
        columns = [k for k, name in enumerate(next(rows, [])) if name.strip().lower() in ("path", "mask")]
        for row in rows:
            yield from (path.parent / row[k].strip() for k in columns if k < len(row))
