"""Methods under one segmentation head on CamVid; the same command again goes on where it was stopped.

    python benchmarks/camvid.py
    python benchmarks/camvid.py --table docs/comparison/camvid.md

Every row has the same head, images, epochs and number of learning rates. The learning rate is chosen on the validation
images with seed 0; the test images are read once for each row and seed, for the model that was chosen, and the reading
is on record before it happens. Trained models stay in ``WORK/models`` to be looked at (``trimtab predict``).
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import statistics
import sys
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.studies import BACKBONE
from trimtab.bench.results import Record, Results, repair
from trimtab.bench.workers import THREADS, alone, set_up_worker
from trimtab.errors import DataError, TrainingError, TrimtabError
from trimtab.progress import TerminalProgress
from trimtab.storage.files import write_text

CLASSES = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist", "void",
)  # fmt: skip
"""By their number in the masks."""


@dataclass(frozen=True)
class Row:
    """A method with its options, and the learning rates that are tried."""

    name: str
    method: str
    options: Mapping[str, Any]
    lrs: tuple[float, float, float]


_PROMPTS = (1e-3, 3e-3, 1e-2)
ROWS = (
    Row("head only", "linear", {}, (1e-3, 3e-3, 1e-2)),
    Row("VPT-deep", "vpt", {"num_prompts": 10}, _PROMPTS),
    Row("SHIP", "ship", {"prompt_length": 10, "prototypes": 100}, _PROMPTS),
    Row("SVPT", "svpt", {"num_prompts": 10}, _PROMPTS),
    Row("LoRA", "lora", {"rank": 8}, (3e-4, 1e-3, 4e-3)),
    Row("full", "full", {}, (1e-5, 1e-4, 3e-4)),
)


@dataclass(frozen=True)
class Budget:
    """What every row may spend."""

    head: str = "linear"
    image_size: str = "144x192"
    train_images: int = 367
    val_images: int = 101
    epochs: int = 6
    warmup_epochs: float = 1.0
    probe_epochs: int = 20
    """Epochs for which every row's head is trained first, on middle windows; the head alone has these more."""
    batch_size: int = 8


