"""What frozen features are worth: a linear classifier on them, beside the same on other features."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from scripts.micro.images import SIDE, normalise
from scripts.micro.student import PREPROCESSING, trained, untrained
from scripts.micro.teacher import TEACHER, TEACHER_SIDE
from trimtab.data import Preprocess
from trimtab.storage.files import write_json

SETS = ("cifar10", "digits", "caltech101", "dtd10", "brain_mri")
STRENGTHS = tuple(float(f"{10**power:.3g}") for power in np.arange(-5, 2.1, 0.5))
"""C of the logistic regression, from much to little regularisation."""
HELD_OUT = 0.2
"""Part of the training images on which C is chosen."""
OURS, RANDOM, PIXELS = "trimtab-micro", "its random initialisation", "raw pixels"
VIT, VIEW = f"ViT-Tiny at {SIDE} px", f"ViT-Tiny at {TEACHER_SIDE} px, enlarged (what taught it)"
ROWS = (OURS, RANDOM, PIXELS, VIT, VIEW)

Row = dict[str, Any]
Features = NDArray[np.float64]


class Split(NamedTuple):
    """Images as every row of the table begins with them."""

    train: Tensor
    """uint8 (n, 3, 64, 64)."""
    test: Tensor
    train_labels: NDArray[np.int64]
    test_labels: NDArray[np.int64]


# --- images ---------------------------------------------------------------------------------------


def read_set(name: str, shared: Path) -> Split:
    """The images of a set, resized as `trimtab fit` resizes them for the backbone."""
    preprocess = Preprocess(
        image_size=(SIDE, SIDE),
        resize="shorter",
        crop_pct=PREPROCESSING["crop_pct"],
        interpolation=PREPROCESSING["interpolation"],
        mean=tuple(PREPROCESSING["mean"]),
        std=tuple(PREPROCESSING["std"]),
    )
    if name == "digits":
        return _digits(preprocess)
    folder = shared / "data" / name
    if not folder.is_dir():
        raise SystemExit(f"micro: there is no folder {str(folder)!r}; name the one with the data with --shared.")
    parts: dict[str, tuple[Tensor, NDArray[np.int64]]] = {}
    classes = sorted(path.name for path in (folder / "train").iterdir())
    for part in ("train", "test"):
        paths = sorted((folder / part).glob("*/*"))
        labels = np.array([classes.index(path.parent.name) for path in paths])
        parts[part] = torch.stack([preprocess.read(path) for path in paths]), labels
    return Split(parts["train"][0], parts["test"][0], parts["train"][1], parts["test"][1])


def _digits(preprocess: Preprocess) -> Split:
    """scikit-learn's 1797 digits of 8 x 8 pixels, 1000 of them to train on."""
    found = load_digits()
    images = torch.stack(
        [preprocess.from_image(Image.fromarray((pixels * (255 / 16)).astype(np.uint8))) for pixels in found.images]
    )
    train, test = train_test_split(np.arange(len(images)), train_size=1000, stratify=found.target, random_state=0)
    return Split(images[train], images[test], found.target[train], found.target[test])


# --- features -------------------------------------------------------------------------------------


def features_of(row: str, work: Path, shared: Path) -> tuple[Callable[[Tensor], Tensor], str]:
    """What turns normalised images (B, 3, 64, 64) into features (B, D), and a digest of its weights."""
    if row == PIXELS:
        return lambda images: images.flatten(1), ""
    if row in (OURS, RANDOM):
        model = trained(work) if row == OURS else untrained()
        return _pooled(model), digest(model)
    model = timm.create_model(TEACHER, pretrained=False)
    weights = load_file(shared / "weights" / f"{TEACHER}.fp16.safetensors")
    model.load_state_dict({name: value.float() for name, value in weights.items()})
    found, side = digest(model), SIDE if row == VIT else TEACHER_SIDE
    model.set_input_size(img_size=(side, side))
    pooled = _pooled(model.eval())
    if row == VIT:
        return pooled, found
    return lambda images: pooled(F.interpolate(images, size=(side, side), mode="bicubic")), found


