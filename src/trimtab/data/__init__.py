"""Images with labels: where they come from, how they are prepared, and the cache in memory."""

from __future__ import annotations

from trimtab.data.folders import list_images
from trimtab.data.preprocess import Preprocess
from trimtab.data.sources import (
    ImageSet,
    TrainingData,
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
    "list_images",
    "open_split",
    "open_training",
    "stratified_split",
    "write_split",
]
