"""The small network, and what it is trained with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from scripts.micro.images import SIDE
from scripts.micro.teacher import CLASSES, WIDTH

ARCHITECTURE = "vit_tiny_patch16_224"
ARGUMENTS = {"img_size": SIDE, "patch_size": 8, "embed_dim": 128, "depth": 12, "num_heads": 4, "num_classes": 0}
PREPROCESSING = {
    "input_size": [3, SIDE, SIDE],
    "interpolation": "bicubic",
    "crop_pct": 1.0,
    "crop_mode": "center",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
}
"""How the student saw its images; what is not square loses its ends."""


class Student(nn.Module):
    """The backbone with three linear layers that are thrown away afterwards.

    They map its tokens to the teacher's: the class token, the patches, and the class token to the teacher's logits.
    """

    def __init__(self) -> None:
        super().__init__()
        self.backbone = timm.create_model(ARCHITECTURE, **ARGUMENTS)
        width = self.backbone.embed_dim
        self.class_token, self.patches = nn.Linear(width, WIDTH), nn.Linear(width, WIDTH)
        self.logits = nn.Linear(width, CLASSES)

    def forward(self, images: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Images (B, 3, 64, 64) to class token (B, 192), patches (B, kept, 192) and logits (B, 1000).

        Args:
            images: Normalised.
            keep: Positions (kept,) of the patches that the network sees; all by default.
        """
        net = self.backbone
        x = net._pos_embed(net.patch_embed(images))
        if keep is not None:
            x = torch.cat([x[:, :1], x[:, 1:][:, keep]], 1)
        for block in net.blocks:
            x = block(x)
        x = net.norm(x)
        return self.class_token(x[:, 0]), self.patches(x[:, 1:]), self.logits(x[:, 0])


def standardise_(backbone: Any, features: Tensor) -> None:
    """Let pooled features have mean 0 and deviation 1 a channel on the images that gave ``features`` (n, 128).

    A shift and a scale of the final norm, so the network knows no less; but a classifier on features that differ by a
    tenth around means of one takes ten times as long to learn.
    """
    mean, deviation = features.mean(0), features.std(0)
    with torch.no_grad():
        backbone.norm.weight.div_(deviation)
        backbone.norm.bias.sub_(mean).div_(deviation)


def trained(work: Path) -> nn.Module:
    """The averaged backbone of the training in ``work``, its features standardised, rounded to half precision."""
    state = torch.load(work / "student.pt", weights_only=True)
    student = Student()
    student.load_state_dict(state["average"])
    standardise_(student.backbone, state["features"])
    return student.backbone.half().float().eval()


def untrained() -> nn.Module:
    """The backbone as training begins with it."""
    torch.manual_seed(0)
    return Student().backbone.half().float().eval()
