"""Full fine-tuning: every weight of the backbone is trained, on copies."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from torch import Tensor, nn

from trimtab.backbone import Backbone
from trimtab.methods.base import Method, dotted, slashed
from trimtab.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class FullConfig:
    """Options of full fine-tuning: it has none."""


class Full(Method[FullConfig]):
    r"""Every parameter of the backbone, trained.

    :math:`\theta' = \theta + \Delta\theta` for all :math:`\theta`. What is trained are copies: the backbone stays as
    it is and can be shared with other methods, at the price of its size once more in memory. The saved adapter is as
    large as the backbone.

    Adds as many parameters as the backbone has without timm's classifier.

    References:
        | The baseline "Full" of Visual Prompt Tuning (Jia et al., 2022), section 4.1
        | https://arxiv.org/abs/2203.12119
    """

    name = "full"
    Config = FullConfig
    recipe = Recipe(lr=1e-4, epochs=15, warmup_epochs=3)

    def __init__(self, config: FullConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.copies = nn.ParameterDict(
            {slashed(name): nn.Parameter(value.detach().clone()) for name, value in backbone.named_weights().items()}
        )

    def weight_overrides(self, backbone: Backbone) -> Mapping[str, Tensor]:
        """The trained copies by timm's names."""
        return {dotted(name): value for name, value in self.copies.items()}
