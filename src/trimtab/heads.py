"""Heads: what turns a backbone's output into the task's."""

from __future__ import annotations

from torch import Tensor, nn


class Classifier(nn.Module):
    """One linear layer on pooled features.

    Adds ``num_classes * (num_features + 1)`` parameters.

    Args:
        num_features: Width of the pooled features.
        num_classes: C.
    """

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(num_features, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Pooled features (B, num_features) to logits (B, C)."""
        logits: Tensor = self.linear(features)
        return logits