def _pooled(model: Any) -> Callable[[Tensor], Tensor]:
    """What timm's classifier would read."""

    def pooled(images: Tensor) -> Tensor:
        features: Tensor = model.forward_head(model.forward_features(images), pre_logits=True)
        return features

    return pooled


def digest(model: nn.Module) -> str:
    """Tells weights apart."""
    found = hashlib.sha256()
    for _, value in sorted(model.state_dict().items()):
        found.update(value.detach().contiguous().numpy().tobytes())
    return found.hexdigest()[:12]


@torch.inference_mode()
def _compute(extract: Callable[[Tensor], Tensor], images: Tensor, batch: int = 100) -> Features:
    return torch.cat([extract(normalise(part)) for part in images.split(batch)]).double().numpy()


# --- the classifier -------------------------------------------------------------------------------


def measure(features: tuple[Features, Features], split: Split) -> Row:
    """Logistic regression on standardised features.

    C is chosen on a part of the training images that is held out, then all of them are fitted; the test images are
    read once, at the end.
    """
    train, test = features
    labels = split.train_labels
    own, held = train_test_split(np.arange(len(labels)), test_size=HELD_OUT, stratify=labels, random_state=0)
    seen = _standardised(train[own], train[held])
    # Of equals, the most regularised.
    found = {c: _fit(seen[0], labels[own], c).score(seen[1], labels[held]) for c in STRENGTHS}
    best = max(STRENGTHS, key=lambda c: found[c])
    seen = _standardised(train, test)
    accuracy = _fit(seen[0], labels, best).score(seen[1], split.test_labels)
    return {
        "train": len(labels),
        "test": len(split.test_labels),
        "width": train.shape[1],
        "C": best,
        "validation": round(found[best], 4),
        "accuracy": round(accuracy, 4),
        "standard_error": round(math.sqrt(accuracy * (1 - accuracy) / len(split.test_labels)), 4),
    }


def _standardised(train: Features, other: Features) -> tuple[Features, Features]:
    scaler = StandardScaler().fit(train)
    train, other = scaler.transform(train), scaler.transform(other)
    if train.shape[1] > train.shape[0]:
        # Turned into the space that the training images span: all that a ridge sees, and a tenth of the pixels.
        axes = np.linalg.qr(train.T)[0]
        train, other = train @ axes, other @ axes
    return train, other


def _fit(features: Features, labels: NDArray[np.int64], c: float) -> LogisticRegression:
    return LogisticRegression(C=c, max_iter=2000).fit(features, labels)


# --- all of it ------------------------------------------------------------------------------------


def run(work: Path, shared: Path, sets: tuple[str, ...] = SETS, rows: tuple[str, ...] = ROWS) -> list[Row]:
    """Measure what is not in ``work/probe.json`` yet; a network's row is done again when its weights are others."""
    path = work / "probe.json"
    known: list[Row] = json.loads(path.read_text()) if path.is_file() else []
    for name in sets:
        split: Split | None = None
        for row in rows:
            extract, weights = features_of(row, work, shared)
            if any((e["set"], e["features"], e["weights"]) == (name, row, weights) for e in known):
                continue
            split = split or read_set(name, shared)
            started = time.monotonic()
            features = _compute(extract, split.train), _compute(extract, split.test)
            result = {"set": name, "features": row, "weights": weights, **measure(features, split)}
            result["seconds"] = round(time.monotonic() - started, 1)
            known = [e for e in known if (e["set"], e["features"]) != (name, row)] + [result]
            write_json(path, known)
            print(result, flush=True)
    print("\n".join(table(known)))
    return known


def table(results: list[Row]) -> Iterator[str]:
    """Test accuracies in Markdown, a row for each kind of features."""
    by_place = {(e["features"], e["set"]): e for e in results}
    sets = [name for name in SETS if any(e["set"] == name for e in results)]
    yield f"| features | width | {' | '.join(sets)} |"
    yield f"|---|---|{'---|' * len(sets)}"
    for row in ROWS:
        found = [by_place.get((row, name)) for name in sets]
        some = next((e for e in found if e is not None), None)
        if some is not None:
            cells = ["" if e is None else f"{100 * e['accuracy']:.1f}" for e in found]
            yield f"| {row} | {some['width']:,} | {' | '.join(cells)} |"
