"""Classification: one linear layer on what the backbone pools."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trimtab.backbone import Backbone
from trimtab.heads.base import Head
from trimtab.stream import Stream


class Classifier(Head):
    """One linear layer on pooled features.

    Adds ``num_classes * (num_features + 1)`` parameters.

    Args:
        num_features: Width of the pooled features.
        num_classes: C.
    """

    out_indices = ()
    pooled_only = True
    linear: nn.Linear

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(num_features, num_classes)

    def read(self, backbone: Backbone, streams: Sequence[Stream]) -> Tensor:
        """Pooled features (B, num_features)."""
        return backbone.pool(streams[-1])

    def forward(self, features: Tensor) -> Tensor:
        """Pooled features (B, num_features) to logits (B, C)."""
        device = features.device.type
        # torch before 2.15 cannot say it of tensors without memory.
        if features.is_meta or not torch.is_autocast_enabled(device):
            logits: Tensor = self.linear(features)
            return logits
        # In float32, as the loss is: logits of bfloat16 have 8 bits.
        with torch.autocast(device, enabled=False):
            logits = self.linear(features.to(self.linear.weight.dtype))
        return logits
