"""What the loop is fed with: batches of images, or of features computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from trimtab.data import ImageStore, Preprocess
from trimtab.noise import seed_of


class Decoded:
    """Images as the model's input."""

    def __init__(self, store: ImageStore, preprocess: Preprocess, device: torch.device) -> None:
        self.store, self.preprocess, self.device = store, preprocess, device

    def batches(self, plan: Sequence[Sequence[int]], seed: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches (inputs, labels) of the images at these positions; augmented if there is a seed."""
        augmented = seed is not None and self.preprocess.augment != "none"
        seeds_of = partial(seed_of, seed) if augmented else None
        for images, labels in self.store.batches(plan, seeds_of):
            yield self.preprocess.normalise(images.to(self.device)), labels.to(self.device)


class Features:
    """Pooled features in place of images, where what is trained does not change them."""

    def __init__(self, features: Tensor, labels: Tensor) -> None:
        self.features, self.labels = features, labels

    def batches(self, plan: Sequence[Sequence[int]], seed: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches (features, labels) at these positions."""
        for rows in plan:
            yield self.features[rows], self.labels[rows]


Inputs: TypeAlias = "Decoded | Features"


def cut(rows: Sequence[int], size: int) -> list[list[int]]:
    """Positions, ``size`` at a time."""
    return [list(rows[first : first + size]) for first in range(0, len(rows), size)]
