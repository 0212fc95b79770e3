"""Running parts of a timm module with other tensors in place of its own."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from trimtab.backbone.family import Part


class _ThreadCopy(threading.local):
    """A thread's own copy of a module's structure; the tensors are the module's."""

    module: SwappableModule | None = None

    def __deepcopy__(self, memo: object) -> _ThreadCopy:
        return _ThreadCopy()

    def __reduce__(self) -> tuple[type[_ThreadCopy], tuple[()]]:
        return _ThreadCopy, ()


def share_structure(module: nn.Module) -> Any:
    """Return another module of the same structure around the same tensors."""
    tensors = (*module.parameters(), *module.buffers())
    return copy.deepcopy(module, {id(value): value for value in tensors})


class SwappableModule(nn.Module):
    """A timm module whose parts are run as calls of it, so that its parameters can be swapped."""

    inside: Any

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside
        self._thread_copy = _ThreadCopy()

    def forward(self, part: Callable[..., Any], *arguments: Any) -> Any:
        """Call ``part`` with the module and the arguments."""
        return part(self.inside, *arguments)

    def run(self, weights: Mapping[str, Tensor], part: Callable[..., Any], *arguments: Any) -> Any:
        """Call ``part`` with the module, whose tensors are replaced by ``weights`` of the same names."""
        if not weights:
            return part(self.inside, *arguments)
        named = {f"inside.{name}": value for name, value in weights.items()}
        if torch.compiler.is_compiling():
            # What is traced swaps nothing when it runs.
            return functional_call(self, named, (part, *arguments))
        # For the length of a call the tensors are really swapped, which no other thread may see.
        if self._thread_copy.module is None:
            self._thread_copy.module = SwappableModule(share_structure(self.inside))
        # Moving a module to a device makes new buffers.
        buffers = {f"inside.{name}": value for name, value in self.inside.named_buffers()}
        return functional_call(self._thread_copy.module, {**buffers, **named}, (part, *arguments))


class SwappablePart:
    """A block or a merge whose own tensors are picked from the swapped ones."""

    def __init__(self, part: Part) -> None:
        self.inside: Any = part.module
        self._swappable = SwappableModule(part.module).eval()
        self._before = f"{part.name}."

    def run(self, weights: Mapping[str, Tensor], function: Callable[..., Any], *arguments: Any) -> Any:
        """Call ``function`` with the module and the arguments."""
        own = {k.removeprefix(self._before): v for k, v in weights.items() if k.startswith(self._before)}
        return self._swappable.run(own, function, *arguments)
