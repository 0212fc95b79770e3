"""Time float32, autocast and stored bfloat16 beside peft's LoRA and plain timm, all in turn.

    python benchmarks/precisions.py --out docs/speed
    python benchmarks/precisions.py --shapes tiny-112 --kinds training --rounds 3 --draws 1 --allow-busy

Training steps have the ratio to peft's LoRA in float32, which is what people pick instead; forward passes that to plain
timm in the same precision. Every subject has a process of its own (benchmarks/turns.py), first with the C library's
memory as it is, then with one that is told to keep what is freed. Peak memory is that of a fresh process.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

if not __package__:
    # Run as a file: the package is found from its parent, and its modules not as top-level ones.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.speed import busy, machine, peak_memory
from benchmarks.subjects import LIKE_SHIP, PEFT, Setting
from benchmarks.turns import in_turn

SHAPES = {
    "tiny-224": ("tiny", 224, 16),
    "tiny-112": ("tiny", 112, 32),
    "small-224": ("small", 224, 8),
}
"""Model, image size and batch size."""
DTYPES = ("fp32", "autocast", "bf16")
TRAINING = (PEFT, "vpt", LIKE_SHIP, "ship")
FORWARD = ("plain", "folded vpt", "folded ship", "folded lora")
_KEEP = {"MALLOC_TRIM_THRESHOLD_": "4000000000", "MALLOC_MMAP_THRESHOLD_": "4000000000"}
"""The C library's settings under which freed memory is kept."""


def subjects(kind: str) -> list[str]:
    """Return all pairs of a subject and a precision that it has; peft has no stored bfloat16."""
    names = TRAINING if kind == "training" else FORWARD
    return [f"{name} @ {dtype}" for name in names for dtype in DTYPES if not (name == PEFT and dtype == "bf16")]


def reference(kind: str, subject: str) -> str:
    """Return the subject that another is compared with."""
    return f"{PEFT} @ fp32" if kind == "training" else f"plain @ {subject.partition(' @ ')[2]}"


def measure(kind: str, shape: str, prompts: int, rounds: int, draws: int) -> list[dict[str, Any]]:
    """Time all subjects of a shape in turn: a record each, with the median of the ratios turn by turn."""
    model, size, batch = SHAPES[shape]
    setting = Setting(model, prompts, size, batch, "fp32", "cpu", compiled=False)
    found = in_turn(kind, subjects(kind), setting, rounds, draws)
    records = []
    for subject, (counts, seconds) in found.items():
        pairs = zip(found[reference(kind, subject)][1], seconds, strict=True)
        records.append(
            {
                "kind": kind,
                "shape": shape,
                "prompts": prompts,
                "subject": subject,
                "memory": "kept" if os.environ.get("MALLOC_TRIM_THRESHOLD_") else "as it is",
                **counts,
                "seconds": statistics.median(seconds),
                "speed_to_reference": statistics.median(theirs / ours for theirs, ours in pairs),
                "peak_bytes": peak_memory(kind, subject, setting),
            }
        )
    return records


def table(records: list[dict[str, Any]]) -> str:
    """Return the records as Markdown."""
    lines = [
        "| | shape | prompts | freed memory | ms | speed to reference | peak MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in records:
        ms, speed = f"{1000 * r['seconds']:.1f}", f"{r['speed_to_reference']:.2f}x"
        where = f"{r['kind']}, {r['subject']} | {r['shape']} | {r['prompts']} | {r['memory']}"
        lines.append(f"| {where} | {ms} | {speed} | {r['peak_bytes'] / 2**20:.0f} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(description="Time precisions beside peft and plain timm.")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=[*SHAPES])
    parser.add_argument("--kinds", nargs="+", choices=("training", "forward"), default=["training", "forward"])
    parser.add_argument("--prompts", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=7, help="turns of each process")
    parser.add_argument("--draws", type=int, default=2, help="processes of each subject, one after the other")
    parser.add_argument("--threads", type=int, help="by default torch's own number")
    parser.add_argument("--allow-busy", action="store_true", help="time although other processes are running")
    parser.add_argument("--out", type=Path, help="folder for precisions.json and precisions.md")
    parsed = parser.parse_args(arguments)
    import torch

    if parsed.threads:
        torch.set_num_threads(parsed.threads)
    others = busy()
    if others > 0.2 and not parsed.allow_busy:
        print(f"Other processes keep {others:.1f} processors busy; wait, or say --allow-busy.", file=sys.stderr)
        return 1
    records: list[dict[str, Any]] = []
    for memory in ({}, _KEEP):
        # For the processes that are started from here.
        os.environ.update(memory)
        for shape in parsed.shapes:
            for kind in parsed.kinds:
                records += measure(kind, shape, parsed.prompts, parsed.rounds, parsed.draws)
                print(table(records[-len(subjects(kind)) :]), flush=True)
    for name in _KEEP:
        os.environ.pop(name, None)
    if parsed.out:
        parsed.out.mkdir(parents=True, exist_ok=True)
        about = {**machine("cpu"), "busy": round(others, 2), "rounds": parsed.rounds, "draws": parsed.draws}
        text = json.dumps({**about, "records": records}, indent=1) + "\n"
        (parsed.out / "precisions.json").write_text(text, encoding="utf-8")
        (parsed.out / "precisions.md").write_text(table(records), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
