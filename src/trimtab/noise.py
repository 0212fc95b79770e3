"""Random numbers that belong to images, not to processes.

Dropout and drop-path draw from a :class:`Noise`. One built with a seed and the position of its images in
the global batch gives every image the same draws whether the batch is computed whole, in micro-batches or
spread over processes, and needs no state to be saved for a bit-exact resume.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


class Noise:
    """Uniform draws for the images of one (part of a) batch.

    Args:
        seed: Seed of this training step; ``None`` draws from torch's global generator.
        first: Position of this part's first image in the global batch.
        total: Number of images in the global batch; ignored without a seed.
        device: Where the draws are made.
    """

    def __init__(
        self,
        seed: int | None = None,
        *,
        first: int = 0,
        total: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.first, self.total = first, total
        self.generator = None if seed is None else torch.Generator(device).manual_seed(seed)

    def state(self) -> Tensor | None:
        """Where the draws stand; nothing without a seed."""
        return None if self.generator is None else self.generator.get_state()

    def go_to(self, state: Tensor | None) -> None:
        """Draw from a :meth:`state` on again."""
        if self.generator is not None and state is not None:
            self.generator.set_state(state)

    def per_image(self, images: int, *shape: int, like: Tensor) -> Tensor:
        """Uniform numbers in [0, 1), an array of this shape for each image, with ``like``'s device and type."""
        if self.generator is None:
            return torch.rand(images, *shape, device=like.device, dtype=like.dtype)
        draws = torch.rand(self.total, *shape, device=self.generator.device, generator=self.generator)
        return draws[self.first : self.first + images].to(like)

    def shared(self, *shape: int, like: Tensor) -> Tensor:
        """Uniform numbers in [0, 1) that all images of the global batch share."""
        if self.generator is None:
            return torch.rand(*shape, device=like.device, dtype=like.dtype)
        return torch.rand(*shape, device=self.generator.device, generator=self.generator).to(like)


def drop(values: Tensor, rate: float, uniform: Tensor) -> Tensor:
    """Zero ``values`` where ``uniform < rate`` and scale the rest by ``1 / (1 - rate)``; the two broadcast."""
    return values * (uniform >= rate).to(values.dtype) / (1.0 - rate)


def seed_of(*parts: object) -> int:
    """A seed (63 bits) that depends on every part: a run's seed, a purpose, an epoch or step."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
