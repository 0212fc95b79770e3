"""Full fine-tuning: the copies are the backbone, and training them is training timm's model."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import nn

from tests.families import images_for
from trimtab.backbone import Backbone
from trimtab.methods.full import Full, FullConfig
from trimtab.model import build


def test_starts_as_the_backbone(backbone: Backbone) -> None:
    model, images = build(backbone, FullConfig(), 3), images_for(backbone)
    timms = backbone.model.forward_head(backbone.model.forward_features(images), pre_logits=True)
    torch.testing.assert_close(backbone.pool(model.run(images)), timms, atol=1e-5, rtol=1e-5)


def test_every_weight_but_the_classifiers_is_copied_under_its_own_name(backbone: Backbone) -> None:
    classifiers = ("head.", "head_dist.")
    expected = {name: value for name, value in backbone.model.named_parameters() if not name.startswith(classifiers)}
    copies = Full(FullConfig(), backbone).weight_overrides(backbone)
    assert copies.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(copies[name], value)
        assert copies[name].requires_grad
        assert copies[name].data_ptr() != value.data_ptr()


def test_steps_are_those_of_timms_own_model(backbone: Backbone) -> None:
    """Three steps of SGD on the copies, and on timm's model itself with gradients in all of its parameters."""
    images, labels = images_for(backbone, 4), torch.tensor([0, 1, 2, 0])
    model = build(backbone, FullConfig(), 3)
    timms, head = copy.deepcopy(backbone.model).requires_grad_(True), copy.deepcopy(model.head.linear)

    ours = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    theirs = torch.optim.SGD([*timms.parameters(), *head.parameters()], lr=0.01)
    for _ in range(3):
        for optimizer, logits in (
            (ours, model.outputs(images).logits),
            (theirs, head(timms.forward_head(timms.forward_features(images), pre_logits=True))),
        ):
            optimizer.zero_grad()
            F.cross_entropy(logits, labels).backward()
            nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
            optimizer.step()

    for name, value in model.method.weight_overrides(backbone).items():
        torch.testing.assert_close(value, timms.get_parameter(name), atol=1e-5, rtol=1e-4)
        # Vectors may stay: what is added to all keys alike changes no attention.
        assert value.ndim == 1 or not torch.equal(value, backbone.model.get_parameter(name))


def test_copies_take_the_backbones_image_size(backbone: Backbone) -> None:
    copies = Full(FullConfig(), backbone).weight_overrides(backbone)
    assert {name: value.shape for name, value in copies.items()} == {
        name: value.shape for name, value in backbone.named_weights().items()
    }


def test_two_models_share_a_backbone(plain: Backbone) -> None:
    images = images_for(plain)
    first, second = build(plain, FullConfig(), 3).eval(), build(plain, FullConfig(), 3).eval()
    expected = second(images)
    with torch.no_grad():
        for value in first.method.parameters():
            value.add_(1.0)
    assert torch.equal(second(images), expected)
