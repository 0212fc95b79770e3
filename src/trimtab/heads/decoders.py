"""The segmentation heads by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from trimtab.backbone import Backbone
from trimtab.heads.dpt import DensePrediction
from trimtab.heads.segmenter import PatchClassifier, Segmenter, SegmenterConfig
from trimtab.heads.setr import ProgressiveUpsampling

DECODERS: Mapping[str, Callable[[SegmenterConfig, Backbone, int], Segmenter]] = {
    "linear": PatchClassifier,
    "setr-pup": ProgressiveUpsampling,
    "dpt": DensePrediction,
}
"""The class of each head that :class:`~trimtab.heads.segmenter.SegmenterConfig` can name."""


def make_segmenter(config: SegmenterConfig, backbone: Backbone, num_classes: int) -> Segmenter:
    """Make the head that ``config`` describes, on the CPU, with fresh start values.

    Raises:
        ConfigError: If it cannot be put on this backbone, or its package is not installed.
    """
    return DECODERS[config.head](config, backbone, num_classes)
