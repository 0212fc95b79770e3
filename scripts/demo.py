"""The main job in a few minutes: tune one frozen backbone three ways on real handwritten digits.

Takes scikit-learn's digits, and ViT-Tiny's weights from ../shared, from timm's download, or (said plainly) none.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits

import trimtab
from trimtab.errors import BackboneError
from trimtab.progress import TerminalProgress
from trimtab.weights import load_backbone

BACKBONE = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
SHARED = Path(__file__).parents[2] / "shared" / "weights" / f"{BACKBONE}.fp16.safetensors"
HOME = Path(__file__).parents[1] / "runs" / "demo"
RUNS = {"linear": {}, "vpt": {"num_prompts": 10}, "ship": {"prompt_length": 10}}
TRAIN, TEST, SIDE = 600, 400, 64


def write_digits(folder: Path) -> None:
    """The digits as PNG files in train/ and test/, a folder a class."""
    digits = load_digits()
    for k in range(TRAIN + TEST):
        pixels = (digits.images[k] * (255 / 16)).astype("uint8")
        part = folder / ("train" if k < TRAIN else "test") / str(digits.target[k])
        part.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(part / f"{k:04}.png")


def find_weights(console: Console) -> tuple[str, Path | None]:
    """A backbone that can be had here, and its weights file if they are not timm's to fetch."""
    if SHARED.is_file():
        return BACKBONE, SHARED
    try:
        load_backbone(BACKBONE)
    except BackboneError:
        import timm
        from safetensors.torch import save_file

        console.print(
            "[bold]No pretrained weights can be had here, so the backbone is random.[/bold] "
            "The commands are the real ones; the accuracies say nothing about the methods."
        )
        path = HOME / "random.safetensors"
        save_file(timm.create_model(BACKBONE).state_dict(), path)
        return BACKBONE, path
    return BACKBONE, None


def main() -> None:
    """Fit, evaluate and predict, then say what to type next."""
    console, progress = Console(), TerminalProgress()
    shutil.rmtree(HOME, ignore_errors=True)
    data = HOME / "digits"
    write_digits(data)
    backbone, weights = find_weights(console)
    table = Table("method", "test accuracy", "trained numbers", "adapter", "seconds", title="Handwritten digits")
    for method, options in RUNS.items():
        console.rule(method)
        result = trimtab.fit(
            data,
            out=HOME / method,
            method=method,
            method_options=options,
            backbone=backbone,
            weights=None if weights is None else str(weights),
            image_size=str(SIDE),
            epochs=15,
            progress=progress,
        )
        measured = trimtab.evaluate(result.out, data, progress=progress)
        table.add_row(
            method,
            f"{measured['accuracy']:.3f}",
            f"{result.trainable:,}",
            f"{result.adapter_bytes / 1000:.0f} kB",
            f"{result.seconds:.0f}",
        )
    console.print(table)
    predictor = trimtab.load(HOME / method)
    for prediction in predictor.predict(sorted((data / "test").glob("*/*.png"))[::97]):
        console.print(f"{prediction.path}: {prediction.label} ({prediction.probability:.2f})", soft_wrap=True)
    console.print(
        "\nNow your own images, one folder a class:\n"
        f"  trimtab fit MY_IMAGES --method {method} --backbone {backbone}"
        + ("" if weights is None else f" --weights {os.path.relpath(weights)}")
        + " --out runs/mine",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    sys.exit(main())
