"""A linear classifier on the frozen features."""

from __future__ import annotations

import dataclasses

from trimtab.methods.base import Method
from trimtab.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class LinearConfig:
    """Options of the linear probe: it has none."""


class Linear(Method[LinearConfig]):
    """The backbone as it is; only the classifier is trained.

    Adds no parameters to those of the head.
    """

    name = "linear"
    Config = LinearConfig
    recipe = Recipe(lr=3e-3)
    touches_blocks = False
