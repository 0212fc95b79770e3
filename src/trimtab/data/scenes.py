"""Where images with masks come from: two folders of the same names, a CSV file, and the split of one set in two.

Nothing here opens an image; masks are opened where nothing else says which classes there are.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trimtab.data.built_in import built_in_set
from trimtab.data.folders import is_image, scan, walk
from trimtab.data.found import SPLIT_WORDS, some
from trimtab.data.mask_set import MaskSet, built_in_masks, with_masks
from trimtab.data.masks import VOID, Codes, codes_of_values, read_palette, read_raw
from trimtab.data.preprocess import why_unreadable
from trimtab.data.sources import TrainingData, stratified_split
from trimtab.errors import ConfigError, DataError
from trimtab.files import write_text

IMAGE_FOLDERS = ("images", "image", "imgs")
MASK_FOLDERS = ("masks", "mask", "annotations", "labels")
PALETTE = "palette.csv"
ADE20K = "objectInfo150.txt"
_LAYOUTS = (
    "a folder with images/ and masks/ (or annotations/) of the same names, perhaps each with train/, val/ and test/, "
    "or a .csv file with the columns path,mask[,split]"
)


@dataclass(frozen=True)
class _Pair:
    image: Path
    mask: Path
    name: str  # what a split draws by


def open_scenes(
    path: str | Path,
    *,
    val_fraction: float = 0.2,
    seed: int = 0,
    palette: str | None = None,
    ignore_label: int | None = None,
) -> TrainingData:
    """Reads the training and validation images of a data set with masks; its test images are not looked at.

    Args:
        path: A folder with ``images/`` and ``masks/``, a CSV file, or the name of a set with masks that comes with
            trimtab.
        val_fraction: The share to hold out where the data has no validation images.
        seed: Which images are held out.
        palette: A CSV file of classes (see `read_palette`). Without it: ``palette.csv`` in the folder, ADE20K's own
            list, or the values that occur in the training masks.
        ignore_label: A value of pixels that are neither learned nor measured, besides 255.

    Raises:
        ConfigError: An option cannot work.
        DataError: The data cannot be used, with the file or folder that is wrong.
    """
    if not 0 <= val_fraction < 1:
        raise ConfigError(f"val_fraction is {val_fraction}; as a share it must be at least 0 and below 1.")
    built_in = built_in_set(path)
    if built_in is not None:
        train, val = (built_in_masks(built_in, split) for split in ("train", "val"))
        note = f"{built_in.name} comes with trimtab; its test images are left for the evaluation."
        return TrainingData(train, val, "built-in", False, (note,))
    path = _existing(Path(path))
    splits = _pairs(path, {"train", "val", ""})
    pairs = splits.get("train") or splits.get("") or []
    if not pairs:
        raise DataError(f"{path} has no training images; give {_LAYOUTS}.")
    names, codes, notes = _classes(path, pairs, palette, ignore_label)
    if len(names) < 2:
        raise DataError(f"{path} has {len(names)} classes in its masks; a segmenter needs at least two.")
    if len(names) > VOID:
        raise DataError(f"{path} has {len(names)} classes; at most {VOID} are supported.")
    train = _mask_set("train", pairs, names, codes)
    if "train" in splits and "test" in named_scene_splits(path):
        notes.append("The test images are not read; they are for the final evaluation.")
    if splits.get("val"):
        val = _mask_set("val", splits["val"], names, codes)
        return TrainingData(train, val, "masks", False, tuple(notes))
    kept, drawn = stratified_split([pair.name for pair in pairs], [0] * len(pairs), val_fraction, seed)
    notes.append(
        f"The data names no validation images, so {len(drawn)} of the {len(pairs)} training images "
        f"({val_fraction:.0%}, seed {seed}) are held out for validation."
        if drawn
        else f"There are no validation images; all {len(pairs)} images are trained on."
    )
    return TrainingData(train.select(kept), train.select(drawn, "val"), "masks", bool(drawn), tuple(notes))


def open_scene_split(
    path: str | Path, split: str, classes: Sequence[str], codes: Codes, *, made: Path | None = None
) -> MaskSet:
    """Reads one split of a data set with masks, written as a model's training masks were.

    Args:
        path: As for `open_scenes`.
        split: ``"train"``, ``"val"``, ``"test"``, or ``"all"``.
        classes: The model's classes.
        codes: How its training masks were written.
        made: Where `write_scene_split` wrote a split of this data, if it did.

    Raises:
        ConfigError: ``split`` is none of these words.
        DataError: There is no such split, or it has no images.
    """
    wanted = "all" if split == "all" else SPLIT_WORDS.get(split.lower())
    if wanted is None:
        raise ConfigError(f"split is {split!r}; use 'train', 'val', 'test' or 'all'.")
    built_in = built_in_set(path)
    if built_in is not None:
        return dataclasses.replace(built_in_masks(built_in, wanted), classes=tuple(classes), codes=codes)
    path = _existing(Path(path))
    named = named_scene_splits(path)
    held_out = made is not None and made.is_file() and "val" not in named
    if made is not None and held_out and wanted in ("train", "val"):
        return _made_split(path, made, wanted, classes, codes)
    splits = _pairs(path, {*named, ""} if wanted == "all" else {wanted})
    pairs = [pair for part in splits.values() for pair in part] if wanted == "all" else splits.get(wanted, [])
    if not pairs:
        way = "measure on the held-out images with --split val, or " if held_out and wanted == "test" else ""
        raise DataError(f"{path} has no {wanted!r} split with images; {way}use the split 'all' for all of them.")
    return _mask_set(wanted, pairs, tuple(classes), codes)


def named_scene_splits(path: str | Path) -> set[str]:
    """The splits that a data set with masks itself names, of ``"train"``, ``"val"`` and ``"test"``.

    Raises:
        DataError: The data cannot be used.
    """
    built_in = built_in_set(path)
    if built_in is not None:
        return set(built_in.sizes)
    path = _existing(Path(path))
    if path.is_file():
        return {split for split, _, _ in _rows(path) if split}
    return set(_places(path)) - {""}


def write_scene_split(path: str | Path, data: TrainingData) -> None:
    """Writes which image is in which split as a CSV file that `open_scene_split` reads.

    Raises:
        TrainingError: The file cannot be written.
    """
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("path", "mask", "split"))
    for images in (data.train, data.val):
        # Only of files a split is made: what comes with trimtab has its own.
        masks = [m for m in images.masks if isinstance(m, Path)] if isinstance(images, MaskSet) else []
        files = images.files if isinstance(images, MaskSet) else ()
        writer.writerows((i.absolute(), m.absolute(), images.name) for i, m in zip(files, masks, strict=True))
    write_text(Path(path), buffer.getvalue())


def _made_split(path: Path, made: Path, wanted: str, classes: Sequence[str], codes: Codes) -> MaskSet:
    images = open_scene_split(made, wanted, classes, codes)
    there = {os.path.realpath(pair.image) for part in _pairs(path, {"train", ""}).values() for pair in part}
    for image in images.files:
        if os.path.realpath(image) not in there:
            raise DataError(
                f"{path} has no {wanted!r} split, and {made} was made of other images, such as {image}; give the "
                "data trained on, or use --split all for the whole of this."
            )
    return images


def _mask_set(name: str, pairs: Sequence[_Pair], classes: tuple[str, ...], codes: Codes) -> MaskSet:
    return MaskSet(
        name=name,
        paths=tuple(pair.image for pair in pairs),
        labels=(),
        classes=classes,
        masks=tuple(pair.mask for pair in pairs),
        codes=codes,
    )


# --- classes --------------------------------------------------------------------------------------


def _classes(
    path: Path, pairs: Sequence[_Pair], palette: str | None, ignore_label: int | None
) -> tuple[tuple[str, ...], Codes, list[str]]:
    """Names of classes, how masks are written, and notes on where that is from."""
    folder = path if path.is_dir() else path.parent
    file = Path(palette) if palette is not None else folder / PALETTE
    if palette is not None or file.is_file():
        if not file.is_file():
            raise DataError(f"There is no palette file {palette!r}; name a CSV with the columns name,value.")
        names, codes = read_palette(file)
        ignored = codes.ignored if codes.coloured else _with_void(codes.ignored, ignore_label)
        return names, dataclasses.replace(codes, ignored=tuple(v for v in ignored if v not in codes.values)), []
    ignored = _with_void((), ignore_label)
    if (folder / ADE20K).is_file():
        names = _ade20k_names(folder / ADE20K)
        codes = codes_of_values(range(1, len(names) + 1), _with_void((0,), ignore_label))
        return names, codes, [f"The {len(names)} classes are those of {ADE20K}; label 0 is ignored."]
    values = _values_in([pair.mask for pair in pairs])
    codes = codes_of_values(values, ignored)
    told = ", ".join(str(value) for value in sorted(set(values) & set(ignored))) or "none"
    note = f"The training masks have {len(codes.values)} classes by their values ({PALETTE} would name them); "
    return tuple(str(value) for value in codes.values), codes, [f"{note}ignored: {told}."]


def _with_void(ignored: Sequence[int], ignore_label: int | None) -> tuple[int, ...]:
    return tuple(dict.fromkeys((*ignored, *([] if ignore_label is None else [ignore_label]), VOID)))


def _values_in(masks: Sequence[Path]) -> list[int]:
    """All values that occur in index masks."""

    def values(mask: Path) -> set[int]:
        try:
            return set(np.unique(read_raw(mask, coloured=False)).tolist())
        except Exception as error:
            raise DataError(f"The mask {mask} cannot be read: {why_unreadable(error)}.") from error

    with ThreadPoolExecutor(2) as pool:
        return sorted(set().union(*pool.map(values, masks)))


def _ade20k_names(path: Path) -> tuple[str, ...]:
    """The classes of ADE20K's own list: a table with tabs, its last column the name, one of several by commas."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        names = tuple(line.split("\t")[-1].split(",")[0].strip() for line in lines[1:] if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}); copy it again, or give a {PALETTE}.") from error
    if len(names) != 150 or not all(names):
        raise DataError(f"{path} lists {len(names)} classes and not 150; copy it again, or give a {PALETTE}.")
    # Two of the 150 go by one first name; the number tells them apart.
    return tuple(name if names.count(name) == 1 else f"{name} {k}" for k, name in enumerate(names, start=1))


