"""Measure everything that is wanted of one GPU in one command of at most eight minutes.

    python benchmarks/gpu.py --out gpu.json
    python benchmarks/gpu.py --out gpu.json --tiny --device cpu

Parts, each with a budget of seconds, and whatever has been measured is in the file at any time:

* ``waits``: training epochs of several methods with ``torch.cuda.set_sync_debug_mode("error")``, images on the GPU and
  not;
* ``task`` and ``task compiled``: 1000 generated images, 100 epochs, ViT-B/16 with random weights, by ``trimtab.fit``
  from files to adapter, eager and with CUDA graphs;
* ``base`` and ``large``: forward pass, folded forward pass and training step of plain timm, LoRA of peft (where it is
  installed), VPT-deep and SHIP, 10 prompts, 224 px, batch 64, bfloat16; median ms, spread and peak memory.

``--tiny`` makes everything small, to try the program out; its numbers say nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import functools
import gc
import importlib.metadata
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

if not __package__:
    # Run as a file: the package is found from its parent, and its modules not as top-level ones.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

import trimtab
from benchmarks.subjects import CLASSES, MODELS, PEFT, Setting, forward, make, training_step
from trimtab.progress import Advance, Progress
from trimtab.training import inputs, losses
from trimtab.training.loop import Trainer

FORWARD = ("plain", "vpt", "folded vpt", "ship", "folded ship")
STEP = ("plain", PEFT, "vpt", "ship")


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is measured."""

    models: dict[str, str]
    """What parts of the table are called, and the model of each by its name in `subjects`."""
    task_model: str
    image_size: int
    batch_size: int
    prompts: int
    images: int
    epochs: int
    untimed: int
    """Passes of a subject before any is timed."""
    rounds: int
    """Timed rounds of a subject; each lasts about `seconds`."""
    seconds: float


FULL = Size({"base": "base", "large": "large"}, "base", 224, 64, 10, 1000, 100, 3, 7, 0.4)
TINY = Size({"base": "tiny"}, "tiny", 64, 2, 2, 10, 2, 0, 2, 0.0)
BUDGETS = {"waits": 50.0, "task": 100.0, "task compiled": 130.0, "base": 80.0, "large": 110.0}
"""Seconds of each part, 470 in all; what is not used is left for none of the others."""


class OutOfTimeError(Exception):
    """A part has used its time."""


class Report:
    """Results that are written whenever there are more.

    Args:
        path: The JSON file.
        about: What is known before anything is measured.
    """

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self.path, self.values = path, {**about, "parts": {}}
        self.write()

    def write(self) -> None:
        """Replace the file by one with everything so far."""
        draft = self.path.with_suffix(".tmp")
        draft.write_text(json.dumps(self.values, indent=1) + "\n", encoding="utf-8")
        draft.replace(self.path)

    def part(self, name: str, measure: Callable[[dict[str, Any], float], None], budget: float) -> None:
        """Run one part; what goes wrong in it ends it and no other, and is written down."""
        part: dict[str, Any] = {"budget_seconds": budget}
        self.values["parts"][name] = part
        started = time.perf_counter()
        try:
            measure(part, time.monotonic() + budget)
        except OutOfTimeError:
            part["stopped"] = f"its {budget:.0f} seconds were over"
        except Exception as error:  # noqa: BLE001 - a GPU that is lent for minutes has to measure what it can
            part["failed"] = f"{type(error).__name__}: {error}"
        part["seconds"] = round(time.perf_counter() - started, 2)
        self.write()
        print(f"{name}: {json.dumps({key: value for key, value in part.items() if key != 'rows'})}", flush=True)


def about(device: str, tiny: bool) -> dict[str, Any]:
    """Describe the machine and the versions."""
    gpu = torch.cuda.get_device_properties(0) if device == "cuda" else None
    packages = ("trimtab", "torch", "timm", "peft")
    return {
        "gpu": None if gpu is None else gpu.name,
        "gpu_memory_bytes": None if gpu is None else gpu.total_memory,
        "cuda": torch.version.cuda if device == "cuda" else None,
        "processors": os.cpu_count(),
        "tiny": tiny,
        **{name: importlib.metadata.version(name) for name in packages if importlib.util.find_spec(name)},
    }


# --- the table ---


