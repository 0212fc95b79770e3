"""What a tuned model says of images: evaluation on a labelled split, prediction on anything."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from trimtab import checkpoint
from trimtab.data import (
    BuiltInImage,
    Preprocess,
    SegmentationTransform,
    hidden_by,
    list_images,
    named_images,
    note_of_turns,
    search_images,
    unreadable,
)
from trimtab.errors import CheckpointError, ConfigError, DataError
from trimtab.inference.segment import MaskCounts, MaskPredictor, plan_masks, write_masks
from trimtab.model import TunedModel
from trimtab.progress import Progress
from trimtab.storage.files import check_file, refuse_inputs, write_text
from trimtab.tasks import Segmentation, Task
from trimtab.tasks.sliding import Views
from trimtab.training.guard import adapter_files
from trimtab.training.run_folder import SPLIT

_VIEWS_FOR = "Stride, scales and flip are for segmentation, and this adapter classifies; leave them out."


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What the model says of one image."""

    path: str | None
    """The file, or the name of a built-in image."""
    label: str | None
    """The most probable class; ``None`` if the image could not be read."""
    probability: float | None
    """Its probability."""
    probabilities: tuple[float, ...] | None
    """One a class, in the order of the labels."""
    error: str | None = None
    """Why the image could not be read."""


class PredictionCounts(NamedTuple):
    """What :func:`predict_to_csv` did."""

    done: int
    """Images predicted."""
    skipped: list[tuple[str, str]]
    """Images that could not be read, and why."""


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A tuned model with its labels and its preprocessing.

    Example:
        ::

            predictor = trimtab.load("runs/flowers")
            for prediction in predictor.predict(["a.jpg", "b.jpg"]):
                print(prediction.label, prediction.probability)
    """

    model: TunedModel
    labels: tuple[str, ...]
    preprocess: Preprocess

    def logits(self, images: Tensor) -> Tensor:
        """uint8 images (B, 3, height, width) at the model's size to logits (B, C)."""
        with torch.inference_mode():
            inputs = self.preprocess.normalise(images.to(self.model.backbone.device))
            logits: Tensor = self.model(inputs)
            return logits.float().cpu()

    def predict(
        self, images: Any, *, batch_size: int = 64, threads: int = 2, progress: Progress | None = None
    ) -> list[Prediction]:
        """Predict one image or many.

        Args:
            images: A path of an image or of a folder of images, the name of a built-in set, a PIL image, or a
                sequence of these.
                Unreadable images get a prediction with an ``error`` and no label; the rest are done.
            batch_size: Images a forward pass.
            threads: Threads that decode.
            progress: Who is told how far it is.

        Raises:
            ConfigError: If something else is given, or no number of images or threads.
            DataError: If a folder holds no images.
        """
        pictures = list(itertools.chain.from_iterable(map(_pictures, _each(images))))
        return list(self.iterate(pictures, batch_size=batch_size, threads=threads, progress=progress))

    def iterate(
        self,
        pictures: Sequence[Any],
        *,
        batch_size: int = 64,
        threads: int = 2,
        progress: Progress | None = None,
    ) -> Iterator[Prediction]:
        """As :meth:`predict`, one after another, holding no more than two batches in memory."""
        batches = [pictures[rows.start : rows.stop] for rows in batches_of(len(pictures), batch_size, threads)]
        with (
            ThreadPoolExecutor(threads) as pool,
            (progress or Progress()).stage("Predicting", len(pictures), "images") as advance,
        ):
            ahead = [pool.submit(self._read, picture) for picture in (batches[0] if batches else ())]
            for k, batch in enumerate(batches):
                read = [future.result() for future in ahead]
                ahead = [pool.submit(self._read, p) for p in (batches[k + 1] if k + 1 < len(batches) else ())]
                yield from self._batch(batch, read)
                advance(len(batch))

    def _read(self, picture: Any) -> Tensor | str:
        """The stored image, or why it cannot be read."""
        try:
            if not isinstance(picture, Image.Image):
                return self.preprocess.read(picture)
        except DataError as error:
            return str(error)
        # Pillow reads the file only now, and a damaged one can fail in any way.
        try:
            return self.preprocess.from_image(picture)
        except Exception as error:  # noqa: BLE001
            return unreadable("An image", error)

    def _batch(self, pictures: Sequence[Any], read: Sequence[Tensor | str]) -> Iterator[Prediction]:
        good = [image for image in read if isinstance(image, Tensor)]
        rows: Iterator[Tensor] = iter(())
        if good:
            rows = iter(self.logits(self.preprocess.finish(good)).softmax(-1))
        for picture, image in zip(pictures, read, strict=True):
            path = None if isinstance(picture, Image.Image) else str(picture)
            if isinstance(image, str):
                yield Prediction(path, None, None, None, image)
            else:
                probabilities = tuple(next(rows).tolist())
                best = max(range(len(probabilities)), key=probabilities.__getitem__)
                yield Prediction(path, self.labels[best], probabilities[best], probabilities)