# --- layouts --------------------------------------------------------------------------------------


def _existing(path: Path) -> Path:
    if path.is_dir() or (path.is_file() and path.suffix.lower() == ".csv"):
        return path
    if path.exists():
        raise DataError(f"{path} is neither a folder nor a .csv file; give {_LAYOUTS}.")
    raise DataError(f"{path} does not exist; give {_LAYOUTS}, or one of {with_masks()}, which come with trimtab.")


def _pairs(path: Path, wanted: set[str]) -> dict[str, list[_Pair]]:
    """The images with their masks of each wanted split; ``""`` is what no split is named for."""
    if path.is_file():
        return _pairs_of_rows(path, wanted)
    places = _places(path)
    return {split: _paired(*places[split]) for split in places if split in wanted}


def _places(path: Path) -> dict[str, tuple[Path, Path]]:
    """By split, the folders of its images and of its masks."""
    folders = {folder.name.lower(): folder for folder in scan(path)[0]}
    images, masks = _one_of(folders, IMAGE_FOLDERS), _one_of(folders, MASK_FOLDERS)
    if images is not None and masks is not None:
        of_images, of_masks = _by_split(images), _by_split(masks)
        if not of_images:
            return {"": (images, masks)}
        for split, folder in of_images.items():
            if split not in of_masks:
                raise DataError(f"{folder} has no folder of masks beside it in {masks}; add {masks / folder.name}.")
        return {split: (folder, of_masks[split]) for split, folder in of_images.items()}
    places = {}
    for split, folder in _by_split(path).items():
        inner = {inside.name.lower(): inside for inside in scan(folder)[0]}
        pair = _one_of(inner, IMAGE_FOLDERS), _one_of(inner, MASK_FOLDERS)
        if pair[0] is not None and pair[1] is not None:
            places[split] = (pair[0], pair[1])
    if not places:
        raise DataError(f"{path} has no folders of images and masks ({some(sorted(folders))}); give {_LAYOUTS}.")
    return places


