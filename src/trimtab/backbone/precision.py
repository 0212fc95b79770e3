"""A timm model whose weights are stored in lower precision."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from timm.layers import ScaledStdConv2d, StdConv2d
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

_STAY = (_BatchNorm, StdConv2d, ScaledStdConv2d)
"""Running statistics are float32, and weights that are standardised at every pass would be rounded twice."""
_PLACES = ("rope",)
"""Frequencies are multiplied by positions: rounded, they would turn far patches by another angle."""
_NAMES = ("logit_scale",)
"""Exponentiated."""


def cast_parameters_(model: nn.Module, dtype: torch.dtype, keep: Iterable[str] = ()) -> nn.Module:
    """Store a model's frozen parameters in another type, as new tensors; buffers stay, but for biases.

    Args:
        model: The model, whose parameters are replaced.
        dtype: The type.
        keep: Names of parameters of layers that stay as they are: a norm takes no weight and bias of two types.
    """
    layers = {name.rpartition(".")[0] for name in keep}
    made: dict[nn.Parameter, nn.Parameter] = {}
    for place, module in model.named_modules():
        if place in layers or isinstance(module, _STAY) or set(place.split(".")) & set(_PLACES):
            continue
        for name, value in module._parameters.items():
            if value is None or not value.is_floating_point() or name in _NAMES:
                continue
            if value not in made:
                made[value] = nn.Parameter(value.detach().to(dtype), requires_grad=False)
            module._parameters[name] = made[value]
        if module._buffers.get("k_bias") is not None:
            # Zeros between two parameters that it is concatenated with.
            module._buffers["k_bias"] = module._buffers["k_bias"].to(dtype)
    return model
