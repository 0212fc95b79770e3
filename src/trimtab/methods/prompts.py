"""What prompt methods share: how prompts start, and how they are dropped."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from trimtab.backbone import Backbone
from trimtab.errors import ConfigError
from trimtab.noise import drop
from trimtab.stream import Stream

PATCH_IMAGES = 64
"""Training images that prompts may start from."""


@torch.no_grad()
def patch_directions_(prompts: Tensor, backbone: Backbone, batches: Iterable[Tensor]) -> Tensor:
    """Turn prompts (blocks, P, D) into patches that training images have at the inputs of these blocks.

    A prompt like that changes little at first, where a random one draws attention to nothing. Prompts are
    normalised before anything else happens to them, so only the direction is taken: mean and size stay as they are.

    Raises:
        ConfigError: If there is no batch.

    References:
        | Revisiting the Power of Prompt for Visual Tuning (Wang et al., 2024), section 3
        | https://arxiv.org/abs/2402.02382
    """
    images = next(iter(batches), None)
    if images is None:
        raise ConfigError(
            "Prompts start from patches of training images and there are none; prepare with at least one."
        )
    stream = backbone.embed(images)
    for i in range(prompts.shape[0]):
        patches = stream.tokens[:, backbone.num_prefix_tokens :].flatten(0, 1)
        chosen = patches[torch.randint(patches.shape[0], prompts.shape[1:2]).to(patches.device)]
        mean, deviation = prompts[i].mean(1, keepdim=True), prompts[i].std(1, keepdim=True)
        prompts[i] = mean + deviation * F.layer_norm(chosen, chosen.shape[-1:])
        if i + 1 < prompts.shape[0]:
            stream = backbone.block(i, stream)
    return prompts


def uniform_(prompts: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """Fill prompts (..., P, D) as VPT does: uniform within sqrt(6 / (3 * patch height * patch width + D))."""
    bound = math.sqrt(6.0 / (3 * math.prod(patch_size) + prompts.shape[-1]))
    with torch.no_grad():
        return prompts.uniform_(-bound, bound)


def dropped(prompts: Tensor, rate: float, stream: Stream) -> Tensor:
    """Prompts (P, D) or (B, P, D) as they enter a block in training, entries zeroed for every image: (B, P, D)."""
    if rate == 0:
        return prompts
    uniform = stream.noise.per_image(stream.tokens.shape[0], *prompts.shape[-2:], like=prompts)
    return drop(prompts, rate, uniform)
