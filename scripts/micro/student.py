"""The small network, and what it is trained with."""

from __future__ import annotations

import timm
import torch
from torch import Tensor, nn

from scripts.micro.teacher import CLASSES, WIDTH

ARCHITECTURE = "vit_tiny_patch16_224"
ARGUMENTS = {"img_size": 64, "patch_size": 8, "embed_dim": 128, "depth": 12, "num_heads": 4, "num_classes": 0}


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
