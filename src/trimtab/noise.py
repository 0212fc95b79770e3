"""Random numbers that belong to images, not to processes.

Dropout and drop-path draw from a :class:`Noise`. One built with a seed and the position of its images in
the global batch gives every image the same draws whether the batch is computed whole, in micro-batches or
spread over processes, and needs no state to be saved for a bit-exact resume.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


@torch.library.custom_op("trimtab::uniform", mutates_args=())
def _uniform(seed: int, number: int, shape: Sequence[int], device: torch.device) -> Tensor:
    """The ``number``-th draw of a seed. One opaque step to torch.compile, which cannot trace generators."""
    generator = torch.Generator(device).manual_seed(seed_of(seed, number))
    return torch.rand(*shape, device=device, generator=generator)


@_uniform.register_fake
def _uniform_shape(seed: int, number: int, shape: Sequence[int], device: torch.device) -> Tensor:
    return torch.empty(*shape, device=device)


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
        self.seed, self.first, self.total = seed, first, total
        self.device = torch.device(device)
        self.drawn = 0
        """How many draws were made: what a second computation of the same has to start from."""

    def per_image(self, images: int, *shape: int, like: Tensor) -> Tensor:
        """Draw uniform numbers in [0, 1), (images, *shape), each image's own, on ``like``'s device.

        They have its type, but float32 where that is coarser: too many of few values would lie under a small rate.
        """
        if self.seed is None:
            return torch.rand(images, *shape, device=like.device, dtype=_type_of(like))
        draws = self._draw(self.seed, [self.total, *shape])
        return draws[self.first : self.first + images].to(like.device, _type_of(like))

    def shared(self, *shape: int, like: Tensor) -> Tensor:
        """Draw as :meth:`per_image`, (*shape), what all images of the global batch share."""
        if self.seed is None:
            return torch.rand(*shape, device=like.device, dtype=_type_of(like))
        return self._draw(self.seed, list(shape)).to(like.device, _type_of(like))

    def _draw(self, seed: int, shape: list[int]) -> Tensor:
        draws: Tensor = _uniform(seed, self.drawn, shape, self.device)
        self.drawn += 1
        return draws


def _type_of(like: Tensor) -> torch.dtype:
    return torch.promote_types(like.dtype, torch.float32)


def drop(values: Tensor, rate: float, uniform: Tensor) -> Tensor:
    """Zero ``values`` where ``uniform < rate`` and scale the rest by ``1 / (1 - rate)``; the two broadcast."""
    return values * (uniform >= rate).to(values.dtype) / (1.0 - rate)


def seed_of(*parts: object) -> int:
    """A seed (63 bits) that depends on every part: a run's seed, a purpose, an epoch or step."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
