"""What a tuned segmenter says of images: a class for every pixel, as masks and as pictures."""

from __future__ import annotations

import csv
import dataclasses
import io
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from trimtab.data import Codes, MaskPreprocess, find_images, search_images, unreadable
from trimtab.errors import CheckpointError, ConfigError, DataError
from trimtab.files import write_bytes, write_text
from trimtab.model import TunedModel
from trimtab.progress import Progress
from trimtab.sliding import Views, enlarged, look

_LIST = "predictions.csv"
_OPACITY = 0.5

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
    preprocess: MaskPreprocess
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
    them, and what could not be read. Names are those of the images from their common folder on.

    Raises:
        TrimtabError: If nothing matches, nothing can be read, or there is something in ``out`` already.
    """
    out = check_folder(out, overwrite=overwrite)
    found = search_images(patterns)
    paths, unmatched = found.images, found.unmatched
    if not paths:
        raise DataError(next(iter(unmatched.values()), "No images are named; give some."))
    for note in found.notes:
        (progress or Progress()).say(note)
    names = _names([Path(str(path)) for path in paths])
    rows, skipped = [], []
    for name, prediction in zip(names, predictor.iterate(paths, threads=threads, progress=progress), strict=True):
        if prediction.mask is None or prediction.overlay is None:
            skipped.append((str(prediction.path), str(prediction.error)))
            rows.append([prediction.path, "", "", prediction.error])
            continue
        mask, over = f"{name}.png", f"{name}.overlay.png"
        (out / mask).parent.mkdir(parents=True, exist_ok=True)
        write_bytes(out / mask, _png(predictor.picture(prediction.mask)))
        write_bytes(out / over, _png(prediction.overlay))
        rows.append([prediction.path, mask, over, ""])
    for pattern, reason in unmatched.items():
        skipped.append((pattern, reason))
        rows.append([pattern, "", "", reason])
    if len(skipped) == len(rows):
        raise DataError(f"None of the {len(rows)} images could be read; the first: {skipped[0][1]}")
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerows([["path", "mask", "overlay", "error"], *rows])
    write_text(out / _LIST, buffer.getvalue())
    return MaskCounts(len(rows) - len(skipped), skipped)


def check_folder(out: str | Path, *, overwrite: bool) -> Path:
    """A folder that masks may be written into.

    Raises:
        CheckpointError: If it is a file, or holds something and nothing is to be replaced.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise CheckpointError(f"{str(out)!r} is a file; name a folder for the masks.")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise CheckpointError(
            f"There is something in {str(out)!r}; write among it with --overwrite, or name another folder."
        )
    return out


def _names(paths: Sequence[Path]) -> list[str]:
    """A name for each file, from their common folder on; with its extension where another would have the same."""
    whole = [path.absolute() for path in paths]
    common = Path(os.path.commonpath([path.parent for path in whole]))
    stems = [path.relative_to(common).with_suffix("").as_posix() for path in whole]
    there = Counter(stems)
    return [
        stem if there[stem] == 1 else path.relative_to(common).as_posix()
        for stem, path in zip(stems, whole, strict=True)
    ]


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
