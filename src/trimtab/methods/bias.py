"""BitFit: only the bias terms are trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from torch import Tensor, nn

from trimtab.backbone import Backbone
from trimtab.methods.banked import Banked, Change, banked_weights
from trimtab.methods.base import Method, dotted, slashed
from trimtab.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class BiasConfig:
    """Options of BitFit: it has none."""


def _biases(backbone: Backbone) -> dict[str, nn.Parameter]:
    """All bias terms by timm's names: of linear layers, norms, convolutions, and ``q_bias`` and ``v_bias``."""
    return {name: value for name, value in backbone.named_weights().items() if name.rpartition(".")[2].endswith("bias")}


class Bias(Method[BiasConfig]):
    r"""The bias terms of the backbone, trained; everything else stays frozen.

    :math:`y = W x + b'` with the trained :math:`b'` in every layer that has a bias: linear layers, norms (BitFit
    counts their shift among the biases) and the patch embedding. The trained ones are copies.

    Adds as many parameters as the backbone has bias terms, timm's classifier left out.

    References:
        | BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models
          (Ben Zaken et al., 2022), section 3
        | https://arxiv.org/abs/2106.10199
    """

    name = "bias"
    Config = BiasConfig
    recipe = Recipe(lr=2e-3, epochs=15, warmup_epochs=3)

    def __init__(self, config: BiasConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.biases = nn.ParameterDict(
            {slashed(name): nn.Parameter(value.detach().clone()) for name, value in _biases(backbone).items()}
        )

    @classmethod
    def unsupported(cls, config: BiasConfig, backbone: Backbone) -> list[str]:
        """A backbone without biases."""
        return [] if _biases(backbone) else ["none of its layers has a bias"]

    def weight_overrides(self, backbone: Backbone) -> Mapping[str, Tensor]:
        """The trained biases by timm's names."""
        return {dotted(name): value for name, value in self.biases.items()}

    def banked(self, backbone: Backbone) -> Banked | None:
        """Keep the trained biases, one row an image."""
        return banked_weights(
            {name: Change(vector=value) for name, value in self.weight_overrides(backbone).items()}, backbone
        )
