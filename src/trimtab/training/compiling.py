"""Compiling a module, if there is what that needs."""

from __future__ import annotations

import os
import shutil
import sys

import torch
from torch import nn

from trimtab.errors import ConfigError

BACKEND = "inductor"
"""What compiles."""


def compile_whole(module: nn.Module, device: torch.device) -> None:
    """Let calls of the module be compiled at the first one, as one graph.

    Raises:
        ConfigError: If there is no C++ compiler, which torch needs on a CPU.
    """
    # Where torch looks for one.
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise ConfigError(
            f"compile needs a C++ compiler on a CPU and there is no {compiler!r}; install one, name another by CXX "
            "in the environment, or leave --compile out."
        )
    module.compile(fullgraph=True, backend=BACKEND)
