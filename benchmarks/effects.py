"""How much common faults of protocols change a method's accuracy.

    python benchmarks/effects.py benchmarks/local.csv --workers 2
    python benchmarks/effects.py benchmarks/local.csv --table docs/comparison

The same command again goes on where it was stopped. First a benchmark under ``strict``, or one that is there already
(``--strict``). Then trainings on all training images of each task (``WORK/trials.jsonl``), by ``--effects``:

* ``epoch``: what ``strict`` chose, reading the test images again and again, as a loop that keeps the best epoch does;
* ``jpeg``: what ``strict`` chose, on copies of all images that were saved again as JPEG;
* ``normalisation``: what ``strict`` chose, on a backbone that says it wants ImageNet's mean and standard deviation;
* ``setting``: as ``epoch``, and the settings that ``strict`` tried and did not choose.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import os
import shutil
import statistics
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.studies import BACKBONE
from trimtab.bench.command import RESULTS, bench, read_row
from trimtab.bench.config import BenchConfig
from trimtab.bench.plan import Trials
from trimtab.bench.pools import Processes
from trimtab.bench.protocols import Row
from trimtab.bench.results import Record, Results, repair
from trimtab.bench.statistics import interval
from trimtab.bench.suites import SuiteTask, open_suite, open_test
from trimtab.bench.trial import Place, Running, Trial, run_trial
from trimtab.bench.workers import THREADS, alone
from trimtab.errors import ConfigError, DataError, TrimtabError
from trimtab.progress import TerminalProgress
from trimtab.recipe import FitConfig
from trimtab.storage.files import write_json, write_text

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
QUALITY = 75
EFFECTS = {
    "epoch": "epoch chosen on test images",
    "setting": "epoch and setting chosen on test images",
    "normalisation": "wrong normalisation",
    "jpeg": f"images stored again as JPEG, quality {QUALITY}",
    "luck": "best of the seeds, not their mean",
}
"""What each fault is called in the table; the last needs no training of its own."""
TRIALS = "trials.jsonl"


@dataclasses.dataclass(frozen=True)
class Job:
    """A training beside those of ``strict``."""

    effect: str
    trial: Trial
    place: Place
    task: SuiteTask

    def opened(self) -> Place:
        """With the test images, as no protocol that is honest has it."""
        return dataclasses.replace(self.place, test=open_test(self.task, self.place.training.train.classes))


class Run:
    """What is run, where, and what came out."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.work: Path = arguments.work
        self.strict: Path = arguments.strict or self.work / "strict"
        self.suite: Path = arguments.suite
        self.weights: Path = arguments.shared / "weights" / f"{BACKBONE}.fp16.safetensors"
        self.methods: list[str] = arguments.methods
        self.workers: int = arguments.workers
        self.effects: list[str] = arguments.effects
        self.progress = TerminalProgress()
        names = ("seeds", "trials", "image_size", "epochs", "probe_epochs")
        self.options: dict[str, Any] = {name: getattr(arguments, name) for name in names}
        self.tasks = open_suite(str(self.suite))

    def go(self) -> None:
        """Everything that is missing."""
        right = {"backbone": BACKBONE, "weights": str(self.weights)}
        more: dict[str, Any] = {"workers": self.workers, "device": "cpu", **right, **self.options}
        outcome = bench(str(self.suite), methods=self.methods, out=self.strict, progress=self.progress, **more)
        if outcome.broken:
            raise ConfigError(f"{self.strict}: {outcome.broken[0]}")
        wrong = {"backbone": f"local-dir:{wrong_normalisation(self.weights, self.work / 'imagenet-normalised')}"}
        stored = open_suite(str(jpeg_suite(self.tasks, self.work / "jpeg-images")))
        on: dict[str, tuple[Sequence[SuiteTask], dict[str, Any]]] = {
            "epoch": (self.tasks, right),
            "jpeg": (stored, right),
            "normalisation": (self.tasks, wrong),
            "setting": (self.tasks, right),
        }
        self._train([job for effect in on if effect in self.effects for job in self._jobs(effect, *on[effect])])

    def _jobs(self, effect: str, tasks: Sequence[SuiteTask], backbone: dict[str, Any]) -> Iterator[Job]:
        from trimtab.backbone.weights import load_backbone

        config = BenchConfig(device="cpu", **backbone, **self.options)
        size = FitConfig(image_size=config.image_size).size()
        model = load_backbone(config.backbone, weights=config.weights, image_size=size, device="cpu")
        trials, strict = Trials(config, model), Results(self.strict / RESULTS)
        for task in tasks:
            for row in map(read_row, self.methods):
                for setting in _settings(strict, effect, row, task):
                    for seed in trials.protocol.seeds_of(self.options["seeds"]):
                        trial = trials.make(row, task, "final", seed, setting)
                        epochs = trial.resolved["recipe"]["epochs"]
                        read = _readings(epochs) if effect in ("epoch", "setting") else (epochs,)
                        trial = dataclasses.replace(trial, test_epochs=read)
                        final = trials.parts(task).final
                        place = Place(final, self.work / "models" / trial.key, Running(config.weights, "cpu"))
                        yield Job(effect, trial, place, task)

    def _train(self, jobs: Sequence[Job]) -> None:
        path = self.work / TRIALS
        repair(path)
        results = Results(path)
        missing = {job.trial.key: job for job in jobs if job.trial.key not in results.trials}
        self.progress.say(f"{len(missing)} of {len(jobs)} trainings beside strict's are to be done.")
        pool = Processes(self.workers, gpu=False)
        try:
            flying = {pool.submit(run_trial, job.trial, job.opened()): job for job in missing.values()}
            for done, future in enumerate(as_completed(flying), start=1):
                job, record = flying[future], future.result()
                results.append("trial", {"key": job.trial.key, "effect": job.effect, **job.trial.inputs(), **record})
                shutil.rmtree(job.place.out, ignore_errors=True)
                read = ", ".join(f"{accuracy:.3f}" for _, accuracy in record["test_history"])
                self.progress.say(f"{done}/{len(flying)} {job.effect}, {job.trial.words}: test {read}")
        except BaseException:
            pool.kill()
            raise
        pool.close()

    # --- what came out ---

    def table(self) -> Record:
        """Effects in points of accuracy, JSON values."""
        rows = [self._row(row) for row in map(read_row, self.methods)]
        setup = Results(self.strict / RESULTS).records["setup"][0]["setup"]
        names = {name: words for name, words in EFFECTS.items() if name in (*self.effects, "luck")}
        return {"setup": setup, "effects": names, "seeds": self.options["seeds"], "rows": rows}

    def _row(self, row: Row) -> Record:
        strict, trials = Results(self.strict / RESULTS), Results(self.work / TRIALS)
        found: Record = {"row": row.name, "tasks": {}}
        for task in self.tasks:
            base = {t["seed"]: t["test_accuracy"] for t in strict.find("test", row=row.name, task=task.name)}
            readings = {"luck": {seed: max(base.values()) for seed in base}}
            for effect in self.effects:
                wanted = len(_settings(strict, effect, row, task)) * len(base)
                mine = trials.find("trial", effect=effect, row=row.name, task=task.name)
                if len(base) < 2 or len(mine) != wanted:
                    raise DataError(
                        f"{row.name} on {task.name}: {len(base)} final models of strict and {len(mine)} of {wanted} "
                        f"trainings of {effect!r} are done; let it run on, or leave it out of --effects."
                    )
                readings[effect] = by_seed(mine)
            if "setting" in readings:
                both = [readings["setting"], readings["epoch"]]
                readings["setting"] = {seed: max(found.get(seed, 0.0) for found in both) for seed in base}
            found["tasks"][task.name] = {
                "strict": base,
                "spread": statistics.stdev(base.values()),
                "effects": {name: {s: values[s] - base[s] for s in base} for name, values in readings.items()},
            }
        return found


