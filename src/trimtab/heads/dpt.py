"""The decoder of dense prediction transformers, from segmentation_models_pytorch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from trimtab.backbone import Backbone
from trimtab.errors import ConfigError
from trimtab.heads.base import Features
from trimtab.heads.segmenter import SegmenterConfig, TappedSegmenter, as_grids

_CHANNELS = 256
"""At the most, as for ViT-Large in the paper."""


class DensePrediction(TappedSegmenter):
    """DPT: four grids are brought to four scales and fused from the coarsest to the finest.

    Its dropout is turned off: its numbers would not belong to images (see :class:`~trimtab.noise.Noise`).

    References:
        | Vision Transformers for Dense Prediction (Ranftl et al., 2021)
        | https://arxiv.org/abs/2103.13413
    """

    def __init__(self, config: SegmenterConfig, backbone: Backbone, num_classes: int) -> None:
        super().__init__(config, backbone, num_classes)
        try:
            from segmentation_models_pytorch.decoders.dpt.decoder import DPTDecoder, DPTSegmentationHead
        except ImportError as error:
            raise ConfigError(
                f"The head 'dpt' needs the package segmentation_models_pytorch 0.5 or newer ({error}); install "
                "trimtab[segmentation], or choose another head."
            ) from error
        widths = [backbone.widths[i] for i in self.tapped]
        channels = config.channels or max(min(_CHANNELS, widths[-1] // 4), 1)
        # In stages, patches have the four scales already.
        self.staged = len(backbone.stages) > 1
        scales = (4, 8, 16, 32) if self.staged else (16,) * 4
        inner = (widths[-1] // 4, widths[-1] // 2, widths[-1], widths[-1])
        self.decoder = DPTDecoder(widths, scales, False, "ignore", inner, channels)
        self.classifier = DPTSegmentationHead(channels, num_classes)
        for module in self.classifier.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0

    def predict(self, features: Features) -> Tensor:
        """Logits (B, C, 16 h, 16 w) for plain backbones, h and w rounded up to even numbers."""
        grids = as_grids(features)
        height, width = grids[-1].shape[-2:]
        if self.staged:
            sizes = [(height * factor, width * factor) for factor in (8, 4, 2, 1)]
        else:
            # What is halved on the way must come back at the same size.
            sizes = [(height + height % 2, width + width % 2)] * 4
        fitted = [_resized(grid, size) for grid, size in zip(grids, sizes, strict=True)]
        logits: Tensor = self.classifier(self.decoder(fitted, [None] * 4))
        return logits


def _resized(grid: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(grid.shape[-2:]) == size:
        return grid
    return F.interpolate(grid, size, mode="bilinear", align_corners=False)
