"""What the optimizer moves, and what it decays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from trimtab.recipe import Recipe
from trimtab.training.optimizer import make_optimizer

OPTIMIZERS: tuple[Any, ...] = ("adamw", "sgd")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_only_matrices_are_decayed(name: Any) -> None:
    parameters = [nn.Parameter(torch.ones(shape)) for shape in ((2, 3), (1, 2, 3), (3,), ())]
    optimizer = make_optimizer(Recipe(optimizer=name, lr=0.1, weight_decay=0.5), parameters)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for parameter, expected in zip(parameters, (0.95, 0.95, 1.0, 1.0), strict=True):
        torch.testing.assert_close(parameter.detach(), torch.full_like(parameter, expected))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_frozen_parameters_are_left_out(name: Any) -> None:
    trained, frozen = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2, 2), requires_grad=False)
    optimizer = make_optimizer(Recipe(optimizer=name), [trained, frozen])
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert [id(parameter) for parameter in held] == [id(trained)]


@pytest.mark.parametrize("on_gpu", [True, False])
def test_adamw_is_fused_on_a_gpu_alone(on_gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Placed(nn.Parameter):
        is_cuda = on_gpu

    asked: list[Any] = []
    monkeypatch.setattr(torch.optim, "AdamW", lambda groups, lr, fused: asked.append(fused))
    make_optimizer(Recipe(), [Placed(torch.ones(2, 2)), Placed(torch.ones(2))])
    assert asked == [True if on_gpu else None]
