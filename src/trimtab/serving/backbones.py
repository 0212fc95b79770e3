"""The backbone of a bank, in the precisions and at the image sizes that its tasks want."""

from __future__ import annotations

import threading
from pathlib import Path

import torch
from torch import nn

from trimtab.backbone import Backbone
from trimtab.errors import ConfigError
from trimtab.inference.evaluate import resolve_device
from trimtab.ops.precision import Precision, checked, resolve_precision


class Backbones:
    """Variants of one backbone, each made when it is first wanted and then kept.

    Args:
        opened: The backbone; it is never changed.
        precision: ``"fp32"``, ``"bf16"``, or ``"auto"``: that of each adapter's training, where the device has matrix
            units for bfloat16. One whose weights are bfloat16 already stays so.

    Raises:
        ConfigError: If the precision is none.
    """

    def __init__(self, opened: Backbone, precision: str) -> None:
        if precision != "auto":
            checked(precision, "precision", "auto")
        low = opened.low_precision is not None
        self._asked = "bf16" if low else precision
        self.first = opened.cast(torch.bfloat16) if self._asked == "bf16" and not low else opened
        """The one that folding reads: in float32, unless all is asked for in bfloat16."""
        self._first: Precision = "bf16" if self._asked == "bf16" else "fp32"
        self._stored: dict[Precision, Backbone] = {self._first: self.first}
        self._sized: dict[tuple[Precision, tuple[int, int]], Backbone] = {}
        self._lock = threading.Lock()

    def precision_of(self, trained: str) -> Precision:
        """Return the precision in which to run an adapter that was trained in ``trained``."""
        return resolve_precision(self._asked, self.first.device, trained=trained)

    def at(self, size: tuple[int, int], precision: Precision | None = None) -> Backbone:
        """Return the backbone for images of (height, width), in a precision or in that of :attr:`first`.

        Raises:
            BackboneError: If it cannot take images of this size.
        """
        precision = precision or self._first
        with self._lock:
            if precision not in self._stored:
                self._stored[precision] = self.first.cast(torch.bfloat16)
            if (precision, size) not in self._sized:
                self._sized[precision, size] = self._stored[precision].at_image_size(*size)
            return self._sized[precision, size]

    def addresses(self) -> set[int]:
        """Return where the tensors lie that all tasks share."""
        with self._lock:
            stored = list(self._stored.values())
        return {tensor.data_ptr() for backbone in stored for tensor in backbone.state_dict().values()}


def opened_backbone(backbone: str | Backbone | nn.Module, weights: str | Path | None, device: str) -> Backbone:
    """Open a backbone by name, or take one that is open.

    Raises:
        BackboneError: If it cannot be had.
        ConfigError: If there are weights beside one that is open.
    """
    if isinstance(backbone, str):
        from trimtab.backbone.weights import load_backbone

        return load_backbone(backbone, weights=weights, device=resolve_device(device))
    if weights is not None:
        raise ConfigError("weights are given beside a backbone that is open; give its name instead, or no weights.")
    return backbone if isinstance(backbone, Backbone) else Backbone(backbone)
