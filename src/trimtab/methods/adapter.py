"""Adapters: a small bottleneck beside the MLP of every block."""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trimtab.backbone import Backbone
from trimtab.errors import ConfigError
from trimtab.methods.base import Method
from trimtab.noise import drop
from trimtab.recipe import Recipe
from trimtab.stream import BlockHooks, Stream
from trimtab.validation import check_fields


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """Options of adapters."""

    dim: int = 64
    """Width of the bottleneck, the same in every block."""
    scale: float = 0.1
    """Factor on what the adapter adds; where it starts if it is learned (officially at 1)."""
    learned_scale: bool = False
    """Learn the factor, one number a block."""
    norm: bool = False
    """Normalise the tokens, with learned weights, before the bottleneck."""
    dropout: float = 0.1
    """Probability of zeroing an entry of the bottleneck in training, drawn for every image."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.dim < 1:
            raise ConfigError(f"dim is {self.dim}; use at least 1, or the 'linear' method.")
        if self.scale == 0 and not self.learned_scale:
            raise ConfigError("scale is 0, so the adapters would add nothing; use another number, or learn it.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is {self.dropout}; use 0 up to, not including, 1.")


class Adapter(Method[AdapterConfig]):
    r"""AdaptFormer: a bottleneck that runs in parallel with the MLP of every block.

    With the residual stream :math:`x` between attention and MLP, a factor :math:`s` and a rectified bottleneck:

    .. math::
        x' = x + \mathrm{MLP}(\mathrm{LN}_2(x)) + s\, (\mathrm{ReLU}(x W_\mathrm{down} + b_\mathrm{down}) W_\mathrm{up}
        + b_\mathrm{up})

    Starts from the backbone's own features: :math:`W_\mathrm{up}` and both biases are 0. Adds
    ``dim * (2 * width + 1) + width`` parameters a block, 1 more if the factor is learned and ``2 * width`` more
    with a norm. Nothing of it folds: the branch is nonlinear in the image.

    Departs: the official classifier has a batch norm before it, and the official learned factor starts at 1, not at
    ``scale``. Of the official options, the sequential form, a norm after the bottleneck, and prompts beside the
    adapters are left out.

    References:
        | AdaptFormer: Adapting Vision Transformers for Scalable Visual Recognition (Chen et al., 2022), section 3.2
        | https://arxiv.org/abs/2205.13535
    """

    name = "adapter"
    Config = AdapterConfig
    recipe = Recipe(lr=2e-3, epochs=15, warmup_epochs=3)

    def __init__(self, config: AdapterConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        depth, widths = backbone.depth, backbone.widths
        # Layers and not two large tensors: biases of one dimension are not decayed.
        downs = [nn.Linear(width, config.dim) for width in widths]
        ups = [nn.Linear(config.dim, width) for width in widths]
        for down, up in zip(downs, ups, strict=True):
            nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
            for value in (down.bias, up.weight, up.bias):
                nn.init.zeros_(value)
        self.down, self.up = nn.ModuleList(downs), nn.ModuleList(ups)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths if config.norm)
        self.scale: nn.Parameter | None = None
        if config.learned_scale:
            self.scale = nn.Parameter(torch.full((depth,), float(config.scale)))

    def step(self, i: int, backbone: Backbone, stream: Stream) -> Stream:
        """Run block ``i`` with its adapter beside its MLP."""
        hooks = BlockHooks(mlp=lambda mlp: self._beside(i, mlp.input, stream), tokenwise=True)
        return backbone.block(i, stream, hooks=hooks)

    def _beside(self, i: int, x: Tensor, stream: Stream) -> Tensor:
        """What the adapter of block ``i`` adds to the sequence ``x`` (B, T, D)."""
        seen = self.norms[i](x) if self.config.norm else x
        hidden = F.relu(self.down[i](seen))
        if self.training and self.config.dropout > 0:
            # Drawn in the sequence's type: autocast's is too coarse for a probability.
            uniform = stream.noise.per_image(*hidden.shape, like=x)
            hidden = drop(hidden, self.config.dropout, uniform)
        added: Tensor = self.up[i](hidden)
        return added * (self.config.scale if self.scale is None else self.scale[i])
