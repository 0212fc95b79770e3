"""The images: Tiny-ImageNet's as they lie in ../shared."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trimtab.data.decode import open_allowed

SIDE = 64


def read_images(parquet: Path, work: Path) -> tuple[Tensor, Tensor, list[str]]:
    """All images and labels, decoded once and kept in ``work``.

    Returns:
        uint8 images (n, 3, 64, 64), labels (n,), and the WordNet identifier of each label.
    """
    try:
        import pyarrow.parquet
    except ImportError:
        raise SystemExit(
            "micro: reading the images needs pyarrow, and nothing else here does; pip install it."
        ) from None
    if not parquet.is_file():
        raise SystemExit(f"micro: there is no file {str(parquet)!r}; name the folder with the data with --shared.")
    table = pyarrow.parquet.read_table(parquet)
    labels = torch.from_numpy(table["label"].to_numpy().copy())
    wnids = dict(zip(labels.tolist(), table["wnid"].to_pylist(), strict=True))
    names = [wnids[k] for k in range(len(wnids))]
    kept = work / "images.npy"
    if not kept.is_file():
        pictures = np.empty((table.num_rows, 3, SIDE, SIDE), np.uint8)
        for k, cell in enumerate(table["image"]):
            with open_allowed(io.BytesIO(cell.as_py()["bytes"])) as image:
                pictures[k] = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
        np.save(kept.with_name("images-part.npy"), pictures)
        kept.with_name("images-part.npy").replace(kept)
    return torch.from_numpy(np.load(kept)), labels, names


def normalise(images: Tensor) -> Tensor:
    """uint8 to the range -1 to 1, which both networks take."""
    return images.float().div_(127.5).sub_(1.0)
