"""What every task answers; the training loop and the evaluation ask nothing else of it."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

from torch import Tensor

from trimtab.backbone import Backbone
from trimtab.data import ImageSet, Part, Preprocess, SegmentationTransform, Store, TrainingData
from trimtab.heads import SegmenterConfig, WeightedLogits
from trimtab.recipe import Recipe

AnyPreprocess: TypeAlias = "Preprocess | SegmentationTransform"
Gather: TypeAlias = Callable[[Tensor], Tensor]
"""Joins a tensor of equal shape from all processes along its first dimension."""


class Metrics(abc.ABC):
    """Counts answers over a whole set."""

    @abc.abstractmethod
    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Count a batch."""

    @abc.abstractmethod
    def compute(self, images: int, gather: Gather | None = None) -> dict[str, Any]:
        """What was counted, as numbers.

        Args:
            images: How many the set has; processes that share it may have counted some twice, at the end.
            gather: How the processes' parts come together, if there are several.
        """


class Task(abc.ABC):
    """A kind of question, with its options."""

    name: ClassVar[str]
    """The word users type."""
    monitor: ClassVar[str]
    """The metric of the validation images that chooses the epoch; more is better."""
    logged_metrics: ClassVar[tuple[str, ...]]
    """The metrics of the validation images that the history keeps."""
    metric_labels: ClassVar[Mapping[str, str]]
    """Metrics of 0 to 1 that pages show, with what they are called; first the one that is watched."""
    eval_batch: ClassVar[int] = 64
    """Images at once, where nothing is trained."""
    even_batches: ClassVar[bool] = True
    """Whether processes that share a set must hold equally many images, so that some are given twice."""
    cache_features: ClassVar[bool] = True
    """Whether features may stand for images, where what is trained does not change them."""

    @classmethod
    @abc.abstractmethod
    def of_options(cls, options: Mapping[str, Any]) -> Task:
        """The task of a training run.

        Raises:
            ConfigError: If there is no such option, or they cannot work.
        """

    @classmethod
    @abc.abstractmethod
    def of_saved(cls, values: Mapping[str, Any]) -> Task:
        """The task of an adapter.

        Raises:
            CheckpointError: If these are not what :meth:`saved` gave.
        """

    @abc.abstractmethod
    def saved(self, images: ImageSet | None) -> dict[str, Any]:
        """What an adapter has to hold of it besides its name, as JSON values; ``images`` are those trained on."""

    def recorded(self) -> dict[str, Any]:
        """The resolved options of a run, for its record; nothing where there are none."""
        return {}

    @property
    def head(self) -> SegmenterConfig | None:
        """What :func:`~trimtab.model.build` puts on the backbone."""
        return None

    def recipe(self, recipe: Recipe) -> Recipe:
        """A method's own recipe, as it suits this task."""
        return recipe

    @abc.abstractmethod
    def open_training(self, path: str | Path, val_fraction: float, seed: int) -> TrainingData:
        """The training and validation images of a data set.

        Raises:
            DataError: If it cannot be used.
        """

    @abc.abstractmethod
    def open_split(self, path: str | Path, split: str, classes: Sequence[str], made: Path) -> ImageSet:
        """One split of a data set.

        Raises:
            DataError: If it cannot be used.
        """

    @abc.abstractmethod
    def named_splits(self, path: str | Path) -> set[str]:
        """The splits that a data set itself names."""

    @abc.abstractmethod
    def held_out(self, path: str | Path) -> Part:
        """List the test images of a data set, to compare others with them; none if they cannot be listed."""

    @abc.abstractmethod
    def write_split(self, path: Path, training: TrainingData) -> None:
        """Record a split that was made."""

    @abc.abstractmethod
    def identity(self, images: ImageSet) -> list[tuple[Any, ...]]:
        """What tells one set of images from another, without reading them."""

    @abc.abstractmethod
    def preprocess(self, values: Mapping[str, Any], backbone: Backbone) -> AnyPreprocess:
        """Preprocessing, from the fields of :class:`~trimtab.data.Preprocess` but the image size."""

    @abc.abstractmethod
    def preprocess_of(self, values: Mapping[str, Any]) -> AnyPreprocess:
        """Saved preprocessing.

        Raises:
            CheckpointError: If it is none.
        """

    @abc.abstractmethod
    def store(
        self, images: ImageSet, preprocess: AnyPreprocess, *, cache_bytes: int, threads: int, whole: bool
    ) -> Store:
        """Batches of a set: as they are trained on, or whole, as they are measured."""

    @abc.abstractmethod
    def loss(self, logits: Sequence[WeightedLogits], targets: Tensor) -> Tensor:
        """The training loss, summed over images."""

    def logits(self, forward: Callable[[Tensor], Tensor], inputs: Tensor, window: tuple[int, int]) -> Tensor:
        """Logits of normalised images; ``forward`` takes those of the size ``window``."""
        return forward(inputs)

    def error(self, value: float, images: int) -> float | None:
        """One standard error of the watched metric, from its value over so many images, where that tells it."""
        return None

    @abc.abstractmethod
    def make_metrics(self, classes: Sequence[str]) -> Metrics:
        """A fresh count."""

    @abc.abstractmethod
    def summary(self, images: ImageSet, classes: Sequence[str], metric: Metrics) -> dict[str, Any]:
        """What an evaluation of a whole set reports: the metrics, ``images``, and ``classes`` that occur."""
