"""Compiling: what is needed, and what it changes (tests/test_loop.py has the training)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trimtab.errors import ConfigError
from trimtab.training.compiling import compile_whole


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
