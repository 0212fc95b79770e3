"""SETR's head: progressive upsampling."""

from __future__ import annotations

import itertools

import torch.nn.functional as F
from torch import Tensor, nn

from trimtab.backbone import Backbone
from trimtab.heads.base import Features, WeightedLogits
from trimtab.heads.segmenter import SegmenterConfig, TappedSegmenter, as_grids

_CHANNELS = 256


class _Upsampling(nn.Module):
    """A norm, then convolutions that each enlarge the grid, then a classifier.

    Adds ``2 D + 9 D c + 9 c^2 (convolutions - 1) + 2 c convolutions + C (c + 1)`` parameters for c channels.
    """

    def __init__(self, width: int, channels: int, num_classes: int, convolutions: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.norm = nn.LayerNorm(width, eps=1e-6)
        widths = [width, *[channels] * convolutions]
        self.convolutions = nn.ModuleList()
        for before, after in itertools.pairwise(widths):
            convolution = nn.Conv2d(before, after, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            self.convolutions.append(nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU()))
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        nn.init.normal_(self.classifier.weight, std=0.01)
        if self.classifier.bias is not None:
            nn.init.zeros_(self.classifier.bias)

    def forward(self, grid: Tensor) -> Tensor:
        """(B, D, h, w) to logits (B, C, h factor^convolutions, w factor^convolutions)."""
        x: Tensor = self.norm(grid.movedim(1, -1)).movedim(-1, 1)
        for convolution in self.convolutions:
            x = F.interpolate(convolution(x), scale_factor=self.factor, mode="bilinear", align_corners=False)
        logits: Tensor = self.classifier(x)
        return logits


class ProgressiveUpsampling(TappedSegmenter):
    """SETR-PUP: four convolutions, each followed by twofold upsampling, and auxiliary heads on earlier blocks.

    The auxiliary heads (two convolutions, fourfold upsampling) serve training alone. All sizes are those of
    mmsegmentation's SETR-PUP for ADE20K, which VPT's segmentation is built on: 13,143,640 parameters for ViT-Large and
    150 classes.

    References:
        | Rethinking Semantic Segmentation from a Sequence-to-Sequence Perspective with Transformers
        | (Zheng et al., 2021)
        | https://arxiv.org/abs/2012.15840
    """

    def __init__(self, config: SegmenterConfig, backbone: Backbone, num_classes: int) -> None:
        super().__init__(config, backbone, num_classes)
        channels = config.channels or _CHANNELS
        self.weight = config.auxiliary_weight
        self.main = _Upsampling(backbone.widths[self.tapped[-1]], channels, num_classes, convolutions=4, factor=2)
        self.auxiliary = nn.ModuleList(
            _Upsampling(backbone.widths[i], channels, num_classes, convolutions=2, factor=4)
            for i in (self.tapped[:-1] if self.weight else ())
        )

    def predict(self, features: Features) -> Tensor:
        """Logits of the main head (B, C, 16 h, 16 w)."""
        logits: Tensor = self.main(as_grids(features)[-1])
        return logits

    def training_logits(self, features: Features) -> list[WeightedLogits]:
        """The main head's logits with weight 1, then the auxiliary heads'."""
        others = zip(self.auxiliary, as_grids(features), strict=False)
        return [
            WeightedLogits(1.0, self(features)),
            *(WeightedLogits(self.weight, self.enlarged(head(grid))) for head, grid in others),
        ]
