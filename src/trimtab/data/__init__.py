"""Images with labels: where they come from, how they are prepared, and the cache in memory."""

from __future__ import annotations

from trimtab.data.built_in import BUILT_IN, hidden_by, named_images, write_folder
from trimtab.data.digits import Digits
from trimtab.data.folders import find_images, list_images
from trimtab.data.images import BuiltInImage, BuiltInSet, ImageSource, open_image, stamp
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
from trimtab.data.sprites import Sprites
from trimtab.data.store import ImageStore

__all__ = [
    "BUILT_IN",
    "BuiltInImage",
    "BuiltInSet",
    "Digits",
    "ImageSet",
    "ImageSource",
    "ImageStore",
    "Preprocess",
    "Sprites",
    "TrainingData",
    "find_images",
    "hidden_by",
    "list_images",
    "named_images",
    "named_splits",
    "open_image",
    "open_split",
    "open_training",
    "stamp",
    "stratified_split",
    "why_unreadable",
    "write_folder",
    "write_split",
]
