"""The main job in a few minutes: tune one small frozen backbone four ways, on a drawn and on a real task.

Nothing is downloaded: backbone and images come with trimtab. Everything is in runs/demo afterwards. The settings were
chosen on validation images (LOG.md); what is shown is measured on the test images.
"""

from __future__ import annotations

import base64
import io
import json
import math
import multiprocessing
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from rich.console import Console
from rich.table import Table

import trimtab
from trimtab.data import BUILT_IN
from trimtab.progress import Advance, Progress, TerminalProgress
from trimtab.reporting import report

HOME = Path(__file__).parents[1] / "runs" / "demo"
BACKBONE = "trimtab-micro"
TASKS: Mapping[str, str] = {
    "sprites/middle": "the colour of the sprite in the middle, others around it",
    "digits": "handwritten digits",
}
METHODS = ("linear", "vpt", "ship", "svpt")
SIZES = {"sprites/middle": 48, "digits": 32}
"""Pixels of the images' sides: fewer than the backbone's 64 cost less and lose nothing here (LOG.md)."""
OPTIONS: Mapping[str, Mapping[str, Mapping[str, float]]] = {
    "sprites/middle": {
        "vpt": {"num_prompts": 50},
        "ship": {"prompt_length": 50, "attention_scale": 0.5, "drop_path": 0.0},
        "svpt": {"num_prompts": 50},
    },
    "digits": {"vpt": {"num_prompts": 10}, "ship": {"prompt_length": 10}, "svpt": {"num_prompts": 10}},
}
SHORT: Mapping[str, Any] = {"epochs": 4, "lr": 0.01, "batch_size": 8, "probe_epochs": 50, "warmup_epochs": 0.5}
"""So few epochs are no use to a head that starts from nothing."""
LINEAR: Mapping[str, Any] = {"epochs": 50, "lr": 0.01, "batch_size": 64}
"""What takes the head alone as long as it has any use for; it is a matter of seconds."""
SPLIT = "test"
SHOWN = range(0, 700, 120)
"""Test images whose prediction is printed."""


Results = dict[tuple[str, str], tuple[trimtab.FitResult, float]]
"""By task and method: the run, and its accuracy."""


