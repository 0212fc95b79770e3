"""Adapter folders of models that nobody trained, on the small backbones of all families."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.families import images_for, shared_backbone
from tests.heads.small import small_head
from tests.methods.cases import CASES, tuned
from trimtab import checkpoint
from trimtab.data import LabelEncoding, Preprocess, SegmentationTransform
from trimtab.model import TunedModel, build
from trimtab.tasks import make_task
from trimtab.tasks.segmentation.task import Segmentation, SegmentationConfig

_RUN: dict[str, Any] = {"data": "made", "seed": 0, "command": "none"}
_HALF = (0.5, 0.5, 0.5)


def save(model: TunedModel, directory: Path, segmenter: SegmentationConfig | None = None) -> Path:
    """Save a model as an adapter folder, of a segmenter with a ``segmenter``'s options."""
    size = model.backbone.image_size
    head: Any = model.head
    count = head.num_classes if segmenter else head.linear.out_features
    if segmenter is None:
        task = make_task()
        preprocess: Any = Preprocess(image_size=size, resize="squash", mean=_HALF, std=_HALF)
    else:
        task = Segmentation(segmenter, LabelEncoding(tuple(range(count)), (255,), False, ((0, 0, 0),) * count))
        preprocess = SegmentationTransform(image_size=size, mean=_HALF, std=_HALF)
    directory.mkdir(parents=True, exist_ok=True)
    checkpoint.save(
        directory,
        model,
        model.adapter_state_dict(),
        labels=tuple(f"class {k}" for k in range(count)),
        weights=None,
        preprocess=preprocess,
        metrics={},
        run=_RUN,
        task=task,
        of_task=task.saved(None),
    )
    return directory


def classifier(method: str, case: str, family: str, *, classes: int = 4, seed: int = 0) -> TunedModel:
    """A prepared classifier whose head notices everything; another for each seed."""
    torch.manual_seed(seed)
    return tuned(method, case, family, classes=classes)


def segmenter(method: str, case: str, family: str, head: str, *, classes: int = 3) -> TunedModel:
    """A prepared segmenter."""
    backbone = shared_backbone(family)
    model = build(backbone, CASES[method][case].config(backbone), classes, small_head(head, channels=4))
    model.prepare([images_for(backbone, count=6, seed=3)])
    return model.eval()
