"""A head trained on features that were computed once."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trimtab.heads import Features, Head
from trimtab.recipe import Recipe
from trimtab.tasks import make_task
from trimtab.tasks.base import Task
from trimtab.training.inputs import index
from trimtab.training.optimizer import make_optimizer


def probe(
    head: Head, features: Features, labels: Tensor, epochs: int, lr: float, seed: int, task: Task | None = None
) -> None:
    """Train ``head`` by AdamW on features that were computed once, with a cosine schedule; classify by default.

    The first half of "linear probing, then fine-tuning": what is tuned next starts from a head that fits the
    features, and is not bent by the gradients of one that does not.

    Raises:
        ConfigError: If there would be a single step, at a learning rate of 0.

    References:
        | Fine-Tuning can Distort Pretrained Features (Kumar et al., 2022), section 4
        | https://arxiv.org/abs/2202.10054
    """
    task = task or make_task()
    recipe = task.recipe(Recipe(lr=lr, epochs=epochs))
    steps = math.ceil(labels.shape[0] / recipe.batch_size)
    recipe.check(steps)
    generator = torch.Generator().manual_seed(seed)
    optimizer = make_optimizer(recipe, head.parameters())
    head.train()
    for step in range(epochs * steps):
        if step % steps == 0:
            order = torch.randperm(labels.shape[0], generator=generator).to(labels.device)
        first = step % steps * recipe.batch_size
        rows = order[first : first + recipe.batch_size]
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate(step, steps)
        optimizer.zero_grad()
        (task.loss(head.training_logits(index(features, rows)), labels[rows]) / rows.shape[0]).backward()
        optimizer.step()
