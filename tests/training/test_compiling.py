"""Compiling: what is needed, and what it changes (tests/test_loop.py has the training)."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

from trimtab import attach
from trimtab.errors import ConfigError
from trimtab.training.compiling import compile_whole, cuda_graphs_are_safe, draws_noise


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"there is no 'no-such-compiler'; install one"):
        compile_whole(nn.Linear(2, 2), torch.device("cpu"))


def test_a_module_that_is_not_one_graph_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.Generator().initial_seed()

    monkeypatch.setenv("CXX", "true")
    monkeypatch.setattr("trimtab.training.compiling.BACKEND", "eager")
    module = Broken()
    compile_whole(module, torch.device("cpu"))
    with pytest.raises(RuntimeError):
        module(torch.zeros(2))
    torch.compiler.reset()


@pytest.mark.parametrize(("graphs", "mode"), [(True, "reduce-overhead"), (False, None)])
def test_cuda_graphs_are_asked_for_by_mode(graphs: bool, mode: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **how: asked.append(how))
    compile_whole(nn.Linear(2, 2), torch.device("cuda"), cuda_graphs=graphs)
    assert asked == [{"fullgraph": True, "backend": "inductor", "mode": mode}]


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_random_numbers_are_found(dropout: float) -> None:
    model = attach(timm.create_model("test_vit"), "vpt", 3, num_prompts=2, dropout=dropout).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert draws_noise(model) == (dropout > 0)
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    cuda = torch.device("cuda")
    assert cuda_graphs_are_safe(model, cuda, grad_accum=1, processes=1) == (dropout == 0)


@pytest.mark.parametrize(("device", "grad_accum", "processes"), [("cpu", 1, 1), ("cuda", 2, 1), ("cuda", 1, 2)])
def test_cuda_graphs_are_left_out_where_they_could_go_wrong(device: str, grad_accum: int, processes: int) -> None:
    model = attach(timm.create_model("test_vit"), "linear", 3)
    assert not cuda_graphs_are_safe(model, torch.device(device), grad_accum=grad_accum, processes=processes)