def _each(images: Any) -> list[Any]:
    return list(images) if isinstance(images, Iterable) and not isinstance(images, (str, bytes)) else [images]


def _pictures(picture: Any) -> Sequence[Any]:
    """One image, or those of a folder or of a built-in set."""
    if isinstance(picture, (Image.Image, BuiltInImage)):
        return [picture]
    if not isinstance(picture, (str, os.PathLike)):
        raise ConfigError(
            f"An image is given as {type(picture).__name__}; give a path, a PIL image (Image.fromarray makes one of "
            "an array), or a sequence of these."
        )
    if os.fspath(picture) and Path(picture).is_dir():
        return list_images([Path(picture)])
    return named_images(os.fspath(picture)) or [picture]


def batches_of(count: int, batch_size: int, threads: int) -> list[range]:
    """The positions of every batch.

    Raises:
        ConfigError: If these are no numbers of images and threads.
    """
    if batch_size < 1 or threads < 1:
        raise ConfigError(f"batch_size is {batch_size} and threads is {threads}; use at least 1 of each.")
    return [range(first, min(first + batch_size, count)) for first in range(0, count, batch_size)]


def load(
    directory: str | Path,
    *,
    weights: str | Path | None = None,
    device: str = "auto",
    views: Views | None = None,
) -> Predictor | MaskPredictor:
    """Load an adapter folder onto the backbone it was trained on, folded for inference.

    Args:
        directory: What ``fit`` wrote.
        weights: Where the backbone's weights lie now, a file or a folder of timm's; by default where they were in
            training, or what belongs to the backbone's name.
        device: ``"auto"`` (a GPU where there is one), or a torch device.
        views: How a segmenter looks at an image: by default once, by windows where it is larger than one.

    Raises:
        CheckpointError: If the folder is broken or the backbone is another one.
        BackboneError: If the backbone cannot be had.
        ConfigError: If there are views and it is no segmenter.
    """
    return _opened(directory, weights, device, views)[0]


def _opened(
    directory: str | Path, weights: str | Path | None, device: str, views: Views | None
) -> tuple[Predictor | MaskPredictor, Task]:
    """What predicts, and the task that it does."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    saved = checkpoint.read(directory)
    task, preprocess = saved.task, saved.preprocess
    if views is not None and not isinstance(task, Segmentation):
        raise ConfigError(_VIEWS_FOR)
    model = checkpoint.restore(saved, weights=weights, device=device).fold()
    if isinstance(preprocess, SegmentationTransform):
        if not isinstance(task, Segmentation) or task.codes is None:
            raise CheckpointError(f"The adapter in {str(directory)!r} does not say how its masks are written.")
        return MaskPredictor(model, saved.labels, preprocess, task.codes, views or Views()), task
    return Predictor(model, saved.labels, preprocess), task


def evaluate(
    directory: str | Path,
    data: str | Path,
    *,
    split: str = "test",
    weights: str | Path | None = None,
    batch_size: int = 64,
    threads: int = 2,
    device: str = "auto",
    views: Views | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure an adapter on labelled images.

    Where ``data`` names no validation images, the splits ``"train"`` and ``"val"`` are those that training made.

    Returns:
        ``accuracy`` (top-1), ``mean_class_accuracy``, ``loss``, ``calibration_error``, ``images``, ``classes``
        (how many of the model's classes occur), ``split`` and ``seconds``. Of a segmenter: ``miou``,
        ``pixel_accuracy``, ``mean_class_accuracy`` and ``loss`` over all pixels of the set that have a class, ``iou``
        by class (None where it is neither there nor predicted), ``per_image`` (path, ``miou`` and ``pixel_accuracy``
        of each image), ``images``, ``classes``, ``split`` and ``seconds``. Where images were found that cannot be
        decoded here, ``left_out`` counts them.

    Raises:
        TrimtabError: If the adapter, the backbone or the data cannot be used.
    """
    started = time.monotonic()
    predictor, task = _opened(directory, weights, device, views)
    progress = progress or Progress()
    if hidden := hidden_by(data):
        progress.say(hidden)
    images = task.open_split(data, split, predictor.labels, made=Path(directory) / SPLIT)
    for note in images.notes:
        progress.say(note)
    store = task.store(images, predictor.preprocess, cache_bytes=0, threads=threads, whole=True)
    plan = batches_of(len(images), min(batch_size, task.eval_batch), threads)
    metric = task.make_metrics(predictor.labels)
    with progress.stage("Evaluating", len(images), "images") as advance:
        for pixels, labels in store.batches(plan):
            metric.update(predictor.logits(pixels), labels)
            advance(labels.shape[0])
    if turned := note_of_turns(store):
        progress.say(turned)
    return {
        **task.summary(images, predictor.labels, metric),
        **({"left_out": images.left_out} if images.left_out else {}),
        "split": split,
        "seconds": round(time.monotonic() - started, 1),
    }


