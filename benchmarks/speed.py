"""Time a forward pass and a training step: plain timm, concatenated prompts, context prompts, folded models.

    python benchmarks/speed.py --models small --prompts 50 100 200
    python benchmarks/speed.py --models tiny small base --images 224 384 --dtypes fp32 bf16 --compiled
    python benchmarks/speed.py --models tiny --images 512 --batch-size 2 --head linear

All subjects of a setting are timed in turn, round after round, so that what else the machine does hits all of them
alike, each in a process of its own (benchmarks/turns.py); the table has medians and their ratios. Floating-point
operations are counted, and so are the bytes of activations that a training step keeps, and the pages of memory that a
turn has to be given by the system; peak memory is that of a fresh process for each subject.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

if not __package__:
    # Run as a file: the package is found from its parent, and its modules not as top-level ones.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.speed_pictures import draw_speed
from benchmarks.subjects import LIKE_SHIP, MODELS, Setting, forward, make, split_dtype, training_step
from benchmarks.turns import in_turn
from trimtab.heads.decoders import DECODERS

FORWARD = ("plain", "concatenated", "vpt", "folded vpt", "ship", "folded ship", "svpt", "folded svpt", "folded lora")
TRAINING = ("concatenated", "vpt", LIKE_SHIP, "ship", "svpt", "lora")
RATIO_TO = {"forward": "plain", "training": "concatenated"}


def measure(kind: str, subjects: list[str], setting: Setting, rounds: int, draws: int = 1) -> list[dict[str, Any]]:
    """One record a subject: median seconds, ratio to the reference, operations, bytes."""
    found = in_turn(kind, subjects, setting, rounds, draws)
    counts_of_reference, seconds_of_reference = found[RATIO_TO[kind]]
    records = []
    for subject, (counts, seconds) in found.items():
        # Round by round, so that a slow stretch of the machine is in both.
        pairs = zip(seconds_of_reference, seconds, strict=True)
        records.append(
            {
                "kind": kind,
                "subject": subject,
                **dataclasses.asdict(setting),
                **counts,
                "seconds": statistics.median(seconds),
                "spread": _spread(seconds),
                "speed_to_reference": statistics.median(a / b for a, b in pairs),
                "flops_to_reference": counts["flops"] / counts_of_reference["flops"],
                "reference_seconds": statistics.median(seconds_of_reference),
            }
        )
    return records


def _spread(values: list[float]) -> float:
    """Half of the middle half's width, as a part of the median."""
    if len(values) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(values, n=4)
    return (high - low) / 2 / middle


def peak_memory(kind: str, subject: str, setting: Setting) -> int:
    """Bytes that a fresh process has at its peak during one pass, beyond what it has before."""
    words = [sys.executable, str(Path(__file__).resolve()), "--alone", kind, subject]
    # What is freed goes back to the system at once: the peak is of what is needed, not of the allocator's habits.
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(  # noqa: S603
        [*words, json.dumps(dataclasses.asdict(setting))], capture_output=True, text=True, check=False, env=env
    )
    if done.returncode:
        raise SystemExit(f"Measuring the memory of {subject} failed: {done.stderr.strip().splitlines()[-1]}")
    return int(done.stdout.split()[-1])


def alone(kind: str, subject: str, setting: Setting) -> int:
    """What :func:`peak_memory` runs in the fresh process."""
    import torch

    subject, setting = split_dtype(subject, setting)
    module = make(subject, setting)
    images = torch.randn(setting.batch_size, 3, setting.image_size, setting.image_size, device=setting.device)
    small = (forward if kind == "forward" else training_step)(module, images[:1], setting.dtype)
    small()  # Threads, kernels and the optimiser's state
    run = (forward if kind == "forward" else training_step)(module, images, setting.dtype)
    if setting.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return int(torch.cuda.max_memory_allocated() - before)
    # What importing and initialising took at their peak is forgotten.
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _held("VmRSS")
    run()
    return max(_held("VmHWM") - before, 0)


