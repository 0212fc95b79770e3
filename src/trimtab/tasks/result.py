"""The result of a training run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class FitResult:
    """The result of a training run."""

    out: Path
    """The adapter folder."""
    monitor: str
    """The validation metric that chose the epoch: accuracy of a classifier, miou of a segmenter."""
    validation: Mapping[str, float | None]
    """The validation metrics by name; ``None`` without validation images."""
    best_epoch: int
    """The epoch that was saved, counted from 1."""
    trainable: int
    """Trainable parameters, the head's included."""
    adapter_bytes: int
    """Size of the saved tensors."""
    seconds: float
    """Time taken, over all parts of a resumed run."""
    peak_memory: int
    """Most bytes the process (or the GPU) held."""
    precision: str = "fp32"
    """What was computed in: ``"fp32"`` or ``"bf16"``."""

    @property
    def val_accuracy(self) -> float | None:
        """Top-1 accuracy of a classifier on the validation images, 0 to 1; ``None`` without any."""
        return self.validation.get("accuracy")

    @property
    def val_miou(self) -> float | None:
        """Mean intersection over union of a segmenter on the validation images, 0 to 1; ``None`` without any."""
        return self.validation.get("miou")