@dataclass(frozen=True)
class Trial:
    """Everything that decides a trained model."""

    row: str
    method: str
    options: Mapping[str, Any]
    lr: float
    seed: int
    budget: Budget

    def inputs(self) -> Record:
        """As JSON values."""
        values: Record = json.loads(json.dumps({**dataclasses.asdict(self), "options": dict(self.options)}))
        return values

    @property
    def key(self) -> str:
        """The trial's name: the same inputs are never trained twice."""
        return hashlib.sha256(json.dumps(self.inputs(), sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Place:
    """Where a trial finds its images and weights and leaves its model."""

    train: Path
    val: Path
    palette: Path
    weights: Path
    out: Path


def train(trial: Trial, place: Place) -> Record:
    """Train and measure on the validation images; one that diverged has an mIoU of 0."""
    from trimtab import evaluate, fit

    started, budget = time.monotonic(), trial.budget
    shutil.rmtree(place.out, ignore_errors=True)
    try:
        result = fit(
            place.train,
            out=place.out,
            task="segmentation",
            task_options={"head": budget.head, "palette": str(place.palette)},
            method=trial.method,
            method_options=trial.options,
            backbone=BACKBONE,
            weights=str(place.weights),
            image_size=budget.image_size,
            optimizer="adamw",
            lr=trial.lr,
            epochs=budget.epochs + (budget.probe_epochs if trial.method == "linear" else 0),
            warmup_epochs=budget.warmup_epochs,
            probe_epochs=budget.probe_epochs,
            batch_size=budget.batch_size,
            seed=trial.seed,
            val_fraction=0.0,
            select="last",
            threads=1,
            device="cpu",
        )
    except TrainingError as error:
        if "diverged" not in str(error):
            raise
        return {"failed": str(error), "val_miou": 0.0, "wall_seconds": round(time.monotonic() - started, 1)}
    metrics = json.loads((place.out / "metrics.json").read_text(encoding="utf-8"))
    val = evaluate(place.out, place.val, split="val", weights=place.weights, threads=1, device="cpu")
    return {
        "failed": None,
        **{f"val_{name}": val[name] for name in ("miou", "pixel_accuracy", "loss", "iou")},
        "trainable": result.trainable,
        "head_parameters": metrics["head_parameters"],
        "adapter_bytes": result.adapter_bytes,
        "train_loss": metrics["history"][-1]["train_loss"],
        "wall_seconds": round(time.monotonic() - started, 1),
    }


def read_test(images: Path, place: Place) -> Record:
    """Measure a trained model on the test images."""
    from trimtab import evaluate

    test = evaluate(place.out, images, split="test", weights=place.weights, threads=1, device="cpu")
    names = ("miou", "pixel_accuracy", "mean_class_accuracy", "loss", "iou", "images")
    return {f"test_{name}": test[name] for name in names}


class Run:
    """The parent process: gives trials to workers and writes down what they return."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.work: Path = arguments.work
        self.data: Path = arguments.shared / "data" / "camvid"
        self.weights: Path = arguments.shared / "weights" / f"{BACKBONE}.fp16.safetensors"
        self.seeds: int = arguments.seeds
        self.workers: int = arguments.workers
        self.reads_test: bool = arguments.test
        self.budget = Budget(**{f.name: getattr(arguments, f.name) for f in dataclasses.fields(Budget)})
        self.rows = [row for row in ROWS if not arguments.rows or row.name in arguments.rows]
        self.progress = TerminalProgress()
        repair(self.work / "trials.jsonl")
        self.results = Results(self.work / "trials.jsonl")
        self.palette = self.work / "palette.csv"
        write_text(self.palette, "value,name\n" + "".join(f"{k},{name}\n" for k, name in enumerate(CLASSES)))
        self.train = self._images("training", "train", self.budget.train_images)
        self.val = self._images("validation", "val", self.budget.val_images)

    def go(self) -> None:
        """Tune every row, train the other seeds with what was chosen, and read the test images."""
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self.workers, mp_context=context, initializer=set_up_worker) as pool:
            self._train(pool, [self._trial(row, lr, 0) for row in self.rows for lr in row.lrs])
            finals = [self._trial(row, self.choice(row), seed) for row in self.rows for seed in range(self.seeds)]
            self._train(pool, finals)
            for trial in finals if self.reads_test else ():
                self._test(pool, trial)

    def choice(self, row: Row) -> float:
        """The learning rate with the best validation mIoU; the first of equals."""
        tried = [self._trial(row, lr, 0) for lr in row.lrs]
        return max(tried, key=lambda trial: float(self.results.trials[trial.key]["val_miou"])).lr

    def _trial(self, row: Row, lr: float, seed: int) -> Trial:
        return Trial(row.name, row.method, row.options, lr, seed, self.budget)

    def _place(self, trial: Trial) -> Place:
        return Place(self.train, self.val, self.palette, self.weights, self.work / "models" / trial.key)

    def _train(self, pool: ProcessPoolExecutor, trials: Iterable[Trial]) -> None:
        missing = [trial for trial in trials if trial.key not in self.results.trials]
        running = {pool.submit(train, trial, self._place(trial)): trial for trial in missing}
        for done, future in enumerate(as_completed(running), start=1):
            trial, record = running[future], future.result()
            self.results.append("trial", {"key": trial.key, **trial.inputs(), **record})
            told = record["failed"] or f"val mIoU {record['val_miou']:.3f}, {record['wall_seconds']:.0f} s"
            self.progress.say(f"{done}/{len(running)} {trial.row}, lr {trial.lr:g}, seed {trial.seed}: {told}")

    def _test(self, pool: ProcessPoolExecutor, trial: Trial) -> None:
        where = {"row": trial.row, "seed": trial.seed, "budget": dataclasses.asdict(trial.budget)}
        if self.results.last("test", **where) or self.results.trials[trial.key]["failed"]:
            return
        place = self._place(trial)
        if not (place.out / "adapter_config.json").is_file():
            # On a CPU the same bits come out.
            pool.submit(train, trial, place).result()
        images = self._images("test", "test", None)
        self.results.append("test-opened", {**where, "key": trial.key})
        record = pool.submit(read_test, images, place).result()
        self.results.append("test", {**where, "key": trial.key, "lr": trial.lr, **record})
        self.progress.say(f"{trial.row}, seed {trial.seed}: test mIoU {record['test_miou']:.3f}")

    def _images(self, folder: str, split: str, count: int | None) -> Path:
        """A list of images of a part, drawn by their names: all, or the first ``count`` by a hash."""
        names = sorted((self.data / "images" / folder).glob("*.jpg"), key=lambda path: _hash(path.name))
        if not names:
            raise DataError(f"There are no images in {self.data / 'images' / folder}; name the folder with --shared.")
        buffer = io.StringIO(newline="")
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(("path", "mask", "split"))
        for image in sorted(names[:count]):
            mask = self.data / "annotations" / folder / f"{image.stem}.png"
            writer.writerow((image.resolve(), mask.resolve(), split))
        path = self.work / f"{split}{'' if count is None else f'-{count}'}.csv"
        write_text(path, buffer.getvalue())
        return path


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def table(results: Results, budget: Budget) -> str:
    """What was measured, in Markdown."""
    told = (
        f"ViT-Tiny, head `{budget.head}`, windows of {budget.image_size}, {budget.train_images} training images,"
        f" {budget.epochs} epochs of batches of {budget.batch_size}, the head trained for {budget.probe_epochs} epochs"
        " first (the head alone: for both together). Learning rate of three, chosen on the validation images with"
        " seed 0; test images read once a model."
    )
    lines = [
        "# CamVid: methods under one segmentation head",
        "",
        told,
        "Made by `python benchmarks/camvid.py`.",
        "",
        "| row | trained, without head | test mIoU | pixel accuracy | val mIoU | learning rate | seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    per_class = ["", "Test IoU by class, mean of the seeds:", "", "| row | " + " | ".join(CLASSES[:-1]) + " |"]
    per_class.append("|---" * len(CLASSES) + "|")
    for row in ROWS:
        tests = results.find("test", row=row.name, budget=dataclasses.asdict(budget))
        if not tests:
            continue
        trials = [results.trials[test["key"]] for test in tests]
        own = trials[0]["trainable"] - trials[0]["head_parameters"]
        cells = [_mean([t["test_miou"] for t in tests]), _mean([t["test_pixel_accuracy"] for t in tests])]
        cells += [_mean([t["val_miou"] for t in trials]), f"{tests[0]['lr']:g}", str(len(tests))]
        lines.append(f"| {row.name} | {own:,} | {' | '.join(cells)} |")
        of_class = [[t["test_iou"][name] or 0.0 for t in tests] for name in CLASSES[:-1]]
        per_class.append(f"| {row.name} | {' | '.join(f'{100 * statistics.mean(v):.1f}' for v in of_class)} |")
    return "\n".join([*lines, *per_class, ""])


def _mean(values: list[float]) -> str:
    """In percent, with the standard deviation over seeds where there are several."""
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{spread}"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Compare methods on CamVid; goes on where it was stopped.")
    for field in dataclasses.fields(Budget):
        kind = {"str": str, "int": int, "float": float}[str(field.type)]
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default)
    parser.add_argument("--rows", nargs="+", choices=[row.name for row in ROWS], help="only these")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1, help="processes of one thread each")
    parser.add_argument("--work", type=Path, default=Path("runs/camvid"))
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="folder with data/ and weights/")
    parser.add_argument("--no-test", dest="test", action="store_false", help="stop before the test images")
    parser.add_argument("--table", type=Path, help="write the table of what is measured there, and run nothing")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line says."""
    parsed = parse(arguments)
    # Before any worker starts: libraries read it when they are imported.
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        with alone(parsed.work):
            run = Run(parsed)
            if parsed.table is not None:
                write_text(parsed.table, table(run.results, run.budget))
            else:
                run.go()
    except (TrimtabError, OSError) as error:
        TerminalProgress().say(f"{type(error).__name__}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
