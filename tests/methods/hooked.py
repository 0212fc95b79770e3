"""timm's own model with something done to what its layers give out: another way to methods that change weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.versions import need
from trimtab.backbone import Backbone

Change = Callable[[str, nn.Module, Tensor, Tensor], Tensor]
"""Name of a layer, the layer, its input and its output, to another output."""


def hooked_features(backbone: Backbone, images: Tensor, change: Change) -> Tensor:
    """What timm's model pools where every layer with a weight gives out what ``change`` makes of it."""
    model = copy.deepcopy(backbone.model)
    for name, module in model.named_modules():
        if hasattr(module, "weight"):
            module.register_forward_hook(_hook(name, change, _take_bias(model, name)))
    features: Tensor = model.forward_head(model.forward_features(images), pre_logits=True)
    return features


def _take_bias(model: Any, name: str) -> Tensor | None:
    """The bias that Eva keeps outside a layer, taken away from there so that timm calls the layer itself."""
    attention = model.get_submodule(name.rpartition(".")[0])
    if not name.endswith(".qkv") or getattr(attention, "q_bias", None) is None:
        return None
    need("timm", "1.0.8")  # before, it never calls the layer
    bias = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias]).detach()
    attention.q_bias = None
    return bias


def _hook(name: str, change: Change, bias: Tensor | None) -> Callable[[nn.Module, tuple[Tensor], Tensor], Tensor]:
    def hook(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return change(name, module, inputs[0], output if bias is None else output + bias)

    return hook
