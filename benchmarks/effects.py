"""How much common faults of protocols change a method's accuracy.

    python benchmarks/effects.py benchmarks/local.csv --workers 2
    python benchmarks/effects.py benchmarks/local.csv --table docs/comparison

The same command again goes on where it was stopped. Three benchmarks under ``strict``: as it should be
(``WORK/strict``), with a backbone that says it wants ImageNet's normalisation (``WORK/normalisation``), and on copies
of the images saved again as JPEG (``WORK/jpeg``). Each chooses its settings anew. And for every setting and seed, a
training on all training images that reads the test images again and again, as a loop that keeps the best epoch does
(``WORK/selection.jsonl``).
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import json
import os
import shutil
import statistics
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.studies import BACKBONE
from trimtab.benchmark.command import RESULTS, bench, read_row
from trimtab.benchmark.config import BenchConfig
from trimtab.benchmark.plan import Trials
from trimtab.benchmark.pools import Processes
from trimtab.benchmark.protocols import Row
from trimtab.benchmark.results import Record, Results, repair
from trimtab.benchmark.statistics import interval
from trimtab.benchmark.suites import SuiteTask, open_suite, open_test
from trimtab.benchmark.trial import Place, Running, Trial, run_trial
from trimtab.benchmark.workers import THREADS, alone
from trimtab.errors import ConfigError, DataError, TrimtabError
from trimtab.files import write_json, write_text
from trimtab.progress import TerminalProgress

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
QUALITY = 75
EFFECTS = {
    "epoch": "epoch chosen on test images",
    "setting": "epoch and learning rate chosen on test images",
    "normalisation": "wrong normalisation",
    "jpeg": f"images stored again as JPEG, quality {QUALITY}",
    "luck": "best of the seeds, not their mean",
}


class Run:
    """What is run, where, and what came out."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.work: Path = arguments.work
        self.strict: Path = arguments.strict or self.work / "strict"
        self.suite: Path = arguments.suite
        self.weights: Path = arguments.shared / "weights" / f"{BACKBONE}.fp16.safetensors"
        self.methods: list[str] = arguments.methods
        self.workers: int = arguments.workers
        self.progress = TerminalProgress()
        names = ("seeds", "trials", "image_size", "epochs", "probe_epochs")
        self.options: dict[str, Any] = {name: getattr(arguments, name) for name in names}
        self.tasks = open_suite(str(self.suite))

    def go(self) -> None:
        """Everything that is missing."""
        right = {"backbone": BACKBONE, "weights": str(self.weights)}
        self._bench(self.suite, self.strict, right)
        self._select(right)
        self._bench(jpeg_suite(self.tasks, self.work / "jpeg-images"), self.work / "jpeg", right)
        wrong = {"backbone": f"local-dir:{wrong_normalisation(self.weights, self.work / 'imagenet-normalised')}"}
        self._bench(self.suite, self.work / "normalisation", wrong)

    def _bench(self, suite: Path, out: Path, backbone: dict[str, str]) -> None:
        self.progress.say(f"--- {out} ---")
        more: dict[str, Any] = {"workers": self.workers, "device": "cpu", **backbone, **self.options}
        outcome = bench(str(suite), methods=self.methods, out=out, progress=self.progress, **more)
        if outcome.broken:
            raise ConfigError(f"{out}: {outcome.broken[0]}")

    def _select(self, backbone: dict[str, Any]) -> None:
        """Train every setting that ``strict`` tried on all training images, and read test images as it goes."""
        from trimtab.weights import load_backbone

        config = BenchConfig(device="cpu", **backbone, **self.options)
        model = load_backbone(BACKBONE, weights=self.weights, image_size=_square(config.image_size), device="cpu")
        trials, running = Trials(config, model), Running(config.weights, "cpu")
        path = self.work / "selection.jsonl"
        repair(path)
        results, strict = Results(path), Results(self.strict / RESULTS)
        wanted = {t.key: (t, task) for t, task in self._readings(trials, strict) if t.key not in results.trials}
        self.progress.say(f"--- {path}: {len(wanted)} trainings are to be done ---")
        pool = Processes(self.workers, gpu=False)
        try:
            flying = {}
            for trial, task in wanted.values():
                final = trials.parts(task).final
                test = open_test(task, final.train.classes)
                place = Place(final, self.work / "models" / trial.key, running, test=test)
                flying[pool.submit(run_trial, trial, place)] = trial
            for done, future in enumerate(as_completed(flying), start=1):
                trial, record = flying[future], future.result()
                results.append("trial", {"key": trial.key, **trial.inputs(), **record})
                shutil.rmtree(self.work / "models" / trial.key, ignore_errors=True)
                self.progress.say(f"{done}/{len(flying)} {trial.words}: {record['test_history']}")
        except BaseException:
            pool.kill()
            raise
        pool.close()

    def _readings(self, trials: Trials, strict: Results) -> Iterator[tuple[Trial, SuiteTask]]:
        for task in self.tasks:
            for row in map(read_row, self.methods):
                for line in strict.find("asked", row=row.name, task=task.name):
                    for seed in trials.protocol.seeds_of(self.options["seeds"]):
                        trial = trials.make(row, task, "final", seed, line["setting"])
                        yield dataclasses.replace(trial, test_epochs=_epochs(trial)), task

    # --- what came out ---

    def table(self) -> Record:
        """Effects in points of accuracy, JSON values."""
        rows = [self._row(row) for row in map(read_row, self.methods)]
        setup = Results(self.strict / RESULTS).records["setup"][0]["setup"]
        return {"setup": setup, "effects": EFFECTS, "seeds": self.options["seeds"], "rows": rows}

    def _row(self, row: Row) -> Record:
        selection = Results(self.work / "selection.jsonl").trials.values()
        folders = {name: Results(self.work / name / RESULTS) for name in ("jpeg", "normalisation")}
        strict = Results(self.strict / RESULTS)
        found: Record = {"row": row.name, "tasks": {}}
        for task in self.tasks:
            base = accuracies(strict, row, task)
            tried = [t for t in selection if (t["row"], t["task"]) == (row.name, task.name)]
            choice = strict.last("choice", row=row.name, task=task.name)
            if choice is None:
                raise DataError(f"{self.strict} has chosen nothing for {row.name} on {task.name} yet; let it run on.")
            same = [t for t in tried if {"options": t["options"], "fit": t["fit"]} in choice["settings"]]
            readings = {
                "epoch": by_seed(same),
                "setting": by_seed(tried),
                **{name: accuracies(results, row, task) for name, results in folders.items()},
                "luck": {seed: max(base.values()) for seed in base},
            }
            _same_seeds(base, readings, f"{row.name} on {task.name}")
            found["tasks"][task.name] = {
                "strict": base,
                "spread": statistics.stdev(base.values()),
                "effects": {name: {s: values[s] - base[s] for s in base} for name, values in readings.items()},
                "settings": len({json.dumps([t["options"], t["fit"]]) for t in tried}),
            }
        return found


