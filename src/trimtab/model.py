"""A tuned model: a frozen backbone, a method that steers it, a head."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trimtab.backbone import Backbone
from trimtab.errors import ConfigError
from trimtab.heads import Classifier
from trimtab.methods import configure, method_of
from trimtab.methods.base import Constants, Method
from trimtab.noise import Noise
from trimtab.stream import Stream


class Outputs(NamedTuple):
    """What a training step needs."""

    logits: Tensor
    """(B, C)."""
    loss: Tensor
    """The method's own loss, to be added to the task's; 0 for most."""


class TunedModel(nn.Module):
    """Images in, logits out.

    Args:
        backbone: Shared with others if you like: it is never changed.
        method: Steers the backbone; owns what is trained besides the head.
        head: Reads the pooled features.
    """

    def __init__(self, backbone: Backbone, method: Method[Any], head: Classifier) -> None:
        super().__init__()
        self.backbone, self.method, self.head = backbone, method, head

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, height, width) to logits (B, C)."""
        logits: Tensor = self.head(self.backbone.pool(self.run(images, pooled_only=True)))
        return logits

    def outputs(self, images: Tensor, *, noise: Noise | None = None, recompute: bool = False) -> Outputs:
        """Logits and the method's own loss, for a training loop.

        Args:
            images: Normalised, (B, 3, height, width).
            noise: Where random numbers come from.
            recompute: Keep what enters each block only, and compute the rest anew in the backward pass.
        """
        stream = self.run(images, noise=noise, pooled_only=True, recompute=recompute)
        logits = self.head(self.backbone.pool(stream))
        loss = self.method.loss(stream)
        return Outputs(logits, logits.new_zeros(()) if loss is None else loss)

    def run(
        self, images: Tensor, *, noise: Noise | None = None, pooled_only: bool = False, recompute: bool = False
    ) -> Stream:
        """The stream as it leaves the last block; if pooling alone reads it, with no more than that needs."""
        weights = self.method.weights(self.backbone)
        stream = self.backbone.embed(images, noise=noise, weights=weights, pooled_only=pooled_only)
        for i in range(self.backbone.depth):
            stream = self._recomputed(i, stream) if recompute else self.method.step(i, self.backbone, stream)
        return stream

    def _recomputed(self, i: int, stream: Stream) -> Stream:
        drawn = stream.noise.drawn

        def step(stream: Stream) -> Stream:
            # The second time, the same numbers are drawn.
            stream.noise.drawn = drawn
            return self.method.step(i, self.backbone, stream)

        left: Stream = checkpoint(step, stream, use_reentrant=False)
        return left

    def fold(self) -> TunedModel:
        """This model for inference: what no image changes is computed now and stored.

        Logits stay equal up to rounding. Shares the backbone's tensors with this model and nothing else, those
        excepted that the method has in their place; not for training.
        """
        with torch.no_grad():
            weights = self.method.weights(self.backbone)
            backbone = self.backbone.with_weights(weights) if weights else self.backbone
            folded = self.method.fold(backbone)
        method = copy.deepcopy(folded) if folded is self.method else folded
        return TunedModel(backbone, method, copy.deepcopy(self.head)).eval()

    def prepare(self, batches: Iterable[Tensor]) -> None:
        """Let the method look at training images (B, 3, height, width) before it is trained."""
        self.method.prepare(self.backbone, batches)

    def trained(self) -> dict[str, Tensor]:
        """Everything to be saved: the method's and the head's tensors by name, nothing of the backbone.

        Raises:
            ConfigError: If this is a folded model, of which nothing can be trained or rebuilt.
        """
        if isinstance(self.method, Constants):
            raise ConfigError("A folded model is for inference only; save the model that was folded.")
        tensors = {f"method.{name}": value for name, value in self.method.state_dict().items()}
        return tensors | {f"head.{name}": value for name, value in self.head.state_dict().items()}

    def load_trained(self, tensors: dict[str, Tensor]) -> None:
        """Put back what :meth:`trained` gave, strictly."""
        for part, module in (("method.", self.method), ("head.", self.head)):
            named = {name[len(part) :]: value for name, value in tensors.items() if name.startswith(part)}
            module.load_state_dict(named)

    def num_trainable(self) -> int:
        """Trainable numbers, the head's included."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)


def build(backbone: Backbone, config: object, num_classes: int) -> TunedModel:
    """A model to be tuned by the method whose options ``config`` holds, on the backbone's device.

    Raises:
        ConfigError: If the method cannot tune this backbone, or there are fewer than two classes.
    """
    if num_classes < 2:
        raise ConfigError(f"num_classes is {num_classes}; a classifier needs at least 2.")
    method = method_of(config)(config, backbone)
    backbone.check_weights(method.weights(backbone))
    head = Classifier(backbone.num_features, num_classes)
    method.initialise_head(head.linear)
    return TunedModel(backbone, method, head).to(backbone.device)


def attach(model: nn.Module, method: str | object, num_classes: int, **options: Any) -> TunedModel:
    """Tune a timm model of your own, in a loop of your own.

    The model is shared, not copied: it is frozen and put into eval mode; its values are never changed.

    Args:
        model: A timm VisionTransformer, Eva, SwinTransformer or SwinTransformerV2, weights loaded.
        method: A method's name with ``options``, or its configuration.
        num_classes: C.
        options: Fields of the method's configuration, if ``method`` is a name.

    Raises:
        BackboneError: If the model cannot be opened.
        ConfigError: If the method cannot tune it.

    Example:
        >>> import timm, torch, trimtab
        >>> tuned = trimtab.attach(timm.create_model("test_vit"), "vpt", num_classes=7, num_prompts=5)
        >>> logits, extra_loss = tuned.outputs(torch.zeros(2, 3, 160, 160))
        >>> logits.shape
        torch.Size([2, 7])
    """
    return build(Backbone(model), configure(method, options), num_classes)
