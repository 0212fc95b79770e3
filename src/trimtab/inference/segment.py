"""What a tuned segmenter says of images: a class for every pixel, as masks and as pictures."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import ExifTags, Image
from torch import Tensor

from trimtab.data import Codes, ImageSource, SegmentationTransform, find_images, search_images, unreadable
from trimtab.errors import CheckpointError, ConfigError, DataError
from trimtab.model import TunedModel
from trimtab.progress import Progress
from trimtab.storage.files import check_folder, make_folder, refuse_inputs, write_bytes, write_text
from trimtab.tasks.sliding import Views, enlarged, look

_LIST = "predictions.csv"
_LONGEST = 230
"""Bytes of a file's name without endings and a number; most file systems take 255 with them."""
_OPACITY = 0.5
_UPRIGHT = Image.Exif()
_UPRIGHT[ExifTags.Base.Orientation] = 1
"""Says of a predicted mask that it lies on the upright image, should it be trained on with a photo that is turned."""

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class MaskPrediction:
    """What the model says of the pixels of one image."""

    path: str | None
    """The file, if it was one."""
    mask: Array | None
    """(height, width) uint8 positions in the labels, at the image's own size; ``None`` if it could not be read."""
    overlay: Image.Image | None
    """The image with its classes laid over it in their colours."""
    error: str | None = None
    """Why the image could not be read."""


@dataclasses.dataclass(frozen=True)
class MaskPredictor:
    """A tuned segmenter with its labels and its preprocessing.

    Example:
        ::

            predictor = trimtab.load("runs/streets")
            for prediction in predictor.predict(["a.jpg", "b.jpg"]):
                print(prediction.path, [predictor.labels[k] for k in numpy.unique(prediction.mask)])
    """

    model: TunedModel
    labels: tuple[str, ...]
    preprocess: SegmentationTransform
    codes: Codes
    views: Views = dataclasses.field(default_factory=Views)

    def logits(self, images: Tensor) -> Tensor:
        """uint8 images (B, 3, H, W) at the size at which they are looked at to logits (B, C, H, W)."""
        backbone = self.model.backbone
        with torch.inference_mode():
            inputs = self.preprocess.normalise(images.to(backbone.device))
            return look(self.model, inputs, backbone.image_size, self.views).float().cpu()

    def predict(self, images: Any, *, threads: int = 2, progress: Progress | None = None) -> list[MaskPrediction]:
        """Predict one image or many; unreadable ones get a prediction with an ``error``.

        Args:
            images: A path of an image or of a folder of images, a PIL image, or a sequence of them.
            threads: Threads that decode.
            progress: Who is told how far it is.

        Raises:
            ConfigError: If something else is given.
            DataError: If a folder holds no images.
        """
        several = not isinstance(images, (str, bytes, os.PathLike, Image.Image))
        pictures: list[Any] = []
        for picture in images if several else [images]:
            if isinstance(picture, Image.Image):
                pictures.append(picture)
            elif isinstance(picture, (str, os.PathLike)):
                found, unmatched = find_images([str(picture)]) if Path(picture).is_dir() else ([Path(picture)], {})
                if unmatched:
                    raise DataError(next(iter(unmatched.values())))
                pictures += found
            else:
                raise ConfigError(f"An image is given as {type(picture).__name__}; give a path or a PIL image.")
        return list(self.iterate(pictures, threads=threads, progress=progress))

    def iterate(
        self, pictures: Sequence[Any], *, threads: int = 2, progress: Progress | None = None
    ) -> Iterator[MaskPrediction]:
        """As :meth:`predict` for images, one after another; those that come next are decoded meanwhile."""
        with (
            ThreadPoolExecutor(threads) as pool,
            (progress or Progress()).stage("Predicting", len(pictures), "images") as advance,
        ):
            waiting = [pool.submit(self._read, picture) for picture in pictures[:threads]]
            for k, picture in enumerate(pictures):
                read = waiting.pop(0).result()
                waiting += [pool.submit(self._read, following) for following in pictures[k + threads : k + threads + 1]]
                path = None if isinstance(picture, Image.Image) else str(picture)
                yield MaskPrediction(path, None, None, read) if isinstance(read, str) else self._predicted(path, read)
                advance(1)

    def _read(self, picture: Any) -> Tensor | str:
        """The image's pixels, or why it cannot be read."""
        try:
            if not isinstance(picture, Image.Image):
                return self.preprocess.read(picture)
        except DataError as error:
            return str(error)
        try:
            return self.preprocess.from_image(picture)
        except Exception as error:  # noqa: BLE001 - a damaged file can fail in any way
            return unreadable("An image", error)

    def _predicted(self, path: str | None, pixels: Tensor) -> MaskPrediction:
        logits = enlarged(self.logits(self.preprocess.whole(pixels)[None]), pixels.shape[-2:])
        mask = logits.argmax(1)[0].to(torch.uint8).numpy()
        return MaskPrediction(path, mask, overlay(pixels.numpy().transpose(1, 2, 0), mask, self.codes))

    def picture(self, mask: Array) -> Image.Image:
        """Positions of classes as an image of the values that the training masks had, with colours to be shown in.

        Where those were colours, or beyond 255, the values are positions in the labels.
        """
        values = self.codes.values
        if self.codes.coloured or max(values) > 255:
            values = tuple(range(len(values)))
        # Written to have eight bits, an image of one mode may have a palette.
        indexed = Image.fromarray(np.array(values, dtype=np.uint8)[mask]).convert("L")
        colours = np.zeros((256, 3), dtype=np.uint8)
        colours[list(values)] = self.codes.palette
        picture = Image.frombytes("P", indexed.size, indexed.tobytes())
        picture.putpalette(colours.tobytes())
        return picture


