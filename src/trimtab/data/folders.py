"""Folders of images: class folders, alone or in train/, val/ and test/, and lists of images."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from trimtab.data.built_in import named_images
from trimtab.data.found import LAYOUTS, SPLIT_WORDS, Found, Reading, some
from trimtab.data.images import BuiltInImage, ImageSource
from trimtab.errors import DataError

_SUFFIXES = frozenset(
    (
        ".jpg",
        ".jpeg",
        ".jfif",
        ".png",
        ".bmp",
        ".gif",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".tif",
        ".tiff",
        ".webp",
    )
)


def list_images(patterns: Sequence[str | Path]) -> list[ImageSource]:
    """The images that files, folders, glob patterns and names of built-in data stand for, sorted and each once.

    Folders are searched with all folders inside them. A file named as such is taken whatever its
    extension; from folders and globs only files with an image's extension are. Of built-in data
    (``digits``) the test images are taken; ``digits/val`` and ``digits/val/0007`` name others.

    Raises:
        DataError: A pattern stands for no image.
    """
    images, unmatched = find_images(patterns)
    for reason in unmatched.values():
        raise DataError(reason)
    return images


def find_images(patterns: Sequence[str | Path]) -> tuple[list[ImageSource], dict[str, str]]:
    """As `list_images`, and the patterns that stand for no image, each with a sentence that says so."""
    chosen: dict[Path, Path] = {}
    built_in: dict[BuiltInImage, None] = {}
    unmatched: dict[str, str] = {}
    for pattern in patterns:
        images, named = _matches(str(pattern)), named_images(str(pattern))
        if not images and not named:
            unmatched[str(pattern)] = (
                f"{str(pattern)!r} matches no image; give image files, folders that hold some, "
                "or glob patterns such as 'photos/**/*.jpg'."
            )
        for image in images:
            chosen.setdefault(image.absolute(), image)
        built_in |= dict.fromkeys(named)
    return [*sorted(chosen.values()), *built_in], unmatched


def training_folders(path: Path) -> Reading:
    """The training and validation images of a folder; a test folder is not looked into."""
    splits, others = _split_folders(path)
    notes: list[str] = []
    if not splits:
        return Reading("folder", _class_folders(path, notes, allow_empty=False), [], notes)
    if "train" not in splits:
        named = next(iter(splits.values())).name
        raise DataError(
            f"{path} has a folder {named!r} but no 'train'; put the training images in train/, "
            f"or rename {named!r} if it is a class."
        )
    train = _class_folders(splits["train"], notes, allow_empty=False)
    val = _class_folders(splits["val"], notes, allow_empty=True) if "val" in splits else []
    if "val" in splits and not val:
        raise DataError(f"{splits['val']} has no images; add some, or remove it to have some of train/ held out.")
    if "test" in splits:
        notes.append(f"{splits['test'].name}/ is not read; it is for the final evaluation.")
    if others:
        notes.append(f"Ignored beside {splits['train'].name}/: {some(others)}.")
    return Reading("split folders", train, val, notes)


def folder_splits(path: Path) -> set[str]:
    """The splits that a folder has folders for."""
    return set(_split_folders(path)[0])


def split_folder(path: Path, wanted: str) -> list[Found]:
    """The images of one split of a folder, or of all its splits or class folders."""
    splits, _ = _split_folders(path)
    if wanted == "all":
        folders = list(splits.values()) or [path]
    elif wanted in splits:
        folders = [splits[wanted]]
    elif splits:
        there = ", ".join(repr(split) for split in splits)
        raise DataError(
            f"{path} has no {wanted!r} split, only {there}; choose one of these, or give the .csv file "
            "of the split that training made."
        )
    else:
        raise DataError(
            f"{path} has no {wanted!r} split, for it is one folder of class folders; use the split 'all', "
            "or give the .csv file of the split that training made."
        )
    return [image for folder in folders for image in _class_folders(folder, [], allow_empty=True)]


def _split_folders(path: Path) -> tuple[dict[str, Path], list[str]]:
    """The folders that stand for splits, by split, and the names of the other folders."""
    folders, _ = scan(path)
    splits: dict[str, Path] = {}
    others = []
    for folder in folders:
        split = SPLIT_WORDS.get(folder.name.lower())
        if split is None:
            others.append(folder.name)
        elif split in splits:
            raise DataError(
                f"{path} has both {splits[split].name!r} and {folder.name!r}, which mean the same split; "
                "keep one of them."
            )
        else:
            splits[split] = folder
    return splits, others


def _class_folders(path: Path, notes: list[str], *, allow_empty: bool) -> list[Found]:
    """The images in the class folders of ``path``; what is left out is added to ``notes``."""
    folders, loose = scan(path)
    if not folders:
        rename = f", or rename {path.name!r} if it is a class itself" if path.name.lower() in SPLIT_WORDS else ""
        raise DataError(f"{path} has no class folders; put the images of each class into a folder of its own{rename}.")
    found: list[Found] = []
    beside = [file for file in loose if is_image(file)]
    other = [file for file in loose if not is_image(file)]
    empty = []
    for folder in folders:
        files = walk(folder)
        images = [file for file in files if is_image(file)]
        if not images:
            empty.append(folder.name)
        other += [file for file in files if not is_image(file)]
        where = f"{path.name}/{folder.name}"
        found += [Found(image, folder.name, image.relative_to(path).as_posix(), where) for image in images]
    if not found and not allow_empty:
        raise DataError(f"{path} has no images in its class folders ({some(empty)}); give {LAYOUTS}.")
    if empty and not allow_empty:
        raise DataError(f"{path} has class folders without images: {some(empty)}; fill or remove them.")
    for left_out, why in ((beside, "beside the class folders"), (other, "not images")):
        if left_out:
            shown = some([file.name for file in left_out])
            notes.append(f"Ignored in {path.name}/: {len(left_out)} {why} ({shown}).")
    return found


def scan(folder: Path) -> tuple[list[Path], list[Path]]:
    """The folders and the files directly in ``folder``, each sorted, without hidden ones."""
    try:
        with os.scandir(folder) as entries:
            visible = sorted((entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder} cannot be read ({error.strerror}); check its permissions.") from error
    folders = [folder / name for name, is_folder in visible if is_folder]
    return folders, [folder / name for name, is_folder in visible if not is_folder]


def walk(folder: Path, above: tuple[Path, ...] = ()) -> list[Path]:
    """All files in ``folder`` and the folders inside it, sorted within each folder."""
    real = folder.resolve()
    if real in above:  # a link that leads back up
        return []
    folders, files = scan(folder)
    return files + [file for inner in folders for file in walk(inner, (*above, real))]


def _matches(pattern: str) -> list[Path]:
    path = Path(pattern)
    if not pattern:  # a variable of a shell that is not set; Path takes it for this folder
        return []
    if path.is_dir():
        return [file for file in walk(path) if is_image(file)]
    if path.exists():
        return [path]
    # Path.glob takes no absolute pattern.
    matched = [Path(match) for match in glob.glob(pattern, recursive=True)]  # noqa: PTH207
    files = [file for match in matched for file in (walk(match) if match.is_dir() else [match])]
    return [file for file in files if is_image(file)]


def is_image(path: Path) -> bool:
    """Whether a file's extension is an image's."""
    return path.suffix.lower() in _SUFFIXES
