"""What a run's model says of labelled images."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from trimtab import checkpoint
from trimtab.checkpoint import RUN
from trimtab.data import ImageSet, ImageStore, Preprocess, open_split
from trimtab.errors import ConfigError, DataError
from trimtab.evaluate import Predictor, logits_of
from trimtab.model import TunedModel
from trimtab.progress import Progress
from trimtab.report.attention import Attention, look
from trimtab.report.runs import Run
from trimtab.run_folder import SPLIT
from trimtab.tasks import classification_metrics

_AT_ONCE = 8
"""Images looked at together: enough for speed, and few enough for wide backbones."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """Which images are to be looked at, and how."""

    data: str | Path | None = None
    split: str = "val"
    weights: str | Path | None = None
    batch_size: int = 64
    threads: int = 2
    device: str = "auto"


@dataclasses.dataclass(frozen=True)
class Picture:
    """One image with what is known of it."""

    pixels: Tensor
    """(3, height, width) uint8, as the model sees it before normalisation."""
    name: str
    target: str
    said: str
    probability: float
    """What the model gives to the class it says."""


@dataclasses.dataclass(frozen=True)
class Findings:
    """What one model says of one set of images."""

    source: str
    """Where the images came from."""
    split: str
    labels: tuple[str, ...]
    metrics: dict[str, float]
    confusion: Tensor
    """(C, C) counts: row the class, column what was said."""
    mistakes: tuple[Picture, ...]
    """Wrong ones, the surest first."""
    examples: tuple[Picture, ...]
    """The first image of some classes."""
    attention: Attention
    """Of the examples."""

    @property
    def images(self) -> int:
        """How many were looked at."""
        return int(self.confusion.sum())

    @property
    def wrong(self) -> int:
        """How many the model is wrong about."""
        return self.images - int(self.confusion.diagonal().sum())


def find(run: Run, asked: Asked, *, mistakes: int, examples: int, progress: Progress) -> Findings:
    """Run a model over labelled images.

    Args:
        run: Whose model.
        asked: Which images; without data, those that the run was validated on.
        mistakes: How many of the surest mistakes to keep.
        examples: How many images to look at closely.
        progress: Who is told how far it is.

    Raises:
        TrimtabError: If the images, the backbone or the adapter cannot be used.
    """
    saved, preprocess = run_saved(run)
    source, images = _images(run, asked, saved.labels)
    model = checkpoint.restore(saved, weights=asked.weights, device=_device(asked.device))
    predictor = Predictor(model.fold(), saved.labels, preprocess)
    logits, targets = logits_of(
        predictor, images, batch_size=asked.batch_size, threads=asked.threads, progress=progress
    )
    probability, said = logits.softmax(-1).max(-1)
    classes = len(saved.labels)
    wrong = (said != targets).nonzero()[:, 0]
    surest = wrong[probability[wrong].argsort(descending=True, stable=True)][:mistakes].tolist()
    typical = _first_of_classes(targets, examples)
    store = ImageStore(images, preprocess, cache_bytes=0, threads=asked.threads)

    def pictures(rows: list[int]) -> tuple[Picture, ...]:
        pixels = store.batch(rows)[0] if rows else torch.empty(0)
        return tuple(
            Picture(
                pixels[k],
                Path(str(images.paths[row])).name,
                saved.labels[int(targets[row])],
                saved.labels[int(said[row])],
                float(probability[row]),
            )
            for k, row in enumerate(rows)
        )

    shown = pictures(typical)
    return Findings(
        source=source,
        split=images.name,
        labels=saved.labels,
        metrics=classification_metrics(logits, targets),
        confusion=torch.bincount(targets * classes + said, minlength=classes**2).view(classes, classes),
        mistakes=pictures(surest),
        examples=shown,
        attention=_attention(model, preprocess, shown),
    )


def run_saved(run: Run) -> tuple[checkpoint.Saved, Preprocess]:
    """The adapter, and how its images are prepared.

    Raises:
        ConfigError: If it is a segmenter.
    """
    saved = checkpoint.read(run.folder)
    if not isinstance(saved.preprocess, Preprocess):
        raise ConfigError(
            f"{str(run.folder)!r} is a segmenter, and reports are of classifiers so far; trimtab eval has its numbers "
            "by class and image."
        )
    return saved, saved.preprocess


def _device(name: str) -> str:
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def _images(run: Run, asked: Asked, labels: tuple[str, ...]) -> tuple[str, ImageSet]:
    """The images to look at, and where they come from in words."""
    made = run.folder / SPLIT
    if asked.data is None and made.is_file() and asked.split in ("train", "val"):
        # The split that training made names its images itself, wherever the data was named from.
        return str(run.record.get("data", made)), open_split(made, asked.split, labels)
    data = run.record.get("data") if asked.data is None else asked.data
    if data is None:
        raise DataError(f"{RUN} in {str(run.folder)!r} does not say what was trained on; name images with --data.")
    return str(data), open_split(data, asked.split, labels, made=made)


def _first_of_classes(targets: Tensor, count: int) -> list[int]:
    """The first image of each of ``count`` classes, spread over those that occur."""
    present = targets.unique(sorted=True)
    count = min(count, len(present))
    chosen = present[torch.linspace(0, len(present) - 1, count).round().long()]
    return [int((targets == label).nonzero()[0, 0]) for label in chosen]


def _attention(model: TunedModel, preprocess: Preprocess, pictures: tuple[Picture, ...]) -> Attention:
    pixels = torch.stack([picture.pixels for picture in pictures]).to(model.backbone.device)
    parts = [look(model, preprocess.normalise(some)) for some in pixels.split(_AT_ONCE)]
    return Attention.join(parts)
