"""Loss and metrics of a task."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def classification_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of logits (B, C) and class indices (B,), summed over images."""
    return F.cross_entropy(logits.float(), targets, reduction="sum")


def classification_metrics(logits: Tensor, targets: Tensor) -> dict[str, float]:
    """Metrics over a whole set.

    Args:
        logits: (n, C).
        targets: (n,) class indices.

    Returns:
        ``accuracy`` (top-1), ``mean_class_accuracy`` (over the classes that occur), ``loss`` (mean
        cross-entropy) and ``calibration_error`` (expected, 15 bins), all but the loss in 0 to 1.
    """
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

    logits, targets = logits.float().cpu(), targets.cpu()
    classes = logits.shape[1]
    per_class = multiclass_accuracy(logits, targets, num_classes=classes, average=None)
    present = torch.bincount(targets, minlength=classes) > 0
    return {
        "accuracy": float(multiclass_accuracy(logits, targets, num_classes=classes, average="micro")),
        "mean_class_accuracy": float(per_class[present].mean()),
        "loss": float(classification_loss(logits, targets)) / targets.shape[0],
        "calibration_error": float(multiclass_calibration_error(logits, targets, num_classes=classes)),
    }