def _held(what: str) -> int:
    """Resident bytes of this process: now (``VmRSS``), or at their peak (``VmHWM``)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (line,) = [line for line in lines if line.startswith(f"{what}:")]
    return int(line.split()[1]) * 1024


def busy() -> float:
    """How many processors other processes keep busy, over two seconds."""

    def idle() -> float:
        return float(Path("/proc/uptime").read_text(encoding="ascii").split()[1])

    before, started = idle(), time.monotonic()
    time.sleep(2.0)
    count = os.cpu_count() or 1
    return max(count - (idle() - before) / (time.monotonic() - started), 0.0)


def table(records: list[dict[str, Any]]) -> str:
    """Markdown, one table a setting and kind."""
    lines: list[str] = []

    def where(record: dict[str, Any]) -> tuple[Any, ...]:
        names = ("kind", "model", "prompts", "image_size", "batch_size", "dtype", "device", "compiled", "head")
        return tuple(record.get(name, "classifier") for name in names)

    for key, group in itertools.groupby(sorted(records, key=where), where):
        kind, model, prompts, image, batch, dtype, device, compiled, head = key
        how = ("compiled" if compiled else "eager") + ("" if head == "classifier" else f", head {head}")
        lines += [
            "",
            f"**{kind}, ViT-{model.title()}, P = {prompts}, {image} px, batch {batch}, {dtype}, {device}, {how}**",
            "",
        ]
        lines += [
            f"| | ms | speed to {RATIO_TO[kind]} | GFLOPs | page faults | kept MiB | peak MiB | draws |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for r in group:
            kept = f"{r['saved_bytes'] / 2**20:.0f}" if "saved_bytes" in r else ""
            peak = f"{r['peak_bytes'] / 2**20:.0f}" if "peak_bytes" in r else ""
            ms = f"{1000 * r['seconds']:.1f} ± {100 * r['spread']:.0f} %"
            cells = [r["subject"], ms, f"{r['speed_to_reference']:.2f}x", f"{r['flops'] / 1e9:.1f}"]
            cells += [str(r.get("faults", "")), kept, peak, str(r.get("draws", ""))]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines).strip() + "\n"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Time what trimtab costs beside the plain backbone.")
    parser.add_argument("--models", nargs="+", choices=sorted(MODELS), default=["small"])
    parser.add_argument("--prompts", nargs="+", type=int, default=[50])
    parser.add_argument("--images", nargs="+", type=int, default=[224], help="sizes in pixels")
    parser.add_argument("--dtypes", nargs="+", choices=["fp32", "autocast", "bf16"], default=["fp32"])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each process")
    parser.add_argument("--draws", type=int, default=4, help="processes of each subject, one after the other")
    parser.add_argument("--kinds", nargs="+", choices=sorted(RATIO_TO), default=sorted(RATIO_TO))
    parser.add_argument("--subjects", nargs="+", help="only these (the reference is always there)")
    parser.add_argument(
        "--head",
        choices=["classifier", *DECODERS],
        default="classifier",
        help="a segmentation head: forward passes only, beside the untouched backbone with that head",
    )
    parser.add_argument("--compiled", action="store_true", help="also compiled")
    parser.add_argument("--memory", action="store_true", help="also peak memory, in a process for each subject")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, help="by default torch's own number")
    parser.add_argument("--allow-busy", action="store_true", help="time although other processes are running")
    parser.add_argument("--out", type=Path, help="folder for speed.json and speed.md; earlier records are kept")
    parser.add_argument("--alone", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line says."""
    parsed = parse(arguments)
    import torch

    if parsed.threads:
        torch.set_num_threads(parsed.threads)
    if parsed.alone:
        kind, subject, setting = parsed.alone
        print(alone(kind, subject, Setting(**json.loads(setting))))
        return 0
    others = busy()
    if others > 0.2 and not parsed.allow_busy:
        print(f"Other processes keep {others:.1f} processors busy; wait, or say --allow-busy.", file=sys.stderr)
        return 1
    records: list[dict[str, Any]] = []
    modes = (False, True) if parsed.compiled else (False,)
    segments = parsed.head != "classifier"
    kinds = ["forward"] if segments else parsed.kinds
    grid = itertools.product(parsed.models, parsed.prompts, parsed.images, parsed.dtypes, modes, kinds)
    for model, prompts, image, dtype, compiled, kind in grid:
        setting = Setting(model, prompts, image, parsed.batch_size, dtype, parsed.device, compiled, parsed.head)
        everyone = (
            TRAINING if kind == "training" else tuple(s for s in FORWARD if not (segments and s == "concatenated"))
        )
        subjects = [s for s in everyone if not parsed.subjects or s in (*parsed.subjects, RATIO_TO[kind])]
        found = measure(kind, subjects, setting, parsed.rounds, parsed.draws)
        for record in found:
            if parsed.memory and not compiled:
                record["peak_bytes"] = peak_memory(kind, record["subject"], setting)
            record |= {
                "busy": round(others, 2),
                "rounds": parsed.rounds,
                "draws": parsed.draws,
                **machine(parsed.device),
            }
        records += found
        print(table(found), flush=True)
        if parsed.out:
            _keep(parsed.out, found)
    return 0


def machine(device: str) -> dict[str, Any]:
    """Return what was measured on."""
    import timm
    import torch

    name = torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()}, {os.cpu_count()} processors"
    return {"machine": name, "threads": torch.get_num_threads(), "torch": torch.__version__, "timm": timm.__version__}


def _keep(out: Path, found: list[dict[str, Any]]) -> None:
    """Add records to those of earlier runs; the same setting and subject is replaced."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "speed.json"
    names = ("kind", "subject", *(field.name for field in dataclasses.fields(Setting)))
    kept = {tuple(r[n] for n in names): r for r in (json.loads(path.read_text("utf-8")) if path.exists() else [])}
    kept |= {tuple(r[n] for n in names): r for r in found}
    path.write_text(json.dumps(list(kept.values()), indent=1) + "\n", encoding="utf-8")
    (out / "speed.md").write_text(table(list(kept.values())), encoding="utf-8")
    draw_speed(list(kept.values()), out)


if __name__ == "__main__":
    sys.exit(main())