def split_to_measure(directory: str | Path, data: str | Path) -> str:
    """The split of the training data on which an adapter is best measured: the test images where there are any.

    Raises:
        DataError: If the data cannot be used.
    """
    named = checkpoint.task_of(directory).named_splits(data)
    if "test" in named:
        return "test"
    return "val" if "val" in named or (Path(directory) / SPLIT).is_file() else "all"


def predict_to_csv(
    directory: str | Path,
    patterns: Sequence[str],
    *,
    out: str | Path,
    weights: str | Path | None = None,
    batch_size: int = 64,
    threads: int = 2,
    device: str = "auto",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> PredictionCounts:
    """Predict files, folders and globs into a CSV: path, label, probability, error, one column a class.

    What matches no image has a row with an error, as an unreadable image has. A link is followed; a pipe or
    ``/dev/stdout`` is written to.

    Raises:
        TrimtabError: If nothing matches, nothing can be read, or ``out`` exists and is not to be replaced, or is one of
            the files that are read.
    """
    out = Path(out)
    check_file(out, "CSV file", overwrite=overwrite)
    found = search_images(patterns)
    paths, unmatched = found.images, found.unmatched
    if not paths:
        raise DataError(next(iter(unmatched.values()), "No images are named; give some."))
    files = (path for path in paths if isinstance(path, Path))
    refuse_inputs([out], itertools.chain(files, adapter_files(directory, weights)))
    for note in found.notes:
        (progress or Progress()).say(note)
    predictor = load(directory, weights=weights, device=device)
    if not isinstance(predictor, Predictor):
        raise ConfigError("A segmenter's predictions are masks and not rows of a CSV; see predict_to_folder.")
    predictions = predictor.iterate(paths, batch_size=batch_size, threads=threads, progress=progress)
    missing = (Prediction(pattern, None, None, None, reason) for pattern, reason in unmatched.items())
    text, counts = _csv(predictor.labels, itertools.chain(predictions, missing))
    if not counts.done:
        raise DataError(
            f"None of the {len(paths) + len(unmatched)} images could be read; the first: {counts.skipped[0][1]}"
        )
    write_text(out, text)
    return counts


def predict_to(
    directory: str | Path,
    patterns: Sequence[str],
    *,
    out: str | Path,
    batch_size: int = 64,
    views: Views | None = None,
    **options: Any,
) -> PredictionCounts | MaskCounts:
    """Predict files, folders and globs as the adapter's task has it.

    A classifier's predictions go into a CSV (:func:`predict_to_csv`, whose arguments these are), a segmenter's into a
    folder of masks (:func:`~trimtab.inference.segment.predict_to_folder`).

    Raises:
        TrimtabError: If nothing matches, nothing can be read, ``out`` is in use, or there are views and no segmenter.
    """
    if checkpoint.read_config(Path(directory)).get("task") != Segmentation.name:
        if views is not None:
            raise ConfigError(_VIEWS_FOR)
        return predict_to_csv(directory, patterns, out=out, batch_size=batch_size, **options)
    running = {name: options.pop(name) for name in ("weights", "device") if name in options}
    plan = plan_masks(
        patterns,
        out,
        overwrite=options.pop("overwrite", False),
        inputs=adapter_files(directory, running.get("weights")),
    )
    predictor = load(directory, views=views, **running)
    if not isinstance(predictor, MaskPredictor):
        raise CheckpointError(f"The adapter in {str(directory)!r} has no masks to give; it was changed.")
    return write_masks(predictor, plan, **options)


def _csv(labels: Sequence[str], predictions: Iterable[Prediction]) -> tuple[str, PredictionCounts]:
    buffer, skipped, done = io.StringIO(newline=""), [], 0
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["path", "label", "probability", "error", *(f"probability of {label}" for label in labels)])
    for prediction in predictions:
        if prediction.error is not None or prediction.probabilities is None:
            skipped.append((str(prediction.path), str(prediction.error)))
            writer.writerow([prediction.path, "", "", prediction.error, *("" for _ in labels)])
            continue
        done += 1
        shares = [f"{value:.6f}" for value in prediction.probabilities]
        writer.writerow([prediction.path, prediction.label, f"{prediction.probability:.6f}", "", *shares])
    return buffer.getvalue(), PredictionCounts(done, skipped)
