"""ONNX Runtime beside eager torch, on real images: do they agree, and how long does each take.

    python benchmarks/onnx_speed.py runs/ship ../shared/data/caltech101/test

Both see the same preprocessed images; ``export`` writes the graph into a temporary folder. Timed in turn, with as many
threads.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

if not __package__:
    # Run as a file: the package is found from its parent, and its modules not as top-level ones.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor

import trimtab
from trimtab.data import list_images
from trimtab.inference.export import export
from trimtab.tasks.classification import Predictor


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare and print."""
    parser = argparse.ArgumentParser(description="Compare ONNX Runtime with eager torch on real images.")
    parser.add_argument("directory", help="result folder of trimtab fit")
    parser.add_argument("images", type=Path, help="folder of images")
    parser.add_argument("--weights")
    parser.add_argument("--count", type=int, default=64, help="images that are compared")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args(arguments)
    predictor = trimtab.load(args.directory, weights=args.weights, device="cpu")
    if not isinstance(predictor, Predictor):
        print("The folder holds a segmenter; name a classifier's.", file=sys.stderr)
        return 1
    found = list_images([args.images])
    chosen = found[:: max(len(found) // args.count, 1)][: args.count]
    pixels = predictor.preprocess.finish([predictor.preprocess.read(path) for path in chosen])
    with tempfile.TemporaryDirectory() as folder:
        written = export(args.directory, out=folder, weights=args.weights)
        onnx = _session(written.file)
        difference = float((onnx(pixels) - predictor.logits(pixels)).abs().max())
        print(f"{len(chosen)} real images: logits differ by at most {difference:.1e}")
        rows = [_timed(onnx, predictor.logits, pixels[:size], args.rounds) for size in args.batch_sizes]
    for row in rows:
        print(
            f"batch {row['batch_size']}: eager {1000 * row['eager']:.1f} ms, ONNX Runtime {1000 * row['onnx']:.1f} ms, "
            f"{row['ratio']:.2f}x"
        )
    if args.out:
        about = {"machine": f"{platform.machine()}, {os.cpu_count()} processors", "threads": torch.get_num_threads()}
        record = {"directory": args.directory, "images": len(chosen), "difference": difference, "rows": rows, **about}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


def _session(file: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def run(pixels: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"images": (pixels.float() / 255).numpy()})[0])

    return run


def _timed(
    onnx: Callable[[Tensor], Tensor], eager: Callable[[Tensor], Tensor], pixels: Tensor, rounds: int
) -> dict[str, Any]:
    """Medians, and the median of the rounds' ratios (eager to ONNX Runtime)."""
    seconds: dict[str, list[float]] = {"eager": [], "onnx": []}
    runs = {"eager": eager, "onnx": onnx}
    for number in range(rounds + 1):
        for name in list(runs) if number % 2 else list(runs)[::-1]:
            started = time.perf_counter()
            runs[name](pixels)
            # The first round warms up.
            if number:
                seconds[name].append(time.perf_counter() - started)
    ratios = [a / b for a, b in zip(seconds["eager"], seconds["onnx"], strict=True)]
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {"batch_size": pixels.shape[0], **medians, "ratio": statistics.median(ratios)}


if __name__ == "__main__":
    sys.exit(main())
