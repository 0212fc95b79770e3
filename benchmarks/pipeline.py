"""How long a training step waits for its images, epoch by epoch; or how long photos of 12 megapixels take.

    python benchmarks/pipeline.py ../shared/data/caltech101 --weights ../shared/weights/NAME.fp16.safetensors
    python benchmarks/pipeline.py ../shared/data/caltech101/train --weights ... --photos 1000 --out photos.json

Trains with ``trimtab.fit`` as it is and measures two things from outside: the time inside the iterator that hands
batches to the loop, and the time of the whole epoch. With ``--photos`` it enlarges images of a folder of class folders
to the size of a phone's photos first, and measures all of ``fit`` and ``predict`` with scaled decoding and without, in
turn.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import ImageOps
from torch import Tensor

import trimtab.training.loop
from trimtab.data.decode import open_allowed
from trimtab.inference.evaluate import load
from trimtab.progress import TerminalProgress
from trimtab.training.fit import fit
from trimtab.training.inputs import ImageBatches

DIFFERENT = 48
"""Photos of which `write_photos` makes each anew."""
EPOCHS: list[dict[str, float]] = []


class Watched(ImageBatches):
    """Batches, and how long each was waited for."""

    def batches(self, plan: Sequence[Sequence[int]], seed: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """As :class:`ImageBatches`; only training epochs, which have a seed, are written down."""
        inner = super().batches(plan, seed)
        started, waited = time.perf_counter(), 0.0
        while True:
            before = time.perf_counter()
            batch = next(inner, None)
            waited += time.perf_counter() - before
            if batch is None:
                break
            yield batch
            total = time.perf_counter() - started
            if seed is not None:
                # The loop asks no further than it needs: the last batch's entry stands.
                if waited and EPOCHS and EPOCHS[-1]["started"] == started:
                    EPOCHS.pop()
                EPOCHS.append({"started": started, "waited": waited, "seconds": total})


def write_photos(source: Path, folder: Path, count: int, size: tuple[int, int]) -> None:
    """Enlarge the images of class folders to JPEGs of (width, height); beyond `DIFFERENT` they come again."""
    files = sorted(source.glob("*/*.jpg"))
    chosen = files[:: max(1, len(files) // DIFFERENT)][:DIFFERENT]
    if not chosen:
        raise SystemExit(f"{source} holds no class folders with JPEG images.")
    for number in range(count):
        first = folder / f"{chosen[number % len(chosen)].parent.name}" / f"{number % len(chosen):05}.jpg"
        if number < len(chosen):
            first.parent.mkdir(parents=True, exist_ok=True)
            with open_allowed(chosen[number]) as image:
                ImageOps.fit(image.convert("RGB"), size).save(first, quality=90)
        else:
            shutil.copy(first, first.with_name(f"{number:05}.jpg"))


def measure(folder: Path, scaled: bool, epochs: int, options: dict[str, Any]) -> dict[str, Any]:
    """Time ``fit`` on photos and ``predict`` of them; wall and CPU seconds of this process."""
    row: dict[str, Any] = {"scaled_decoding": scaled}
    with tempfile.TemporaryDirectory() as home:
        out = Path(home) / "run"
        clocks = [(time.perf_counter(), time.process_time())]
        fit(folder, out=out, epochs=epochs, val_fraction=0.0, scaled_decoding=scaled, **options)
        clocks.append((time.perf_counter(), time.process_time()))
        predictor = load(out, weights=options["weights"])
        row["images"] = len(predictor.predict(folder))
        clocks.append((time.perf_counter(), time.process_time()))
    for name, before, after in zip(("fit", "predict"), clocks, clocks[1:], strict=False):
        row[f"{name}_seconds"], row[f"{name}_cpu_seconds"] = after[0] - before[0], after[1] - before[1]
    return row


def compare(args: argparse.Namespace, options: dict[str, Any]) -> list[dict[str, Any]]:
    """Measure photos decoded in full and scaled, in turn."""
    rows = []
    with tempfile.TemporaryDirectory() as home:
        write_photos(args.data, Path(home), args.photos, tuple(args.photo_size))
        for scaled in [False, True] * args.rounds:
            rows.append(measure(Path(home), scaled, args.epochs, {"method": args.method, **options}))
            print(json.dumps(rows[-1]), flush=True)
    return rows


def watch(args: argparse.Namespace, options: dict[str, Any]) -> list[dict[str, Any]]:
    """Train and print how long each epoch took, and how much of it was waiting."""
    setattr(trimtab.training.loop, "ImageBatches", Watched)  # noqa: B010 - a name that mypy knows as a class
    EPOCHS.clear()
    with tempfile.TemporaryDirectory() as folder:
        fit(
            args.data,
            out=Path(folder) / "run",
            method=args.method,
            epochs=args.epochs,
            val_fraction=0.0,
            progress=TerminalProgress(),
            **options,
        )
    rows = [{"epoch": k + 1, "waited": e["waited"], "seconds": e["seconds"]} for k, e in enumerate(EPOCHS)]
    for row in rows:
        share = 100 * row["waited"] / row["seconds"]
        print(f"epoch {row['epoch']}: {row['seconds']:.1f} s, of which {row['waited']:.2f} s waiting ({share:.1f} %)")
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Train two epochs and print the shares; or compare ways of decoding."""
    parser = argparse.ArgumentParser(description="Measure how long training steps wait for images.")
    parser.add_argument("data", type=Path, help="as for trimtab fit; with --photos a folder of class folders")
    parser.add_argument("--backbone", default="vit_tiny_patch16_224.augreg_in21k_ft_in1k")
    parser.add_argument("--weights")
    parser.add_argument("--method", default="vpt")
    parser.add_argument("--augment", default="none")
    parser.add_argument("--image-size")
    parser.add_argument("--cache-gb", type=float, default=2.0)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--photos", type=int, help="number of photos to make")
    parser.add_argument("--photo-size", type=int, nargs=2, default=(4032, 3024), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--rounds", type=int, default=1, help="how often each way is measured")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args(arguments)
    options: dict[str, Any] = {
        name: getattr(args, name) for name in ("backbone", "weights", "augment", "image_size", "cache_gb", "limit")
    }
    if args.photos:
        rows = compare(args, options)
        record = {"photos": rows}
    else:
        rows = watch(args, options)
        record = {"epochs": rows}
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({"arguments": vars(args), **record}, default=str, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
