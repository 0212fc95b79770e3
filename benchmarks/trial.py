"""One training with its measurement, as a worker process does it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.splits import Split
from trimtab.bench.provenance import finite, head_parameters, provenance


@dataclass(frozen=True)
class Budget:
    """What every row may spend."""

    train_images: int = 320
    val_images: int = 200
    epochs: int = 3
    batch_size: int = 16
    image_size: int = 112
    warmup_epochs: float = 0.5
    probe_epochs: int = 50
    """Epochs for which every row's head is trained first, on features computed once."""


@dataclass(frozen=True)
class Trial:
    """Everything that decides a trained model."""

    set: str
    seed: int
    method: str
    options: Mapping[str, Any]
    lr: float
    budget: Budget
    split: str
    """Digest of the training and validation images."""
    backbone: str
    resolved: Mapping[str, Any]
    """The method's whole configuration, and what the recipe decides besides the budget: a changed default is
    another trial."""

    def inputs(self) -> dict[str, Any]:
        """As JSON values."""
        return {**dataclasses.asdict(self), "options": dict(sorted(self.options.items()))}

    @property
    def key(self) -> str:
        """The trial's name: the same inputs are never trained twice."""
        text = json.dumps(self.inputs(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Place:
    """Where a trial finds its images and weights and leaves its model."""

    split: Split
    weights: Path
    out: Path
    device: str


def run_trial(trial: Trial, place: Place, keep: bool) -> dict[str, Any]:
    """Train and measure on the validation images; the record for the results.

    A training that diverged has accuracy 0, so that it is never chosen, and the reason beside it.
    """
    from trimtab import TrainingError, evaluate

    started = time.monotonic()
    try:
        trained = _train(trial, place)
    except TrainingError as error:
        if "diverged" not in str(error):  # a full disk says nothing about the trial
            raise
        shutil.rmtree(place.out, ignore_errors=True)
        return {
            "failed": str(error),
            "val_accuracy": 0.0,
            "val_loss": None,
            "val_mean_class_accuracy": 0.0,
            "wall_seconds": round(time.monotonic() - started, 2),
            **provenance(),
        }
    fitted = time.monotonic()
    val = evaluate(place.out, place.split.val, split="val", weights=place.weights, threads=1, device=place.device)
    ended = time.monotonic()
    if not keep:
        shutil.rmtree(place.out)
    return {
        "failed": None,
        "val_accuracy": val["accuracy"],
        "val_loss": finite(val["loss"]),
        "val_mean_class_accuracy": val["mean_class_accuracy"],
        **trained,
        "fit_seconds": round(fitted - started, 2),
        "evaluate_seconds": round(ended - fitted, 2),
        "wall_seconds": round(ended - started, 2),
        **provenance(),
    }


def read_test(trial: Trial, place: Place, images: Path) -> dict[str, Any]:
    """Measure a trained model on the test images in ``images``, which only the ledger can name."""
    from trimtab import evaluate

    names = ("accuracy", "mean_class_accuracy", "loss", "calibration_error")
    again = not (place.out / "adapter_config.json").is_file()
    if again:
        # Its folder is gone, as when another study did this trial. On a CPU the same bits come out.
        _train(trial, place)
    test = evaluate(place.out, images, split="test", weights=place.weights, threads=1, device=place.device)
    return {
        "failed": None,
        "trained_again": again,
        **{f"test_{name}": finite(test[name]) for name in names},
        "test_images": test["images"],
        "test_classes": test["classes"],
        "evaluate_seconds": test["seconds"],
    }


def _train(trial: Trial, place: Place) -> dict[str, Any]:
    from trimtab import fit

    shutil.rmtree(place.out, ignore_errors=True)
    budget = trial.budget
    result = fit(
        place.split.train,
        out=place.out,
        method=trial.method,
        method_options=trial.options,
        backbone=trial.backbone,
        weights=str(place.weights),
        image_size=str(budget.image_size),
        optimizer="adamw",
        lr=trial.lr,
        epochs=budget.epochs,
        warmup_epochs=budget.warmup_epochs,
        probe_epochs=budget.probe_epochs,
        batch_size=budget.batch_size,
        seed=trial.seed,
        val_fraction=0.0,
        select="last",
        threads=1,
        device=place.device,
    )
    config = json.loads((place.out / "adapter_config.json").read_text(encoding="utf-8"))
    metrics = json.loads((place.out / "metrics.json").read_text(encoding="utf-8"))
    return {
        "seconds": result.seconds,
        "trainable": result.trainable,
        "trainable_method": result.trainable - head_parameters(place.out),
        "adapter_bytes": result.adapter_bytes,
        "train_loss": metrics["history"][-1]["train_loss"],
        "peak_memory": result.peak_memory,
        "method_config": config["method_config"],
        "facts": config.get("facts", {}),
        "fingerprint": config["backbone"]["fingerprint"],
        "classes": len(config["labels"]),
    }
