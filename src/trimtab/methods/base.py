"""What every tuning method answers."""

from __future__ import annotations

import abc
import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from trimtab.backbone import Backbone
from trimtab.errors import ConfigError
from trimtab.recipe import Recipe
from trimtab.stream import Stream

ConfigT = TypeVar("ConfigT")


class Method(nn.Module, abc.ABC, Generic[ConfigT]):
    """A way of steering a frozen backbone.

    Owns its trainable tensors and never keeps the backbone. Subclasses are final: they set the class
    variables and implement :meth:`step`; everything else has a default.

    Args:
        config: The method's options.
        backbone: What will be tuned; only its sizes are read.

    Raises:
        ConfigError: If the method cannot tune this backbone, with every reason.
    """

    name: ClassVar[str]
    """The word users type."""
    Config: ClassVar[type]
    """Frozen dataclass of options; the text under each field is its help."""
    recipe: ClassVar[Recipe] = Recipe()
    """How to train it unless told otherwise."""
    paper_recipes: ClassVar[Mapping[str, Recipe]] = {}
    """Training as papers did it, by the name of ``--recipe``."""
    paper_preprocessing: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Preprocessing as papers did it, by the name of ``--preprocess``."""
    touches_blocks: ClassVar[bool] = True
    """False if the pooled features do not depend on what is trained, so that they need computing only once."""

    def __init__(self, config: ConfigT, backbone: Backbone) -> None:
        super().__init__()
        reasons = self.unsupported(config, backbone)
        if reasons:
            raise ConfigError(f"{self.name!r} cannot tune {backbone.name!r}: {'; '.join(reasons)}.")
        self.config = config

    @classmethod
    def unsupported(cls, config: ConfigT, backbone: Backbone) -> list[str]:
        """Why this method cannot tune this backbone, in words; empty if it can."""
        return []

    def images_wanted(self, available: int) -> int:
        """How many of the training images :meth:`prepare` wants to see."""
        return 0

    def prepare(self, backbone: Backbone, batches: Iterable[Tensor]) -> None:
        """A start that depends on the data.

        Called once before training with batches (B, 3, height, width) of normalised training images in
        random order, without augmentation. Afterwards ``config`` holds everything needed to build the same
        method again without the images.
        """

    def initialise_head(self, head: nn.Linear) -> None:
        """Start values of the classifier: small weights (standard deviation 0.02), no bias."""
        nn.init.trunc_normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)

    @abc.abstractmethod
    def step(self, i: int, backbone: Backbone, stream: Stream) -> Stream:
        """Run block ``i`` this method's way."""

    def loss(self, stream: Stream) -> Tensor | None:
        """What the method adds to the task's loss, a mean over images; ``stream`` left the last block."""
        return None

    def facts(self) -> dict[str, Any]:
        """What a reader of the saved model would like to know, JSON values."""
        return {}


def vpt_uniform_(prompts: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """Fill prompts (..., P, D) as VPT does: uniform within sqrt(6 / (3 * patch height * patch width + D))."""
    bound = math.sqrt(6.0 / (3 * math.prod(patch_size) + prompts.shape[-1]))
    with torch.no_grad():
        return prompts.uniform_(-bound, bound)
