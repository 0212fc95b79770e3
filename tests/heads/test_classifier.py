"""The classifier."""

from __future__ import annotations

import torch

from trimtab.heads import Classifier


def test_maps_features_to_logits() -> None:
    assert Classifier(8, 3)(torch.zeros(5, 8)).shape == (5, 3)


def test_is_linear() -> None:
    head, a, b = Classifier(8, 3), torch.randn(1, 8), torch.randn(1, 8)
    torch.testing.assert_close(head(a + b), head(a) + head(b) - head.linear.bias)


def test_parameter_formula() -> None:
    assert sum(parameter.numel() for parameter in Classifier(8, 3).parameters()) == 3 * (8 + 1)
