"""A benchmark without training: sets of empty files, and a worker in this process that makes up what it measures."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest

from tests.families import shared_backbone
from trimtab.bench.benchmark import RESULTS, bench
from trimtab.bench.results import Results
from trimtab.bench.scheduler import Outcome
from trimtab.bench.trial import Trial, read_test, run_trial

SECRET = "held_back"
"""Stands in the name of every test image, and of no other."""


def share(text: str) -> float:
    """A number from 0 to 1 that only the text decides."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:6], 16) / 0xFFFFFF


def make_suite(folder: Path, tasks: dict[str, str]) -> Path:
    """A suite file with these tasks and groups; every set has two classes."""
    for task in tasks:
        for split, each in (("train", 5), ("test", 3)):
            for label in ("ant", "bee"):
                for k in range(each):
                    name = f"{SECRET}{k}.png" if split == "test" else f"{k}.png"
                    path = folder / task / split / label / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.touch()
    suite = folder / "mine.csv"
    suite.write_text("task,data,group\n" + "".join(f"{task},{task},{group}\n" for task, group in tasks.items()))
    return suite


class Inline:
    """Makes up results at once; may be killed, or lose its worker, at a job of a given number.

    Args:
        room: How many jobs it is given before it does the first.
        stop: After how many jobs Ctrl-C comes.
        dies: At which jobs the worker dies.
        luck: Another one has other test accuracies, and nothing else.
    """

    def __init__(self, room: int = 1, stop: int | None = None, dies: tuple[int, ...] = (), luck: str = "") -> None:
        self.room, self.stop, self.dies, self.luck = room, stop, dies, luck
        self.given: list[tuple[Callable[..., Any], Trial, bytes]] = []
        self.ended = ""

    def fit(self, peak: int) -> int:
        return self.room

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        if self.stop is not None and len(self.given) >= self.stop:
            raise KeyboardInterrupt
        future: Future[Any] = Future()
        self.given.append((work, arguments[0], pickle.dumps(arguments)))
        if len(self.given) in self.dies:
            future.set_exception(BrokenProcessPool("killed"))
        else:
            made = self.trained if work is run_trial else self.read
            future.set_result(made(*arguments))
        return future

    def trained(self, trial: Trial, place: Any) -> dict[str, Any]:
        accuracy = 0.4 + 0.5 * share(f"{trial.key} {trial.part}")
        if trial.part == "final":
            place.out.mkdir(parents=True, exist_ok=True)
            (place.out / "adapter_config.json").touch()
            (place.out / "adapter_model.safetensors").write_text(trial.key)
        return {
            "failed": None,
            "pruned": False,
            "val_accuracy": accuracy if len(place.training.val) else None,
            "val_loss": 1.0 if len(place.training.val) else None,
            "val_history": [accuracy] * trial.resolved["recipe"]["epochs"] if len(place.training.val) else [],
            "test_history": [[k, share(f"{trial.key} {k} {self.luck}")] for k in trial.test_epochs],
            "test_images": None if place.test is None else len(place.test),
            "trainable": 5_000 + len(trial.method),
            "trainable_method": 1_000,
            "adapter_bytes": 20_000,
            "seconds": 3.0,
            "wall_seconds": 4.0,
            "peak_memory": 10**8,
            "model": hashlib.sha256(trial.key.encode()).hexdigest()[:16],
            "versions": {"trimtab": "0"},
            "code": "abc",
            "gpu": None,
            "computer": {"python": "3"},
        }

    def read(self, trial: Trial, folder: Path, images: Any, running: Any) -> dict[str, Any]:
        accuracy = 0.4 + 0.5 * share(f"{trial.key} {self.luck}")
        return {"failed": None, "test_accuracy": accuracy, "test_images": len(images), "wall_seconds": 1.0}

    def renew(self) -> None:
        pass

    def close(self) -> None:
        self.ended = "closed"

    def kill(self) -> None:
        self.ended = "killed"

    @property
    def of_training(self) -> list[tuple[Trial, bytes]]:
        return [(trial, sent) for work, trial, sent in self.given if work is run_trial]

    @property
    def of_tests(self) -> list[tuple[Trial, bytes]]:
        return [(trial, sent) for work, trial, sent in self.given if work is read_test]


def go(
    suite: Path, out: Path, pool: Inline, *rows: str, methods: tuple[str, ...] = ("linear", "vpt"), **options: Any
) -> Outcome:
    """A benchmark of a small random backbone."""
    methods = rows or methods
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trimtab.backbone.weights.load_backbone", lambda *_, **__: shared_backbone("class-token"))
        return bench(str(suite), methods=methods, out=out, pool=pool, **options)


def results_of(out: Path) -> Results:
    return Results(out / RESULTS)


def prepare(root: Path, suite: str, task: str, variant: str = "lossless") -> Path:
    """A prepared task of empty files; a class has no training image, as in the real ones."""
    folder = root / suite / task
    lines = ["path,label,split"]
    for split, labels in (("train", ("00", "01")), ("val", ("00", "02")), ("test", ("00", "01", "02"))):
        for label in labels:
            for k in range(3):
                name = f"images/{SECRET if split == 'test' else split}-{label}-{k}.png"
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).touch()
                lines.append(f"{name},{label},{split}")
    (folder / "splits.csv").write_text("\n".join(lines) + "\n")
    facts = {"format": 1, "suite": suite, "task": task, "variant": variant, "classes": ["00", "01", "02"]}
    splits = {split: {"images": 6, "sha256": task + split} for split in ("train", "val", "test")}
    (folder / "manifest.json").write_text(json.dumps({**facts, "splits": splits}))
    return root