def table(size: Size, model: str, device: str, write: Callable[[], None], part: dict[str, Any], end: float) -> None:
    """Measure forward passes and training steps of one model, in bfloat16."""
    rows = part["rows"] = []
    subjects = [("forward", name) for name in FORWARD]
    subjects += [("step", name) for name in STEP if name != PEFT or importlib.util.find_spec("peft")]
    # Random weights of a large model take seconds on a CPU: they are drawn once, and copied on the GPU.
    drawn = timm.create_model(MODELS[model], num_classes=CLASSES, img_size=size.image_size).to(device)
    with mock.patch.object(timm, "create_model", side_effect=lambda *_, **__: copy.deepcopy(drawn)):
        for kind, subject in subjects:
            if time.monotonic() > end:
                raise OutOfTimeError
            rows.append(timed(size, model, device, kind, subject))
            write()


def timed(size: Size, model: str, device: str, kind: str, subject: str) -> dict[str, Any]:
    """Measure one subject: median milliseconds, half the middle half's width, peak memory with its own weights."""
    clear(device)
    held = torch.cuda.memory_allocated() if device == "cuda" else 0
    setting = Setting(model, size.prompts, size.image_size, size.batch_size, "bf16", device, False)
    trains_all = kind == "step" and subject == "plain"
    # What is not trimtab's keeps float32 weights for training and is run under autocast, as is usual.
    weights = "fp32" if kind == "step" and subject in ("plain", PEFT) else "bf16"
    module = make(subject, dataclasses.replace(setting, dtype=weights)).to(device)
    if trains_all:
        module.requires_grad_(True)
    images = torch.randn(size.batch_size, 3, size.image_size, size.image_size, device=device)
    run = (forward if kind == "forward" else training_step)(module, images, "bf16")
    seconds = repeat(run, size, device)
    low, middle, high = statistics.quantiles(seconds, n=4)
    return {
        "model": MODELS[model],
        "kind": kind,
        "subject": "plain, all parameters" if trains_all else subject,
        "batch_size": size.batch_size,
        "image_size": size.image_size,
        "prompts": size.prompts,
        "dtype": "bf16",
        "trainable": sum(p.numel() for p in module.parameters() if p.requires_grad),
        "ms": 1000 * middle,
        "spread": (high - low) / 2 / middle,
        "images_per_second": size.batch_size / middle,
        "peak_bytes": torch.cuda.max_memory_allocated() - held if device == "cuda" else None,
    }


def repeat(run: Callable[[], Any], size: Size, device: str) -> list[float]:
    """Seconds a pass, one value a round of as many passes as fill its time."""
    for _ in range(size.untimed):
        run()
    once = _seconds(run, 1, device)
    passes = max(1, round(size.seconds / once))
    return [_seconds(run, passes, device) for _ in range(size.rounds)]


def _seconds(run: Callable[[], Any], passes: int, device: str) -> float:
    synchronize(device)
    started = time.perf_counter()
    for _ in range(passes):
        run()
    synchronize(device)
    return (time.perf_counter() - started) / passes


def synchronize(device: str) -> None:
    """Wait for the GPU, if there is one."""
    if device == "cuda":
        torch.cuda.synchronize()


