"""The command line; see the package's own text."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torch

from scripts.micro.images import read_images
from scripts.micro.teacher import TEACHER, ask
from scripts.micro.train import Recipe, Training


def main() -> None:
    """Do one part."""
    parser = argparse.ArgumentParser(prog="python -m scripts.micro")
    parser.add_argument("part", choices=["teacher", "train"])
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--work", type=Path, default=Path("runs/micro"), help="folder for what is computed on the way")
    parser.add_argument("--threads", type=int, default=2)
    for field in dataclasses.fields(Recipe):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    images, labels, wnids = read_images(args.shared / "data" / "tiny_imagenet_32k.parquet", args.work)
    if args.part == "teacher":
        ask(images, args.shared / "weights" / f"{TEACHER}.fp16.safetensors", args.work)
        return
    from timm.data import ImageNetInfo

    known = {wnid: k for k, wnid in enumerate(ImageNetInfo("imagenet-1k").label_names())}
    recipe = Recipe(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Recipe)})
    Training(images, labels, [known[wnid] for wnid in wnids], args.work, recipe).go()


if __name__ == "__main__":
    main()
