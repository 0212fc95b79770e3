"""The optimizer of a recipe."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from trimtab.recipe import Recipe


def make_optimizer(recipe: Recipe, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The recipe's optimiser; biases and scalars (tensors of one dimension or none) are not decayed."""
    trained = [p for p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=0.9)
    # One kernel for all tensors; on a CPU it would round otherwise than before.
    fused = True if trained and all(p.is_cuda for p in trained) else None
    return torch.optim.AdamW(groups, lr=recipe.lr, fused=fused)
