"""Prompts shared by prompt methods: initialisation and dropout."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trimtab.backbone import Backbone
from trimtab.errors import ConfigError
from trimtab.noise import drop
from trimtab.recipe import Recipe
from trimtab.stream import Stream

PATCH_IMAGES = 64
"""Training images that prompts may start from."""

PAPER_RECIPE = Recipe(
    optimizer="sgd",
    lr=1.0,
    lr_batch=256,
    weight_decay=1e-3,
    epochs=100,
    warmup_epochs=10,
    batch_size=64,
    per_epoch=True,
)
"""How VPT's official code trains, and others that are built on it."""
_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "interpolation": "bilinear"}
PAPER_VTAB: Mapping[str, Any] = {**_IMAGENET, "resize": "squash"}
"""Its preprocessing of VTAB-1k."""
PAPER_FGVC: Mapping[str, Any] = {**_IMAGENET, "resize": "shorter", "crop_pct": 224 / 256, "augment": "crop-flip"}
"""Its preprocessing of the five fine-grained sets."""


class Prompts(nn.Module):
    """A set of prompts (P, D) for each of the first blocks; D is the block's width.

    Held in one tensor (blocks, P, D) for each of the backbone's stages. They start as VPT's do: uniform, within one
    bound for all stages.

    Args:
        backbone: What gives the widths.
        count: P.
        blocks: How many blocks have prompts; all by default.
        width: D in place of the blocks' own.
    """

    def __init__(self, backbone: Backbone, count: int, *, blocks: int | None = None, width: int | None = None) -> None:
        super().__init__()
        stages = [range(s.start, min(s.stop, s.stop if blocks is None else blocks)) for s in backbone.stages]
        stages = [stage for stage in stages if len(stage)]
        bound = uniform_bound(backbone.patch_size, width or backbone.width)
        self.stages = nn.ParameterList(
            torch.empty(len(stage), count, width or backbone.widths[stage.start]).uniform_(-bound, bound)
            for stage in stages
        )
        self._places = tuple((s, j) for s, stage in enumerate(stages) for j in range(len(stage)))

    def __len__(self) -> int:
        """Number of blocks that have prompts."""
        return len(self._places)

    def __getitem__(self, i: int) -> Tensor:
        """(P, D), the prompts of block ``i``."""
        stage, j = self._places[i]
        prompts: Tensor = self.stages[stage][j]
        return prompts

    def __iter__(self) -> Iterator[Tensor]:
        """Iterate over the prompts (P, D) of each block."""
        return (self[i] for i in range(len(self)))


@torch.no_grad()
def patch_directions_(prompts: Prompts, backbone: Backbone, batches: Iterable[Tensor]) -> Prompts:
    """Turn prompts into patches that training images have at the inputs of their blocks.

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
    for i, own in enumerate(prompts):
        patches = stream.tokens[:, backbone.num_prefix_tokens :].flatten(0, 1)
        chosen = patches[torch.randint(patches.shape[0], own.shape[:1]).to(patches.device)]
        mean, deviation = own.mean(1, keepdim=True), own.std(1, keepdim=True)
        own.copy_(mean + deviation * F.layer_norm(chosen, chosen.shape[-1:]))
        if i + 1 < len(prompts):
            stream = backbone.block(i, stream)
    return prompts


def uniform_bound(patch_size: tuple[int, int], width: int) -> float:
    """VPT's bound on prompts at the start: sqrt(6 / (3 * patch height * patch width + D))."""
    return math.sqrt(6.0 / (3 * math.prod(patch_size) + width))


def paper_head_(head: nn.Linear) -> None:
    """Start a classifier as VPT's official code: Kaiming-normal over the outputs, bias -log(99) for every class."""
    nn.init.kaiming_normal_(head.weight, a=0, mode="fan_out")
    nn.init.constant_(head.bias, -4.59511985013459)


def dropped(prompts: Tensor, rate: float, stream: Stream) -> Tensor:
    """Prompts (P, D) or (B, P, D) as they enter a block in training, entries zeroed for every image: (B, P, D)."""
    if rate == 0:
        return prompts
    uniform = stream.noise.per_image(stream.tokens.shape[0], *prompts.shape[-2:], like=prompts)
    return drop(prompts, rate, uniform)
