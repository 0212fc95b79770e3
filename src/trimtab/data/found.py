"""What the readers of folders and of CSV files have in common."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from trimtab.data.images import ImageSource

SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
LAYOUTS = (
    "a folder with train/ (and val/, test/) of class folders, one folder of class folders, "
    "or a .csv file with the columns path,label[,split]"
)


@dataclass(frozen=True)
class Found:
    """One image as it was found, before its class has a number."""

    path: ImageSource
    label: str
    name: str  # what a split draws by: the same wherever the data lies
    where: str  # for errors


@dataclass(frozen=True)
class Reading:
    """The training and validation images of one source, and the notes made on the way."""

    source: str
    train: list[Found]
    val: list[Found]
    notes: list[str]


def is_utf8(name: str) -> bool:
    """Whether a name is text, and not bytes that Python could only carry along."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def some(names: Collection[str], count: int = 3) -> str:
    """The first names in quotes, and how many more there are."""
    shown = ", ".join(repr(name) for name in list(names)[:count])
    return shown if len(names) <= count else f"{shown} and {len(names) - count} more"
