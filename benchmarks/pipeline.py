"""How long a training step waits for its images, epoch by epoch.

    python benchmarks/pipeline.py ../shared/data/caltech101 --weights ../shared/weights/NAME.fp16.safetensors

Trains with ``trimtab.fit`` as it is and measures two things from outside: the time inside the iterator that hands
batches to the loop, and the time of the whole epoch.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

import trimtab.training.loop
from trimtab.progress import TerminalProgress
from trimtab.training.fit import fit
from trimtab.training.inputs import ImageBatches

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


def main(arguments: Sequence[str] | None = None) -> int:
    """Train two epochs and print the shares."""
    parser = argparse.ArgumentParser(description="Measure how long training steps wait for images.")
    parser.add_argument("data", help="as for trimtab fit")
    parser.add_argument("--backbone", default="vit_tiny_patch16_224.augreg_in21k_ft_in1k")
    parser.add_argument("--weights")
    parser.add_argument("--method", default="vpt")
    parser.add_argument("--augment", default="none")
    parser.add_argument("--image-size")
    parser.add_argument("--cache-gb", type=float, default=2.0)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args(arguments)
    setattr(trimtab.training.loop, "ImageBatches", Watched)  # noqa: B010 - a name that mypy knows as a class
    options: dict[str, Any] = {
        name: getattr(args, name) for name in ("backbone", "weights", "augment", "image_size", "cache_gb", "limit")
    }
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
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({"arguments": vars(args), "epochs": rows}, default=str, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