class Relay(Progress):
    """Hands the training steps of a worker on to the process that shows the progress."""

    def __init__(self, counts: Queue[int]) -> None:
        self.counts = counts

    @contextmanager
    def stage(self, title: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
        """Pass on the steps of training, and nothing else."""

        def advance(count: int = 1, note: str = "") -> None:
            if title == "Training":
                self.counts.put(count)

        yield advance


@dataclass(frozen=True)
class Job:
    """One run of the demo."""

    task: str
    method: str
    out: Path
    options: Mapping[str, Any]
    settings: Mapping[str, Any]
    split: str
    """What is measured on."""

    @property
    def steps(self) -> int:
        """Steps of training; none for a head alone, whose stored features take no time."""
        if self.method == "linear":
            return 0
        images = self.settings.get("limit") or BUILT_IN[self.task].sizes["train"]
        return int(self.settings["epochs"] * math.ceil(images / self.settings["batch_size"]))


def jobs() -> list[Job]:
    """Every method on every task; of a task the longest first."""
    return [
        Job(
            task,
            method,
            HOME / task.replace("/", "-") / method,
            OPTIONS[task].get(method, {}),
            {"image_size": SIZES[task], **(LINEAR if method == "linear" else SHORT)},
            SPLIT,
        )
        for task in TASKS
        for method in reversed(METHODS)
    ]


def tune(job: Job, threads: int, counts: Queue[int]) -> tuple[trimtab.FitResult, float]:
    """Fit and measure, in a worker: the result and its accuracy."""
    result = trimtab.fit(
        job.task,
        out=job.out,
        method=job.method,
        method_options=job.options,
        backbone=BACKBONE,
        overwrite=True,
        threads=threads,
        progress=Relay(counts) if job.steps else Progress(),
        **job.settings,
    )
    return result, trimtab.evaluate(result.out, job.task, split=job.split, threads=threads)["accuracy"]


def tune_all(progress: Progress) -> Results:
    """As many at a time as there are cores: one thread wastes least of a core on so small a model."""
    every = jobs()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(cores, len(every))
    # Libraries of the workers read it when they start.
    os.environ["OMP_NUM_THREADS"] = str(cores // workers)
    with (
        multiprocessing.Manager() as manager,
        ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool,
        progress.stage("Tuning", sum(job.steps for job in every), "steps") as advance,
    ):
        counts, done = manager.Queue(), {}
        waiting = {pool.submit(tune, job, cores // workers, counts): job for job in every}
        while waiting:
            with suppress(Empty):
                advance(counts.get(timeout=0.2))
            for future in [future for future in waiting if future.done()]:
                job, (result, accuracy) = waiting.pop(future), future.result()
                done[job.task, job.method] = result, accuracy
                progress.say(f"{job.task}, {job.method}: accuracy {accuracy:.3f} after {result.seconds:.0f} s")
    return done


def predict(task: str, folder: Path, console: Console) -> None:
    """A few test images, and what the model says of them."""
    images = [BUILT_IN[task].images("test")[number] for number in SHOWN]
    truth = [BUILT_IN[task].labels("test")[number] for number in SHOWN]
    console.print(f"\n{folder.name} on images it has not seen:", highlight=False)
    for prediction, label in zip(trimtab.load(folder).predict(images), truth, strict=True):
        said = f"{prediction.label} ({prediction.probability:.0%})"
        mark = "right" if prediction.label == label else f"it is {label}"
        console.print(f"  {prediction.path}: {said}, {mark}", markup=False, highlight=False, soft_wrap=True)


def tables(results: Results) -> Iterator[Table]:
    """One for each task."""
    for task, about in TASKS.items():
        columns = ("method", "test accuracy", "trainable parameters", "adapter", "seconds")
        table = Table(*columns, title=f"{task} ({about})")
        for method in METHODS:
            result, accuracy = results[task, method]
            size = f"{result.adapter_bytes / 1000:.0f} kB"
            table.add_row(method, f"{accuracy:.3f}", f"{result.trainable:,}", size, f"{result.seconds:.0f}")
        yield table


def serve_a_moment(folders: Mapping[str, Path], console: Console) -> None:
    """Serve adapters by a real server, ask it about images of all tasks at once, and end it."""
    places = [f"{task.replace('/', '-')}={folder}" for task, folder in folders.items()]
    command = [sys.executable, "-m", "trimtab", "serve", *places, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            address = _address(server)
            inputs, truth = _mixed()
            body = json.dumps({"inputs": inputs, "parameters": {"top_k": 1}}).encode()
            asked = urllib.request.Request(  # noqa: S310 - our own server
                f"{address}predict", body, {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(asked) as reply:  # noqa: S310
                outputs = json.load(reply)["outputs"]
        finally:
            server.terminate()
    console.print("\nBoth by one server, images of two tasks in one request:", highlight=False)
    for given, label, output in zip(inputs, truth, outputs, strict=True):
        (task,) = given["tasks"]
        best = output["tasks"][task][0]
        mark = "right" if best["label"] == label else f"it is {label}"
        text = f"  {task}: {best['label']} ({best['score']:.0%}), {mark}"
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def _address(server: subprocess.Popen[str]) -> str:
    """Return the address of the page, which a server says once it answers."""
    for line in server.stdout or ():
        word, _, address = line.partition(" ")
        if word == "page":
            return address.strip()
    raise SystemExit("The server ended; what it said is above.")


def _mixed() -> tuple[list[dict[str, Any]], list[str]]:
    """Test images of all tasks in turn, as a request has them, and their labels."""
    inputs, truth = [], []
    for number in SHOWN[:3]:
        for task in TASKS:
            buffer = io.BytesIO()
            BUILT_IN[task].images("test")[number].open().save(buffer, "PNG")
            inputs.append({"image": base64.b64encode(buffer.getvalue()).decode(), "tasks": [task.replace("/", "-")]})
            truth.append(BUILT_IN[task].labels("test")[number])
    return inputs, truth


def main() -> None:
    """Fit, evaluate, predict, report and serve, then say what to type next."""
    started = time.monotonic()
    console, progress = Console(), TerminalProgress()
    console.print(f"Tuning {BACKBONE} on {' and '.join(TASKS)} by {', '.join(METHODS)}.", highlight=False)
    results = tune_all(progress)
    for table in tables(results):
        console.print(table)
    chosen = {}
    for task in TASKS:
        # Which is best is a matter of validation images.
        best = max(METHODS, key=lambda method: results[task, method][0].val_accuracy)
        chosen[task] = results[task, best][0].out
        predict(task, chosen[task], console)
    serve_a_moment(chosen, console)
    folders = [results[task, method][0].out for task in TASKS for method in METHODS]
    page = report(folders, out=HOME / "report.html", overwrite=True, progress=progress)
    console.print(
        f"\nAll of it with pictures: {os.path.relpath(page.file)} (open it in a browser)\n"
        f"Time: {time.monotonic() - started:.0f} s\n"
        f"\nAll of them served, with a page to drop images on at http://127.0.0.1:8000/ :\n"
        f"  trimtab serve {os.path.relpath(HOME)}\n"
        "\nNow your own images, one folder a class:\n"
        "  trimtab fit MY_IMAGES --method vpt --out runs/mine\n"
        "  trimtab eval runs/mine MY_IMAGES --split val",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    sys.exit(main())