def overlay(pixels: Array, mask: Array, codes: Codes) -> Image.Image:
    """An image (h, w, 3) uint8 with the classes (h, w) of its pixels laid over it in their colours."""
    colours = np.array(codes.palette, dtype=np.float32)[mask]
    mixed = (1 - _OPACITY) * pixels.astype(np.float32) + _OPACITY * colours
    return Image.fromarray(mixed.round().astype(np.uint8))


@dataclasses.dataclass(frozen=True)
class MaskCounts:
    """What :func:`predict_to_folder` did."""

    done: int
    """Images predicted."""
    skipped: list[tuple[str, str]]
    """Images that could not be read, and why."""


def predict_to_folder(
    predictor: MaskPredictor,
    patterns: Sequence[str],
    *,
    out: str | Path,
    threads: int = 2,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> MaskCounts:
    """Predict files, folders and globs into a folder.

    For each image ``NAME.png`` (the values of the training masks) and ``NAME.overlay.png``; ``predictions.csv`` lists
    them, and what could not be read. Names are those of the images from their common folder on
    (:func:`names_of`).

    Raises:
        TrimtabError: If nothing matches, nothing can be read, there is something in ``out`` already, or a mask would
            be written over an image.
    """
    plan = plan_masks(patterns, out, overwrite=overwrite)
    return write_masks(predictor, plan, threads=threads, progress=progress)


@dataclasses.dataclass(frozen=True)
class MaskPlan:
    """Which images are to be predicted, and where each goes."""

    out: Path
    """The folder."""
    paths: list[ImageSource]
    names: list[str]
    """For each image the name of its files in the folder, without their endings; no two share a file."""
    unmatched: dict[str, str]
    """What was named and stands for no image, and why."""
    notes: list[str]
    """What to say of the files that were found."""


def plan_masks(
    patterns: Sequence[str], out: str | Path, *, overwrite: bool, inputs: Iterable[str | Path] = ()
) -> MaskPlan:
    """Find the images to predict and check that their masks can be written, before any is.

    Args:
        patterns: Files, folders and globs.
        out: The folder to write.
        overwrite: Whether what is in it already may be replaced.
        inputs: Files besides the images that must not be written over.

    Raises:
        TrimtabError: If nothing matches, ``out`` is in use, or a mask would be written over an input.
    """
    out = Path(out)
    check_folder(out, "a folder for the masks")
    in_use = out.is_dir() and any(out.iterdir())
    if in_use and not overwrite:
        raise CheckpointError(
            f"There is something in {str(out)!r}; write among it with --overwrite, or name another folder."
        )
    found = search_images(patterns)
    paths, unmatched = found.images, found.unmatched
    if not paths:
        raise DataError(next(iter(unmatched.values()), "No images are named; give some."))
    # Through a link that leads nowhere yet, the folder could not be made.
    plan = MaskPlan(Path(os.path.realpath(out)), paths, names_of([str(path) for path in paths]), unmatched, found.notes)
    if in_use:
        _check_outputs(out, plan.names)
        files = (path for path in paths if isinstance(path, Path))
        refuse_inputs(_outputs(out, plan.names), chain(files, inputs))
    return plan


def write_masks(
    predictor: MaskPredictor, plan: MaskPlan, *, threads: int = 2, progress: Progress | None = None
) -> MaskCounts:
    """Predict the images of a plan, and write the masks, the overlays and the list.

    Raises:
        TrimtabError: If nothing can be read, or the folder cannot be written.
    """
    for note in plan.notes:
        (progress or Progress()).say(note)
    rows, skipped = [], []
    predictions = predictor.iterate(plan.paths, threads=threads, progress=progress)
    for name, prediction in zip(plan.names, predictions, strict=True):
        if prediction.mask is None or prediction.overlay is None:
            skipped.append((str(prediction.path), str(prediction.error)))
            rows.append([prediction.path, "", "", prediction.error])
            continue
        mask, over = _files(name)
        make_folder((plan.out / mask).parent)
        write_bytes(plan.out / mask, _png(predictor.picture(prediction.mask), exif=_UPRIGHT))
        write_bytes(plan.out / over, _png(prediction.overlay))
        rows.append([prediction.path, mask, over, ""])
    for pattern, reason in plan.unmatched.items():
        skipped.append((pattern, reason))
        rows.append([pattern, "", "", reason])
    if len(skipped) == len(rows):
        raise DataError(f"None of the {len(rows)} images could be read; the first: {skipped[0][1]}")
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerows([["path", "mask", "overlay", "error"], *rows])
    write_text(plan.out / _LIST, buffer.getvalue())
    return MaskCounts(len(rows) - len(skipped), skipped)


def _files(name: str) -> tuple[str, str]:
    """Mask and overlay of an image."""
    return f"{name}.png", f"{name}.overlay.png"


def _outputs(out: Path, names: Iterable[str]) -> Iterator[Path]:
    yield out / _LIST
    yield from (out / file for name in names for file in _files(name))


def _check_outputs(out: Path, names: Iterable[str]) -> None:
    """Make sure that no folder stands where a file is to be written, and no file where a folder is needed."""
    checked: set[Path] = set()
    for output in _outputs(out, names):
        if output.is_dir():
            raise CheckpointError(f"{str(output)!r} is a folder and a file is to be written there; name another --out.")
        if output.parent not in checked:
            check_folder(output.parent, "another --out: a folder is needed there")
            checked.add(output.parent)


def names_of(paths: Sequence[str]) -> list[str]:
    """Name each file by its path from the files' common folder on, without its extension.

    Where two would have one name, both keep their extensions; what still shares a file, or has one where another needs
    a folder, gets a number.

    Args:
        paths: The files, absolute or from the working folder.

    Returns:
        Relative paths without ``..``, in the order of the files.
    """
    whole = [os.path.abspath(path) for path in paths]  # noqa: PTH100 - without `..`
    common = os.path.commonpath([os.path.dirname(path) for path in whole])  # noqa: PTH120
    full = [os.path.relpath(path, common).replace(os.sep, "/") for path in whole]
    stems = [_without_extension(name) for name in full]
    there = Counter(stems)
    wanted = [stem if there[stem] == 1 else name for stem, name in zip(stems, full, strict=True)]
    return _Names().give([_shortened(name) for name in wanted])


class _Names:
    """Gives names that share no file."""

    def __init__(self) -> None:
        self.files = {_LIST}
        self.folders: set[str] = set()
        self.counts: Counter[str] = Counter()

    def give(self, wanted: Sequence[str]) -> list[str]:
        """Names for files, those wanted wherever they are free."""
        wanted = self._beside_the_list(wanted)
        self.folders = _folders(wanted)
        # Only when all that can have their own name have it, others get a number.
        given = [name if self._take(name) else None for name in wanted]
        return [self._numbered(name) if own is None else own for name, own in zip(wanted, given, strict=True)]

    def _take(self, name: str) -> bool:
        files = _files(name)
        if any(file in self.files or file in self.folders for file in files):
            return False
        self.files.update(files)
        return True

    def _numbered(self, name: str) -> str:
        while True:
            self.counts[name] += 1
            candidate = f"{name}-{self.counts[name] + 1}"
            if self._take(candidate):
                return candidate

    @staticmethod
    def _beside_the_list(wanted: Sequence[str]) -> list[str]:
        """The same names, but none in a folder that has the name of the list."""
        firsts = {name.partition("/")[0] for name in wanted}
        other = next(name for k in itertools.count(2) if (name := f"{_LIST}-{k}") not in firsts)
        start = f"{_LIST}/"
        return [other + name[len(_LIST) :] if name.startswith(start) else name for name in wanted]


def _without_extension(name: str) -> str:
    folder, slash, last = name.rpartition("/")
    return folder + slash + PurePath(last).stem


def _folders(names: Iterable[str]) -> set[str]:
    """All folders that files of these names are in."""
    found = {""}
    for name in names:
        folder = name.rpartition("/")[0]
        while folder not in found:
            found.add(folder)
            folder = folder.rpartition("/")[0]
    return found


def _shortened(name: str) -> str:
    """A name whose files' names, with a number, are no longer than file systems take."""
    folder, slash, last = name.rpartition("/")
    while len(os.fsencode(last)) > _LONGEST:
        last = last[:-1]
    return folder + slash + last


def _png(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", **options)
    return buffer.getvalue()