def clear(device: str) -> None:
    """Forget memory that nothing uses, and the peak."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


# --- whole trainings ---


def write_images(folder: Path, count: int, side: int, classes: int = 10) -> None:
    """Write JPEGs of smooth noise that leans to a colour of its class, in class folders."""
    generator = np.random.default_rng(0)
    for number in range(count):
        label = number % classes
        small = generator.integers(0, 256, (16, 16, 3))
        small[..., label % 3] = (small[..., label % 3] + 25 * label) // 2
        place = folder / f"class{label}" / f"{number:04}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(small.astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
        image.save(place, quality=90)


class Stages(Progress):
    """Seconds of each stage, and what was said."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    @contextlib.contextmanager
    def stage(self, title: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
        started = time.perf_counter()
        with super().stage(title, total, unit, done) as advance:
            yield advance
        self.seconds[title] = round(time.perf_counter() - started, 2)


class Workplace:
    """Images and weights for trainings, in a folder.

    Args:
        folder: Where they are made.
        size: How many, and for which model.
        device: ``"cuda"`` or ``"cpu"``.
    """

    def __init__(self, folder: Path, size: Size, device: str) -> None:
        self.folder, self.size, self.device = folder, size, device
        self.images, self.backbone = folder / "images", MODELS[size.task_model]
        self.weights = folder / "weights.safetensors"
        write_images(self.images, size.images, 300 if size is FULL else 40)
        torch.manual_seed(0)
        values = timm.create_model(self.backbone, img_size=size.image_size).state_dict()
        save_file({name: value.contiguous() for name, value in values.items()}, self.weights)

    def fit(self, method: str, end: float, progress: Progress, **options: Any) -> trimtab.FitResult:
        """Train, unless the time is over before."""

        def watch(history: Any, model: Any) -> None:
            if time.monotonic() > end:
                raise OutOfTimeError

        with tempfile.TemporaryDirectory(dir=self.folder) as home:
            return trimtab.fit(
                self.images,
                out=Path(home) / "run",
                method=method,
                backbone=self.backbone,
                weights=str(self.weights),
                image_size=str(self.size.image_size),
                batch_size=self.size.batch_size,
                val_fraction=0.0,
                threads=min(os.cpu_count() or 1, 16),
                device="cpu" if self.device == "cpu" else "auto",
                watch=watch,
                progress=progress,
                **options,
            )

    def task(self, part: dict[str, Any], end: float, *, compiled: bool = False) -> None:
        """Train VPT-deep on everything in bfloat16 and measure the seconds, from files to the saved adapter."""
        stages, started = Stages(), time.perf_counter()
        part |= {"backbone": self.backbone, "images": self.size.images, "epochs": self.size.epochs, "method": "vpt"}
        prompts = {"num_prompts": self.size.prompts, "dropout": 0.0}
        try:
            result = self.fit(
                "vpt", end, stages, method_options=prompts, epochs=self.size.epochs, precision="bf16", compile=compiled
            )
            part["fit_seconds"] = round(time.perf_counter() - started, 2)
            part["peak_bytes"] = result.peak_memory
        finally:
            part |= {"stages": stages.seconds, "said": stages.said}

    def waits(self, part: dict[str, Any], end: float) -> None:
        """Train one epoch with every wait for the GPU in a step an error; the reading of losses is allowed to wait."""
        rows = part["rows"] = []
        if self.device != "cuda":
            part["skipped"] = "there is no CUDA device"
            return
        for method in ("vpt", "ship", "lora", "adapter", "linear"):
            # Without augmentation features stand for the images of linear probing.
            augment = "none" if method == "linear" else "flip"
            for share in (inputs.DEVICE_SHARE, 0.0):
                with mock.patch.object(inputs, "DEVICE_SHARE", share), waiting_is_an_error():
                    row = {"method": method, "images": "on the GPU" if share else "pinned"}
                    try:
                        self.fit(method, end, Stages(), epochs=2, augment=augment, probe_epochs=0, limit=200)
                        row["waits"] = "none"
                    except RuntimeError as error:
                        row["waits"] = str(error).splitlines()[0]
                    rows.append(row)


@contextlib.contextmanager
def waiting_is_an_error() -> Iterator[None]:
    """Make torch refuse to wait for the GPU inside training epochs, but for the reading of losses."""
    epoch, fetch = Trainer._epoch, losses.fetch

    def strict(*arguments: Any) -> Any:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return epoch(*arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def allowed(values: torch.Tensor) -> list[float]:
        torch.cuda.set_sync_debug_mode("default")
        try:
            return fetch(values)
        finally:
            torch.cuda.set_sync_debug_mode("error")

    with mock.patch.object(Trainer, "_epoch", strict), mock.patch.object(losses, "fetch", allowed):
        yield


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure trimtab on one GPU, in at most eight minutes.")
    parser.add_argument("--out", type=Path, required=True, help="JSON file, written again after every measurement")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--parts", nargs="+", choices=list(BUDGETS), default=list(BUDGETS))
    parser.add_argument("--tiny", action="store_true", help="small models and few images, to try the program out")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line says."""
    parsed = parse(arguments)
    if parsed.device == "cuda" and not torch.cuda.is_available():
        print("There is no CUDA device here; say --device cpu, with --tiny.", file=sys.stderr)
        return 1
    size, device = TINY if parsed.tiny else FULL, parsed.device
    report = Report(parsed.out, about(device, parsed.tiny))
    with tempfile.TemporaryDirectory() as home:
        place = Workplace(Path(home), size, device)
        measures: dict[str, Callable[[dict[str, Any], float], None]] = {
            "waits": place.waits,
            "task": place.task,
            "task compiled": functools.partial(place.task, compiled=True),
        }
        for name, model in size.models.items():
            measures[name] = functools.partial(table, size, model, device, report.write)
        for name in parsed.parts:
            if name in measures:
                report.part(name, measures[name], BUDGETS[name])
    return int(any("failed" in part for part in report.values["parts"].values()))


if __name__ == "__main__":
    sys.exit(main())
