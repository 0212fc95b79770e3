"""Building a model without memory for its numbers, and without the time to draw them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class SkipInit(TorchFunctionMode):
    """Leaves out what only changes numbers: meta tensors have none, and drawing them takes most of the time."""

    _changes = frozenset({"normal_", "uniform_", "erfinv_", "mul_", "add_", "clamp_", "fill_", "zero_"})
    _reads = frozenset({"item", "tolist"})

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # torch.nn.init hands its tensor on by name.
        tensor, name = args[0] if args else kwargs.get("tensor"), getattr(function, "__name__", "")
        if isinstance(tensor, Tensor) and tensor.is_meta:
            if name in self._changes:
                return tensor
            if name in self._reads:
                # timm before 1.0.17 reads rates of drop-path from a tensor; nothing here depends on them.
                return function(torch.zeros(tensor.shape, device="cpu"))
        return function(*args, **kwargs)
