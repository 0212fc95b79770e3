"""What families share: the MLP in place."""

from __future__ import annotations

from typing import Any

import pytest
import timm.layers
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from trimtab.backbone.family import run_mlp

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
