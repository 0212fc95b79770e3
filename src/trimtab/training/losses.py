"""Losses of training steps, left on the device until several are read together."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

READ_EVERY = 10
"""Steps after which losses are read from a GPU: each reading waits until all that was asked of it is computed."""


class StepLoss(NamedTuple):
    """A training step whose loss has been read."""

    step: int
    """From 0, over all epochs."""
    lr: float
    loss: float


class Losses:
    """The losses of an epoch's steps.

    Args:
        device: Where they are computed. On a CPU nothing is gained by waiting, and each is read at once.
    """

    def __init__(self, device: torch.device) -> None:
        self.every = 1 if device.type == "cpu" else READ_EVERY
        self._sum = torch.zeros((), device=device)
        self._unread: list[tuple[int, float, Tensor]] = []

    def add(self, step: int, lr: float, loss: Tensor) -> list[StepLoss]:
        """Add a step's loss, a scalar on the device; return what was read, which is nothing after most steps."""
        self._sum += loss
        self._unread.append((step, lr, loss))
        return self.read() if len(self._unread) >= self.every else []

    def read(self) -> list[StepLoss]:
        """Read the losses that are left, in the order of their steps."""
        unread, self._unread = self._unread, []
        if not unread:
            return []
        values = fetch(torch.stack([loss for _, _, loss in unread]))
        return [StepLoss(step, lr, value) for (step, lr, _), value in zip(unread, values, strict=True)]

    def sum(self) -> float:
        """Return the sum over all steps."""
        return fetch(self._sum[None])[0]


def fetch(values: Tensor) -> list[float]:
    """Copy a vector from the device, the only place where a training step waits for it."""
    copied: list[float] = values.tolist()
    return copied