def _settings(strict: Results, effect: str, row: Row, task: SuiteTask) -> list[Record]:
    """What is trained anew for an effect: the chosen setting, or for ``setting`` the others."""
    choice = strict.last("choice", row=row.name, task=task.name)
    if choice is None:
        raise DataError(f"{strict.path.parent} has chosen nothing for {row.name} on {task.name} yet; let it run on.")
    chosen: list[Record] = choice["settings"]
    if effect != "setting":
        return chosen
    tried = [strict.trials[key] for key in choice["tried"]]
    settings = [{"options": trial["options"], "fit": trial["fit"]} for trial in tried]
    return [setting for setting in settings if setting not in chosen]


def by_seed(trials: Iterable[Record]) -> dict[int, float]:
    """The best of all readings of test images, for each seed."""
    best: dict[int, float] = {}
    for trial in trials:
        read = max((accuracy for _, accuracy in trial["test_history"]), default=0.0)
        best[trial["seed"]] = max(read, best.get(trial["seed"], 0.0))
    return best


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
    from trimtab.data.decode import open_allowed

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
                with open_allowed(path) as image:
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


def _readings(epochs: int) -> tuple[int, ...]:
    """After which epochs the test images are read: all, or some six of many."""
    return tuple(sorted({*range(1, epochs + 1, max(1, epochs // 5)), epochs}))


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
    every = ["epoch", "jpeg", "normalisation", "setting"]
    parser.add_argument("--effects", nargs="+", choices=every, default=every, help="setting needs epoch, too")
    parser.add_argument("--workers", type=int, default=1, help="processes of one thread each")
    parser.add_argument("--work", type=Path, default=Path("runs/effects"))
    parser.add_argument("--strict", type=Path, help="the folder of a benchmark of this setup; by default WORK/strict")
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="folder with weights/")
    parser.add_argument("--table", type=Path, help="write effects.md and effects.json there, and run nothing")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line says."""
    parsed = parse(arguments)
    if "setting" in parsed.effects and "epoch" not in parsed.effects:
        parsed.effects.insert(0, "epoch")
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
