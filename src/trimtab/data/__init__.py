"""Images with labels: where they come from, how they are prepared, and the cache in memory."""

from __future__ import annotations

from trimtab.data.folders import find_images, list_images
from trimtab.data.preprocess import Preprocess, why_unreadable
from trimtab.data.sources import (
    ImageSet,
    TrainingData,
    named_splits,
    open_split,
    open_training,
    stratified_split,
    write_split,
)
from trimtab.data.store import ImageStore

__all__ = [
    "ImageSet",
    "ImageStore",
    "Preprocess",
    "TrainingData",
    "find_images",
    "list_images",
    "named_splits",
    "open_split",
    "open_training",
    "stratified_split",
    "why_unreadable",
    "write_split",
]
