"""The linear probe is the backbone as it is."""

from __future__ import annotations

import torch

from tests.families import images_for
from trimtab.backbone import Backbone
from trimtab.methods.linear import Linear, LinearConfig
from trimtab.model import build


def test_features_are_timms(backbone: Backbone) -> None:
    model, images = build(backbone, LinearConfig(), 3), images_for(backbone)
    timms = backbone.model.forward_head(backbone.model.forward_features(images), pre_logits=True)
    torch.testing.assert_close(backbone.pool(model.run(images)), timms, atol=1e-5, rtol=1e-5)


def test_only_the_head_is_trained(plain: Backbone) -> None:
    model = build(plain, LinearConfig(), 3)
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    assert trained == {"head.linear.weight", "head.linear.bias"}


def test_features_need_computing_only_once() -> None:
    assert not Linear.touches_blocks


def test_there_is_no_extra_loss(plain: Backbone) -> None:
    assert build(plain, LinearConfig(), 3).train().outputs(images_for(plain)).loss == 0
