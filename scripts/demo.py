"""The main job in two minutes: tune one small frozen backbone four ways, on a drawn and on a real task.

Nothing is downloaded: backbone and images come with trimtab. Everything is in runs/demo afterwards. The settings were
chosen on validation images (LOG.md); what is shown is measured on the test images.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

import trimtab
from trimtab.data import BUILT_IN
from trimtab.progress import TerminalProgress
from trimtab.report import report

HOME = Path(__file__).parents[1] / "runs" / "demo"
BACKBONE = "trimtab-micro"
METHODS = {"linear": {}, "vpt": {"num_prompts": 10}, "ship": {"prompt_length": 10}, "svpt": {"num_prompts": 10}}
TASKS = {
    "sprites/orientation": ("where a shape points, in eight directions", {"epochs": 8, "lr": 0.01, "batch_size": 32}),
    "digits": ("handwritten digits", {"epochs": 3, "lr": 0.01, "batch_size": 32}),
}
SHORT = {"probe_epochs": 50, "warmup_epochs": 1.0}
"""So few epochs are no use to a head that starts from nothing."""
LINEAR = {"epochs": 50, "lr": 0.003, "batch_size": 64}
"""What takes the head alone as long as it has any use for; it is a matter of seconds."""
SHOWN = range(0, 700, 120)
"""Test images whose prediction is printed."""


def tune(
    task: str, method: str, console: Console, progress: TerminalProgress
) -> tuple[trimtab.FitResult, tuple[str, ...]]:
    """Fit and measure: the result, and a row of the table."""
    console.rule(f"{task}: {method}")
    result = trimtab.fit(
        task,
        out=HOME / task.replace("/", "-") / method,
        method=method,
        method_options=METHODS[method],
        backbone=BACKBONE,
        overwrite=True,
        progress=progress,
        **(LINEAR if method == "linear" else {**TASKS[task][1], **SHORT}),
    )
    measured = trimtab.evaluate(result.out, task, progress=progress)
    row = (
        f"{measured['accuracy']:.3f}",
        f"{result.trainable:,}",
        f"{result.adapter_bytes / 1000:.0f} kB",
        f"{result.seconds:.0f}",
    )
    return result, (method, *row)


def predict(task: str, folder: Path, console: Console) -> None:
    """A few test images, and what the model says of them."""
    images = [BUILT_IN[task].images("test")[number] for number in SHOWN]
    truth = [BUILT_IN[task].labels("test")[number] for number in SHOWN]
    console.print(f"\n{folder.name} on images it has not seen:", highlight=False)
    for prediction, label in zip(trimtab.load(folder).predict(images), truth, strict=True):
        said = f"{prediction.label} ({prediction.probability:.0%})"
        mark = "right" if prediction.label == label else f"it is {label}"
        console.print(f"  {prediction.path}: {said}, {mark}", markup=False, highlight=False, soft_wrap=True)


def main() -> None:
    """Fit, evaluate, predict and report, then say what to type next."""
    started = time.monotonic()
    console, progress = Console(), TerminalProgress()
    tables, results = [], {}
    for task, (about, _) in TASKS.items():
        columns = ("method", "test accuracy", "trained numbers", "adapter", "seconds")
        table = Table(*columns, title=f"{task} ({about})")
        for method in METHODS:
            results[task, method], row = tune(task, method, console, progress)
            table.add_row(*row)
        tables.append(table)
    console.rule("Results")
    for table in tables:
        console.print(table)
    for task in TASKS:
        # Which is best is a matter of validation images.
        best = max(METHODS, key=lambda method: results[task, method].val_accuracy)
        predict(task, results[task, best].out, console)
    page = report(
        [result.out for result in results.values()], out=HOME / "report.html", overwrite=True, progress=progress
    )
    console.print(
        f"\nAll of it with pictures: {os.path.relpath(page.file)} (open it in a browser)\n"
        f"Time: {time.monotonic() - started:.0f} s\n"
        "\nNow your own images, one folder a class:\n"
        "  trimtab fit MY_IMAGES --method vpt --out runs/mine\n"
        "  trimtab eval runs/mine MY_IMAGES --split val",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    sys.exit(main())
