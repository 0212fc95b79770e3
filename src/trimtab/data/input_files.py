"""Which files a data set is read from, for commands that must not write over them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from trimtab.data.rows import ImageRows
from trimtab.data.segmentation_data import ADE20K, PALETTE
from trimtab.data.sources import find_source


def files_of(data: str | Path) -> Iterator[Path]:
    """List the files that a data set may be read from: images and masks of all splits, palettes, the CSV file itself.

    Nothing is refused here; what cannot be read is left out. A built-in set has no files.
    """
    path = Path(data)
    source = find_source(path)
    if source is None and path.is_file():
        source = ImageRows(path)  # by another extension it will be refused, but until then it may be what was meant
    if source is not None:
        yield from source.input_files()
    if path.is_dir() or path.is_file():
        folder = path if path.is_dir() else path.parent
        yield from (folder / name for name in (PALETTE, ADE20K))