def _one_of(folders: dict[str, Path], names: Sequence[str]) -> Path | None:
    return next((folders[name] for name in names if name in folders), None)


def _by_split(path: Path) -> dict[str, Path]:
    splits: dict[str, Path] = {}
    for folder in scan(path)[0]:
        split = SPLIT_WORDS.get(folder.name.lower())
        if split in splits:
            raise DataError(f"{path} has both {splits[split].name!r} and {folder.name!r}, which mean the same split.")
        if split is not None:
            splits[split] = folder
    return splits


def _paired(images: Path, masks: Path) -> list[_Pair]:
    """Images and masks of the same names, whatever their extensions."""
    left, right = _by_stem(images, masks), _by_stem(masks, images)
    for here, there, what in ((left, right, "mask"), (right, left, "image")):
        lonely = sorted(here.keys() - there.keys())
        if lonely:
            folder = masks if what == "mask" else images
            raise DataError(
                f"{len(lonely)} files have no {what} of the same name in {folder}: "
                f"{some([str(here[stem]) for stem in lonely])}; add or remove them."
            )
    return [_Pair(left[stem], right[stem], stem) for stem in sorted(left)]


def _by_stem(folder: Path, other: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for file in walk(folder):
        if not is_image(file):
            continue
        stem = file.relative_to(folder).with_suffix("").as_posix()
        if stem in found:
            raise DataError(f"{found[stem]} and {file} have the same name, so {other} cannot have one for each.")
        found[stem] = file
    return found


def _pairs_of_rows(path: Path, wanted: set[str]) -> dict[str, list[_Pair]]:
    found: dict[str, list[_Pair]] = {}
    for number, (split, image, mask) in enumerate(_rows(path), start=2):
        if split not in wanted:
            continue
        for what, file in (("image", image), ("mask", mask)):
            if not file.is_file():
                raise DataError(f"{path}, row {number}: there is no {what} {file}; paths begin at the CSV's folder.")
        found.setdefault(split, []).append(_Pair(image, mask, image.as_posix()))
    return found


def _rows(path: Path) -> list[tuple[str, Path, Path]]:
    """Split (``""`` without that column), image and mask of each row."""
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.DictReader(file)
            header = [name.strip().lower() for name in reader.fieldnames or ()]
            lines = [dict(zip(header, line.values(), strict=False)) for line in reader]
    except (OSError, csv.Error, AttributeError) as error:
        raise DataError(f"{path} cannot be read as CSV ({error}); save it as CSV in UTF-8.") from error
    if not {"path", "mask"} <= set(header):
        raise DataError(f"{path} has the columns {header}; a CSV of images with masks needs path,mask[,split].")
    rows = []
    for number, line in enumerate(lines, start=2):
        image, mask, word = (str(line.get(name) or "").strip() for name in ("path", "mask", "split"))
        if not image or not mask:
            raise DataError(f"{path}, row {number}: the path or the mask is blank; fill it in or remove the row.")
        if word and word.lower() not in SPLIT_WORDS:
            raise DataError(f"{path}, row {number}: the split is {word!r}; use train, val or test.")
        rows.append((SPLIT_WORDS.get(word.lower(), ""), path.parent / image, path.parent / mask))
    return rows
