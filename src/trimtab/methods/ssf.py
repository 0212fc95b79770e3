"""SSF: scale and shift what every layer of the backbone gives out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from trimtab.backbone import Backbone
from trimtab.methods.banked import Banked, Change, banked_weights
from trimtab.methods.base import Method, slashed
from trimtab.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class SSFConfig:
    """Options of SSF: it has none."""


class _Site(NamedTuple):
    """A layer that is scaled and shifted."""

    layer: str
    """Its name in timm's model."""
    width: int
    """Entries of its output that have a scale of their own."""
    biases: tuple[str, ...]
    """Where its bias is looked for, in this order along the output; nowhere if it can have none."""


def _sites(backbone: Backbone) -> list[_Site]:
    """Linear layers, plain convolutions and norms."""
    names, found = backbone.named_weights(), []
    for layer, module in backbone.named_layers().items():
        weight = names[f"{layer}.weight"]
        # A norm has one number a channel. A weight-standardised convolution would undo a scale of its weight.
        if weight.ndim != 1 and type(module) not in (nn.Linear, nn.Conv2d):
            continue
        parent, _, leaf = layer.rpartition(".")
        apart = tuple(f"{parent}.{part}_bias" for part in "qkv")
        if leaf == "qkv" and apart[0] in names:
            # Eva and Swin-V2 keep this layer's bias outside it, in three parts; the keys' is a buffer of zeros.
            biases = apart
        else:
            # Also where it is None: a shift then takes its place.
            biases = (f"{layer}.bias",) if "bias" in module._parameters else ()
        found.append(_Site(layer, weight.shape[0], biases))
    return found


class SSF(Method[SSFConfig]):
    r"""Scales and shifts the output of every operation: linear layers, norms, the patch embedding.

    :math:`y' = \gamma \odot y + \beta`, with :math:`\gamma \sim N(1, 0.02^2)` and :math:`\beta \sim N(0, 0.02^2)`
    at the start. For :math:`y = W x + b` that is a layer with :math:`W' = \mathrm{diag}(\gamma) W` and
    :math:`b' = \gamma \odot b + \beta`, which is how it is computed, in training too: the blocks run as they do
    without SSF. A layer without a bias gets one.

    Adds ``2 * width of the output`` parameters for every such layer, timm's classifier left out.

    Departs: the official code knows one kind of ViT. Here every linear layer, norm and plain convolution of any
    backbone is an operation, also norms inside attention (one scale for a channel of all heads), pooling layers and
    the norm after average pooling, which the official code leaves alone. A norm that only scales (RMS norm) has
    nowhere to hold a shift and gets a scale only; one that ends with an activation is scaled before it.
    Weight-standardised convolutions (of hybrid stems) stay as they are: standardising would undo the scale.

    References:
        | Scaling & Shifting Your Features: A New Baseline for Efficient Model Tuning (Lian et al., 2022), section 3
        | https://arxiv.org/abs/2210.08823
    """

    name = "ssf"
    Config = SSFConfig
    recipe = Recipe(lr=2e-3, epochs=15, warmup_epochs=3)

    def __init__(self, config: SSFConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self._sites = tuple(_sites(backbone))
        self.scale, self.shift = nn.ParameterDict(), nn.ParameterDict()
        for site in self._sites:
            self.scale[slashed(site.layer)] = nn.Parameter(torch.empty(site.width).normal_(1.0, 0.02))
            if site.biases:
                self.shift[slashed(site.layer)] = nn.Parameter(torch.empty(site.width).normal_(0.0, 0.02))

    def weight_overrides(self, backbone: Backbone) -> Mapping[str, Tensor]:
        """Weights and biases with scale and shift multiplied in."""
        own = backbone.named_weights()
        merged: dict[str, Tensor] = {}
        for site in self._sites:
            scale, weight = self.scale[slashed(site.layer)], own[f"{site.layer}.weight"]
            merged[f"{site.layer}.weight"] = scale.view(-1, *[1] * (weight.ndim - 1)) * weight
            if not site.biases:
                continue
            parts = len(site.biases)
            shifts = self.shift[slashed(site.layer)].chunk(parts)
            for name, factor, shift in zip(site.biases, scale.chunk(parts), shifts, strict=True):
                merged[name] = factor * own[name] + shift if name in own else shift
        return merged

    def banked(self, backbone: Backbone) -> Banked | None:
        """Keep scales of outputs, and vectors with scale and shift multiplied in."""
        changes = {}
        for name, value in self.weight_overrides(backbone).items():
            layer, _, leaf = name.rpartition(".")
            matrix = leaf == "weight" and value.ndim > 1
            changes[name] = Change(scale=self.scale[slashed(layer)]) if matrix else Change(vector=value)
        return banked_weights(changes, backbone)
