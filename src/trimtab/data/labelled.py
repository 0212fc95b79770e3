"""Parts shared by the readers of folders and of CSV files."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from trimtab.data.images import ImageSource
from trimtab.errors import DataError

SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_MORE_WORDS = {
    **SPLIT_WORDS,
    "trainval": "train",
    "trn": "train",
    "dev": "val",
    "validate": "val",
    "tests": "test",
    "tst": "test",
    "eval": "test",
    "evaluation": "test",
    "holdout": "test",
    "heldout": "test",
}
_AFFIX = "datasets?|data|sets?|splits?|images?|imgs?|photos?|pictures?|pics?|folders?|dirs?|files?|parts?|folds?|v"
# Longer words first, so that "training" is not "train" and the rest.
_HELD = re.compile("(hold|held)[-_ ]out", re.IGNORECASE)
_WORDS = re.compile("[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_SPLIT_LIKE = re.compile(f"(?:{_AFFIX})?({'|'.join(sorted(_MORE_WORDS, key=len, reverse=True))})(?:{_AFFIX})?")
FOLDER_LAYOUT = "a folder with train/ (and val/, test/) of class folders, one folder of class folders"
CSV_LAYOUT = "a .csv file with the columns path,label[,split]"


@dataclass(frozen=True)
class LabelledImage:
    """One image as it was found, before its class has a number."""

    path: ImageSource
    label: str
    name: str  # what a split draws by: the same wherever the data lies
    where: str  # for errors


@dataclass(frozen=True)
class TrainingListing:
    """The training and validation images of one source, and the notes made on the way."""

    source: str
    train: list[LabelledImage]
    val: list[LabelledImage]
    notes: list[str]


@dataclass(frozen=True)
class SplitListing:
    """The images of one split, the notes made on the way, and how many images were left out."""

    images: list[LabelledImage]
    notes: list[str]
    left_out: int = 0


def split_like(name: str) -> str | None:
    """The split that a folder's name stands for in other words, such as ``train_set`` or ``TestImages2017``.

    Returns:
        ``"train"``, ``"val"`` or ``"test"``; None if the name has any word that is about something else.
    """
    if not name.isascii():
        return None
    splits = set()
    for word in _words(name):
        matched = _SPLIT_LIKE.fullmatch(word.lower())
        if matched is not None:
            splits.add(_MORE_WORDS[matched[1]])
        elif re.fullmatch(_AFFIX, word.lower()) is None:
            return None
    return splits.pop() if len(splits) == 1 else None


def split_pairs(names: Iterable[str]) -> dict[str, str]:
    """Names of one folder that are alike but for the split that they name, such as ``red_train`` and ``red_test``.

    Returns:
        The split of each; nothing where training images, or images to measure on, have no such name.
    """
    alike: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for name in names:
        for word in _words(name):
            if split := _MORE_WORDS.get(word.lower()):
                alike[name.replace(word, "\0", 1).lower()][name] = split
    groups = [group for group in alike.values() if "train" in group.values() and len(set(group.values())) > 1]
    return {name: split for group in groups for name, split in group.items()}


def _words(name: str) -> list[str]:
    return _WORDS.findall(_HELD.sub(r"\1out", name))


def check_nested(base: Path, inside: Iterable[Path], way_out: str) -> list[str]:
    """Refuse folders named for splits in a folder whose images would all be used alike.

    Args:
        base: The folder.
        inside: The folders in it that have images, at any depth.
        way_out: What to do instead.

    Returns:
        Notes: a folder may well be called ``train`` for what is in its pictures.

    Raises:
        DataError: Some are named for validation or test images.
    """
    exact: dict[str, str] = {}
    like: dict[str, str] = {}
    beside: defaultdict[Path, dict[str, str]] = defaultdict(dict)
    for folder in _up_to(base, inside):
        here = folder.relative_to(base).as_posix()
        # A link may have any name, and lead to a folder of a split.
        names = {folder.name, os.path.basename(os.path.realpath(folder))} if folder.is_symlink() else {folder.name}  # noqa: PTH119
        for name in names:
            beside[folder.parent][name] = here
            if split := SPLIT_WORDS.get(name.lower()):
                exact.setdefault(split, here)
            if split := split_like(name):
                like.setdefault(split, here)
    named = exact if exact.keys() & {"val", "test"} else like if len(like) > 1 and "train" in like else {}
    named = named or {name: places[name] for places in beside.values() for name in split_pairs(places)}
    if named:
        raise DataError(
            f"{base} has folders named for splits inside it ({some(sorted(named.values()))}), and all of them would be "
            f"used alike, test images too; {way_out}."
        )
    return [f"{base.name}/{exact['train']}/ is taken like every folder in {base.name}/."] if exact else []


def _up_to(base: Path, inside: Iterable[Path]) -> list[Path]:
    """Some folders in a folder, and those on the way to them, each once."""
    found: dict[Path, None] = {}
    for folder in inside:
        above = [folder, *folder.parents]
        found |= dict.fromkeys(above[: above.index(base)][::-1])
    return list(found)


def nfc(name: str) -> str:
    """A name in the composed form of Unicode (NFC), in which names are compared.

    File systems and programs write "é" as one character or as two; both are one name.
    """
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def is_utf8(name: str) -> bool:
    """Whether a name is text, and not bytes that Python could only carry along."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def some(names: Collection[str], count: int = 3) -> str:
    """The first names in quotes, and how many more there are."""
    shown = ", ".join(repr(name) for name in list(names)[:count])
    return shown if len(names) <= count else f"{shown} and {len(names) - count} more"
