"""Time a bank of many tasks in one process: against one task, against the untouched timm model, against peft's loop.

    python benchmarks/serving.py --model small --tasks 1 8 64 512 1000
    python benchmarks/serving.py --model small --tasks --lora 10
    python benchmarks/serving.py --model tiny --batch-size 8 --rounds 3 --tasks 1 8 --out serving.json

All subjects take turns, round after round, in an order that is drawn for each round, so that what else the machine does
hits all alike; a ratio is the median over the rounds of the seconds of one subject over those of another in the same
round. Every image of a batch has the task that is drawn for it: evenly, or by Zipf's law (the k-th task 1/k times as
often as the first), anew for each round. Each task has tensors of its own; their values do not matter for the time.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if not __package__:
    # Run as a file: the package is found from its parent, and its modules not as top-level ones.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import timm
import torch
from torch import Tensor

from benchmarks.speed import busy
from benchmarks.subjects import CLASSES, MODELS
from trimtab import checkpoint
from trimtab.backbone import Backbone
from trimtab.data import Preprocess
from trimtab.methods import configure
from trimtab.model import build
from trimtab.serving.bank import Bank
from trimtab.tasks import make_task

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "processor": time.process_time}
PLAIN, ONE, LOOP = "untouched timm model", "bank, 1 task", "peft's adapter_names, {} tasks"


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is timed: called once a round, after its tasks were drawn."""

    name: str
    draw: Callable[[random.Random], Any]
    """Draws what :attr:`run` is given."""
    run: Callable[[Any], Any]


def save(backbone: Backbone, method: str, options: dict[str, Any], directory: Path) -> Path:
    """Save an untrained adapter."""
    size = backbone.image_size
    model, task = build(backbone, configure(method, options), CLASSES), make_task()
    with torch.no_grad():
        for value in model.method.parameters():
            value.normal_(std=0.1)
    directory.mkdir()
    half = (0.5, 0.5, 0.5)
    checkpoint.save(
        directory,
        model,
        model.adapter_state_dict(),
        labels=tuple(str(k) for k in range(CLASSES)),
        weights=None,
        preprocess=Preprocess(image_size=size, resize="squash", mean=half, std=half),
        metrics={},
        run={},
        task=task,
        of_task=task.saved(None),
    )
    return directory


def filled(backbone: Backbone, folder: Path, count: int, **options: Any) -> Bank:
    """Make a bank of so many tasks, named by their number."""
    bank = Bank(backbone, **options)
    for number in range(count):
        bank.add(str(number), folder)
    return bank


def asking(bank: Bank, images: Tensor) -> Callable[[list[str]], Any]:
    """Return what asks a bank about the images, each for its task."""
    return lambda names: bank.predict(images, names)


def drawn(count: int, images: int, zipf: bool) -> Callable[[random.Random], list[str]]:
    """Return what draws a task for each image."""
    weights = [1 / (number + 1) if zipf else 1.0 for number in range(count)]

    def draw(source: random.Random) -> list[str]:
        return [str(number) for number in source.choices(range(count), weights, k=images)]

    return draw


def subjects(args: argparse.Namespace, folder: Path) -> list[Subject]:
    """List what is timed."""
    torch.manual_seed(0)
    model = timm.create_model(MODELS[args.model], num_classes=CLASSES, img_size=args.image_size).eval()
    images = torch.randn(args.batch_size, 3, args.image_size, args.image_size)
    backbone = Backbone(model)
    options = {"num_prompts": args.prompts, "prompt_init": "uniform"} if args.method == "vpt" else {}
    saved = save(backbone, args.method, options, folder / "prompts")
    found = [Subject(PLAIN, lambda source: None, lambda _: model(images))]
    largest = filled(backbone, saved, max(args.tasks, default=1), half=args.half)
    for count in dict.fromkeys([1, *args.tasks]):
        for zipf in (False, True) if count > 1 else (False,):
            name = f"bank, {count} tasks {'by Zipf' if zipf else 'evenly'}" if count > 1 else ONE
            found.append(Subject(name, drawn(count, len(images), zipf), asking(largest, images)))
    for count in args.lora:
        bank = filled(backbone, save(backbone, "lora", {"rank": args.rank}, folder / f"lora-{count}"), count)
        draw = drawn(count, len(images), zipf=False)
        found.append(Subject(f"bank, {count} tasks of LoRA", draw, asking(bank, images)))
        found.append(Subject(LOOP.format(count), draw, peft_loop(args, count, images)))
    return found


def peft_loop(args: argparse.Namespace, count: int, images: Tensor) -> Callable[[list[str]], Any]:
    """Return a pass of peft's mixed batches: a loop over the adapters of a batch in every layer; one head for all."""
    from peft import LoraConfig, get_peft_model

    model = timm.create_model(MODELS[args.model], num_classes=CLASSES, img_size=args.image_size).eval()
    config = LoraConfig(r=args.rank, lora_alpha=args.rank, target_modules=["qkv"])
    tuned = get_peft_model(model, config, adapter_name="0")
    for number in range(1, count):
        tuned.add_adapter(str(number), config)
    tuned.eval()
    return lambda names: tuned(images, adapter_names=names)


def measure(found: list[Subject], rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Return the seconds of every subject in every round."""
    seconds: dict[str, list[float]] = {subject.name: [] for subject in found}
    source = random.Random(0)  # noqa: S311
    with torch.inference_mode():
        for subject in found:
            subject.run(subject.draw(source))
        for _ in range(rounds):
            for subject in source.sample(found, len(found)):
                given = subject.draw(source)
                started = clock()
                subject.run(given)
                seconds[subject.name].append(clock() - started)
    return seconds


def speed(seconds: dict[str, list[float]], name: str, reference: str) -> float:
    """Return how fast a subject is, in parts of the reference's speed."""
    return statistics.median(b / a for a, b in zip(seconds[name], seconds[reference], strict=True))


def table(seconds: dict[str, list[float]]) -> str:
    """Markdown: medians, and speeds to the untouched model and to one task."""
    lines = ["| | ms | speed to the untouched model | speed to one task |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {1000 * statistics.median(values):.1f} | {speed(seconds, name, PLAIN):.3f} "
        f"| {speed(seconds, name, ONE):.3f} |"
        for name, values in seconds.items()
    ]
    return "\n".join(lines)


def main() -> None:
    """Time what the command line asks for, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="small")
    parser.add_argument("--method", default="vpt", help="of the tasks")
    parser.add_argument("--prompts", type=int, default=10, help="of a block")
    parser.add_argument("--tasks", type=int, nargs="*", default=[8, 64, 512, 1000], help="tasks of the bank")
    parser.add_argument("--lora", type=int, nargs="*", default=[], help="tasks of LoRA, beside peft's loop")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--half", action="store_true", help="store keys and values in half precision")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="processor: where others keep the cores busy")
    parser.add_argument("--out", type=Path, help="JSON of all seconds")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        found = subjects(args, Path(folder))
        others = busy()
        seconds = measure(found, args.rounds, CLOCKS[args.clock])
    print(table(seconds))
    how = f"{args.batch_size} images, {args.rounds} rounds, {args.threads} threads, {args.clock} time"
    print(f"{how}; others kept {others:.1f} cores busy")
    if args.out is not None:
        setting = {name: value for name, value in vars(args).items() if name != "out"}
        args.out.write_text(json.dumps({"setting": setting, "busy": others, "seconds": seconds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
