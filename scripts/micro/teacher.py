"""What the teacher says of every image, computed once.

At 128 px a ViT-Tiny/16 has 8 x 8 patches, and so has the student at 64 px with patches of 8: each of the student's
tokens has one of the teacher's that looks at the same place.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import timm
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from scripts.micro.images import normalise

TEACHER = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
TEACHER_SIDE = 128
TOKENS, WIDTH, CLASSES = 65, 192, 1000


class Said(NamedTuple):
    """Half-precision arrays on the disk."""

    tokens: NDArray[np.float16]
    """(n, 65, 192): class token and patches after the final norm."""
    logits: NDArray[np.float16]
    """(n, 1000)."""


def open_said(work: Path, images: int, mode: str = "r") -> Said:
    """What :func:`ask` wrote."""

    def array(name: str, *shape: int) -> NDArray[np.float16]:
        return np.lib.format.open_memmap(work / name, mode=mode, dtype=np.float16, shape=(images, *shape))

    return Said(array("tokens.npy", TOKENS, WIDTH), array("logits.npy", CLASSES))


@torch.inference_mode()
def ask(images: Tensor, weights: Path, work: Path, batch: int = 64) -> None:
    """Run the teacher over uint8 images (n, 3, 64, 64); goes on where it was stopped."""
    model = timm.create_model(TEACHER, pretrained=False)
    model.load_state_dict({name: value.float() for name, value in load_file(weights).items()})
    model.set_input_size(img_size=(TEACHER_SIDE, TEACHER_SIDE))
    model.eval()
    count, done = images.shape[0], work / "teacher-done.txt"
    first = int(done.read_text()) if done.is_file() else 0
    said = open_said(work, count, "r+" if first else "w+")
    started = time.monotonic()
    for start in range(first, count, batch):
        rows = slice(start, min(start + batch, count))
        large = F.interpolate(normalise(images[rows]), size=(TEACHER_SIDE, TEACHER_SIDE), mode="bicubic")
        tokens = model.forward_features(large)
        said.tokens[rows] = tokens.half().numpy()
        said.logits[rows] = model.forward_head(tokens).half().numpy()
        done.write_text(str(rows.stop))
        if start // batch % 25 == 0:
            left = (time.monotonic() - started) / (rows.stop - first) * (count - rows.stop)
            print(f"teacher: {rows.stop} of {count} images, {left / 60:.1f} min left", flush=True)
