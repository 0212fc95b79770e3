"""CSV files that name images: a row each, with the columns path,label[,split]."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from pathlib import Path

from trimtab.data.found import SPLIT_WORDS, Found, Reading, is_utf8
from trimtab.errors import DataError, nearest


@dataclass(frozen=True)
class _Row:
    number: int  # as a spreadsheet counts: the header is row 1
    path: str
    label: str
    split: str | None  # None where the file has no such column


def training_rows(path: Path) -> Reading:
    """The training and validation images of a CSV file; without a split column all are for training."""
    rows = _read_rows(path)
    train = [row for row in rows if row.split in (None, "train")]
    if not train:
        raise DataError(f"{path} has no rows to train on; give some rows the split 'train'.")
    val = [row for row in rows if row.split == "val"]
    notes = []
    if ignored := sum(row.split == "test" for row in rows):
        notes.append(f"Rows of the test split are not read ({ignored}); they are for the final evaluation.")
    return Reading("csv", _files_of(path, train), _files_of(path, val), notes)


def row_splits(path: Path) -> set[str]:
    """The splits that the rows of a CSV file name."""
    return {row.split for row in _read_rows(path) if row.split is not None}


def split_rows(path: Path, wanted: str) -> list[Found]:
    """The images of one split of a CSV file, or of all its rows."""
    rows = _read_rows(path)
    if wanted != "all" and any(row.split is None for row in rows):
        raise DataError(
            f"{path} has no {wanted!r} split, for it has no 'split' column; add the column, or use the split 'all'."
        )
    return _files_of(path, [row for row in rows if wanted in ("all", row.split)])


def _read_rows(path: Path) -> list[_Row]:
    header, lines = _read_cells(path)
    rows: list[_Row] = []
    first: dict[str, int] = {}  # in which row an image was named
    for number, cells in lines:
        row = dict(zip(header, cells, strict=False))
        split = _split_of(row["split"], path, number) if "split" in row else None
        if not is_utf8(row["label"]):
            raise DataError(f"{path}, row {number}: the label {row['label']!r} is not UTF-8; save it as CSV in UTF-8.")
        rows.append(_Row(number, row["path"], row["label"], split))
        earlier = first.setdefault(os.path.normpath(row["path"]), number)
        if earlier != number and row["path"]:
            raise DataError(
                f"{path}, row {number}: the image {row['path']} is in row {earlier} already; name it once, "
                "so that no image is both trained and tested on."
            )
    return rows


def _read_cells(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The column names, and the numbered rows that are not blank, filled up to all columns."""
    try:
        # Names of files need not be UTF-8; labels must be, and are checked below.
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            lines = [[cell.strip() for cell in line] for line in csv.reader(file)]
    except (OSError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as CSV ({error}); save it as CSV in UTF-8.") from error
    header = [name.lower() for name in lines[0]] if lines else []
    if missing := [name for name in ("path", "label") if name not in header]:
        raise DataError(
            f"{path} lacks the column {' and '.join(missing)} (its first row is {header}); "
            "the first row must be path,label or path,label,split, with commas."
        )
    filled = ((number, line + [""] * (len(header) - len(line))) for number, line in enumerate(lines, start=1))
    return header, [(number, line) for number, line in filled if number > 1 and any(line)]


def _split_of(word: str, path: Path, number: int) -> str:
    split = SPLIT_WORDS.get(word.lower())
    if split is None:
        raise DataError(
            f"{path}, row {number}: the split is {word!r}; use train, val or test.{nearest(word, SPLIT_WORDS)}"
        )
    return split


def _files_of(path: Path, rows: list[_Row]) -> list[Found]:
    """The files that rows name, checked; a relative path starts at the CSV's own folder."""
    found = []
    for row in rows:
        where = f"{path}, row {row.number}"
        for column, cell in (("path", row.path), ("label", row.label)):
            if not cell:
                raise DataError(f"{where}: the {column} is blank; fill it in or remove the row.")
        image = path.parent / row.path
        if not image.is_file():
            raise DataError(f"{where}: there is no file {image}; paths are relative to the CSV's folder.")
        found.append(Found(image, row.label, row.path, where))
    return found