def by_seed(trials: Iterable[Record]) -> dict[int, float]:
    """The best of all readings of test images, for each seed."""
    best: dict[int, float] = {}
    for trial in trials:
        read = max((accuracy for _, accuracy in trial["test_history"]), default=0.0)
        best[trial["seed"]] = max(read, best.get(trial["seed"], 0.0))
    return best


def accuracies(results: Results, row: Row, task: SuiteTask) -> dict[int, float]:
    """The test accuracies of a benchmark, for each seed."""
    return {line["seed"]: line["test_accuracy"] for line in results.find("test", row=row.name, task=task.name)}


def _same_seeds(base: dict[int, float], readings: dict[str, dict[int, float]], where: str) -> None:
    for name, values in readings.items():
        if len(base) < 2 or values.keys() < base.keys():
            raise DataError(f"{where}: {name} has seeds {sorted(values)} and strict {sorted(base)}; let it run on.")


def markdown(table: Record) -> str:
    """The table of effects: means over seeds with intervals, in points, by task and over all tasks."""
    tasks = list(table["rows"][0]["tasks"])
    lines = ["| method | | " + " | ".join(tasks) + " | mean |", "|---" * (len(tasks) + 3) + "|"]
    for row in table["rows"]:
        cells = row["tasks"].values()
        lines.append(_line(row["row"], "strict", [list(cell["strict"].values()) for cell in cells], sign=""))
        for name, words in table["effects"].items():
            lines.append(_line(row["row"], words, [list(cell["effects"][name].values()) for cell in cells], sign="+"))
        spreads = [f"{100 * cell['spread']:.1f}" for cell in cells]
        pooled = statistics.fmean(cell["spread"] ** 2 for cell in cells) ** 0.5
        lines.append(f"| {row['row']} | standard deviation over seeds | {' | '.join(spreads)} | {100 * pooled:.1f} |")
    return "\n".join(lines) + "\n"


