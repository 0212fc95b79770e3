"""What families share: the MLP in place, residual branches under drop-path."""

from __future__ import annotations

from typing import Any

import pytest
import timm.layers
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from trimtab.backbone.family import added, run_mlp

MLPS = {
    "gelu": lambda: timm.layers.Mlp(8, 32),
    "timm's gelu": lambda: timm.layers.Mlp(8, 32, act_layer=timm.layers.GELU),
    "tanh": lambda: timm.layers.Mlp(8, 32, act_layer=lambda: nn.GELU("tanh")),
    "norm": lambda: timm.layers.Mlp(8, 32, norm_layer=nn.LayerNorm),
    "quick gelu": lambda: timm.layers.Mlp(8, 32, act_layer=timm.layers.QuickGELU),
    "swiglu": lambda: timm.layers.SwiGLU(8, 32),
}


class Operators(TorchDispatchMode):
    """Names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.add(str(func.overloadpacket))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("kind", MLPS)
def test_mlp_is_timms(kind: str, grad: bool) -> None:
    torch.manual_seed(0)
    mlp = MLPS[kind]().eval().requires_grad_(False)
    x = torch.randn(2, 5, 8, requires_grad=grad)
    before = x.detach().clone()
    found, wanted = run_mlp(mlp, x), mlp(x)
    torch.testing.assert_close(found, wanted, atol=0, rtol=0)
    assert torch.equal(x, before)
    if grad:
        torch.testing.assert_close(*(torch.autograd.grad(y.square().sum(), x)[0] for y in (found, wanted)))


@pytest.mark.parametrize("where", ["nothing trained", "inference", "trained before it", "trained itself"])
def test_mlp_is_activated_in_place_where_no_gradient_passes(where: str) -> None:
    mlp = timm.layers.Mlp(8, 32).eval().requires_grad_(where == "trained itself")
    x = torch.randn(2, 5, 8, requires_grad=where == "trained before it")
    with torch.inference_mode(where == "inference"), Operators() as operators:
        run_mlp(mlp, x)
    passes = where.startswith("trained")
    assert ("aten.gelu" in operators.seen, "aten.gelu_" in operators.seen) == (passes, not passes)


KEEPS = {
    "all": torch.full((3, 1, 1), 2.0),
    "some": torch.tensor([2.0, 0.0, 2.0])[:, None, None],
    "none": torch.zeros(3, 1, 1),
}


@pytest.mark.parametrize("which", KEEPS)
def test_branches_of_dropped_images_are_not_computed(which: str) -> None:
    torch.manual_seed(0)
    x, inputs = (torch.randn(3, 5, 8, requires_grad=True) for _ in range(2))
    layer, keep, rows = nn.Linear(8, 8), KEEPS[which], []

    def branch(part: Tensor) -> Tensor:
        rows.append(part.shape[0])
        return layer(part)

    found, wanted = added(x, branch, inputs, keep), x + keep * layer(inputs)
    torch.testing.assert_close(found, wanted)
    assert rows == [2 if which == "some" else 3]
    # Where all are dropped, gradients are 0 and not none: an optimiser treats them differently.
    torch.testing.assert_close(*(torch.autograd.grad(y.square().sum(), (x, inputs)) for y in (found, wanted)))


def test_what_the_batch_shares_is_kept_or_dropped_whole() -> None:
    x = torch.randn(1, 5, 8)
    for keep in (0.0, 1.25):
        torch.testing.assert_close(added(x, torch.exp, x, torch.tensor([keep])), x + keep * x.exp())


def test_a_branch_without_drop_path_is_added() -> None:
    x = torch.randn(2, 5, 8)
    torch.testing.assert_close(added(x, torch.exp, x, None), x + x.exp())