def _line(row: str, words: str, by_task: list[list[float]], sign: str) -> str:
    means = [statistics.fmean(seeds) for seeds in zip(*by_task, strict=True)]
    cells = [_cell(values, sign) for values in (*by_task, means)]
    return f"| {row} | {words} | {' | '.join(cells)} |"


def _cell(values: list[float], sign: str) -> str:
    found = interval(values)
    return f"{100 * found['mean']:{sign}.1f} ± {100 * found['half']:.1f}"


# --- what is done to images and weights -------------------------------------------------------------------


def jpeg_suite(tasks: Iterable[SuiteTask], folder: Path) -> Path:
    """Copies of the images of class folders, saved again as JPEG, with a suite file beside them."""
    from PIL import Image

    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("task", "data", "group"))
    for task in tasks:
        writer.writerow((task.name, task.name, task.group))
        source = Path(task.data)
        for path in sorted(p for part in ("train", "test") for p in (source / part).rglob("*") if p.is_file()):
            target = folder / task.name / path.relative_to(source).with_suffix(".jpg")
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                with Image.open(path) as image:
                    image.convert("RGB").save(target.with_suffix(".part"), "JPEG", quality=QUALITY)
                target.with_suffix(".part").replace(target)
    write_text(folder / "jpeg.csv", buffer.getvalue())
    return folder / "jpeg.csv"


def wrong_normalisation(weights: Path, folder: Path) -> Path:
    """The backbone as timm saves it, with ImageNet's mean and standard deviation in its configuration."""
    import timm
    from timm.models import load_checkpoint, save_for_hf

    model: Any = timm.create_model(BACKBONE, pretrained=False)
    load_checkpoint(model, str(weights))
    if all(tuple(model.pretrained_cfg[name]) == value for name, value in IMAGENET.items()):
        raise ConfigError(f"{BACKBONE} does want ImageNet's normalisation.")
    model.pretrained_cfg = {**model.pretrained_cfg, **IMAGENET}
    save_for_hf(model, str(folder), safe_serialization=True)
    return folder


def _epochs(trial: Trial) -> tuple[int, ...]:
    """After which epochs the test images are read: all, or six of many."""
    epochs = trial.resolved["recipe"]["epochs"]
    return tuple(sorted({*range(1, epochs + 1, max(1, epochs // 5)), epochs}))


def _square(text: str | None) -> tuple[int, int] | None:
    return None if text is None else (int(text), int(text))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure what common faults of protocols are worth.")
    parser.add_argument("suite", type=Path, help="CSV file with the columns task, data, group; sets are class folders")
    parser.add_argument("--methods", nargs="+", default=["linear:epochs=50", "vpt"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=3, help="settings a method and task")
    parser.add_argument("--image-size", default="96", help="pixels")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--probe-epochs", type=int, default=50)
    parser.add_argument("--workers", type=int, default=1, help="processes of one thread each")
    parser.add_argument("--work", type=Path, default=Path("runs/effects"))
    parser.add_argument("--strict", type=Path, help="a benchmark of this setup that is there already")
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="folder with weights/")
    parser.add_argument("--table", type=Path, help="write effects.md and effects.json there, and run nothing")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line says."""
    parsed = parse(arguments)
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        with alone(parsed.work):
            run = Run(parsed)
            if parsed.table is None:
                run.go()
            else:
                table = run.table()
                write_json(parsed.table / "effects.json", table)
                write_text(parsed.table / "effects.md", markdown(table))
    except (TrimtabError, OSError) as error:
        TerminalProgress().say(f"{type(error).__name__}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
