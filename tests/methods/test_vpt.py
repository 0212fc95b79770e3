"""VPT against a second writing of it, and facts from the paper."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.families import FAMILIES, images_for, shared_backbone
from tests.methods.reference import vpt as reference_vpt
from trimtab.backbone import Backbone
from trimtab.errors import ConfigError
from trimtab.methods.vpt import VPT, VPTConfig
from trimtab.model import build
from trimtab.noise import Noise


@pytest.fixture(scope="module")
def double() -> Backbone:
    """A plain ViT in double precision."""
    return Backbone(FAMILIES["class-token"].model().double())


def made(backbone: Backbone, **options: object) -> VPT:
    """Prompts large enough to be noticed."""
    method = VPT(VPTConfig(**options), backbone).to(next(backbone.parameters()).dtype)
    nn.init.normal_(method.prompts.stages[0])
    return method


def features(method: VPT, backbone: Backbone, images: Tensor, noise: Noise | None = None) -> Tensor:
    stream = backbone.embed(images, noise=noise)
    for i in range(backbone.depth):
        stream = method.step(i, backbone, stream)
    return backbone.pool(stream)


@pytest.mark.parametrize("deep", [True, False], ids=["deep", "shallow"])
@pytest.mark.parametrize("num_prompts", [1, 4, 23])
@pytest.mark.parametrize("batch", [1, 3])
def test_features_and_gradients_equal_the_reference(double: Backbone, deep: bool, num_prompts: int, batch: int) -> None:
    method = made(double, deep=deep, num_prompts=num_prompts, dropout=0.0)
    images = images_for(double, batch)
    ours = features(method, double, images)
    theirs = reference_vpt(double.model, images, list(method.prompts))
    weight = torch.randn(ours.shape, dtype=ours.dtype)
    gradients = [torch.autograd.grad((out * weight).sum(), method.prompts.stages[0])[0] for out in (ours, theirs)]
    torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-9)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-10, rtol=1e-9)


@pytest.mark.parametrize("deep", [True, False])
def test_projected_prompts_are_those_of_the_projection(double: Backbone, deep: bool) -> None:
    method = made(double, deep=deep, num_prompts=3, projection=5, dropout=0.0)
    images = images_for(double)
    prompts = [p @ method.projection.weight.T + method.projection.bias for p in method.prompts]
    theirs = reference_vpt(double.model, images, prompts)
    torch.testing.assert_close(features(method, double, images), theirs, atol=1e-10, rtol=1e-9)


@pytest.mark.parametrize(("deep", "sets"), [(True, 3), (False, 1)])
def test_one_set_a_block_or_one_in_all(plain: Backbone, deep: bool, sets: int) -> None:
    assert VPT(VPTConfig(num_prompts=7, deep=deep), plain).prompts.stages[0].shape == (sets, 7, 48)


@pytest.mark.parametrize(("projection", "width"), [(None, 48), (11, 11)])
def test_prompts_start_uniform_within_the_papers_bound(plain: Backbone, projection: int | None, width: int) -> None:
    prompts = VPT(VPTConfig(num_prompts=200, projection=projection), plain).prompts.stages[0]
    bound = math.sqrt(6 / (3 * 8 * 8 + width))
    assert prompts.abs().max() <= bound
    assert prompts.abs().max() > 0.99 * bound
    assert prompts.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)


def test_bound_of_vit_b_16() -> None:
    assert math.sqrt(6 / (3 * 16 * 16 + 768)) == 0.0625


def test_projection_starts_kaiming_normal_over_the_outputs(plain: Backbone) -> None:
    weight = VPT(VPTConfig(projection=64), plain).projection.weight
    assert weight.std().item() == pytest.approx(math.sqrt(2 / 48), rel=0.1)


def test_head_starts_small(plain: Backbone) -> None:
    head = build(plain, VPTConfig(), 50).head.linear
    assert (head.bias == 0).all()
    assert head.weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_papers_head_starts_with_every_class_unlikely(plain: Backbone) -> None:
    head = build(plain, VPTConfig(head_init="paper"), 50).head.linear
    assert torch.allclose(head.bias, torch.tensor(-math.log(99)))
    assert head.weight.std().item() == pytest.approx(math.sqrt(2 / 50), rel=0.1)


@pytest.mark.parametrize(
    ("options", "dropout", "init"),
    [
        ({}, 0.1, "patches"),
        ({"deep": False}, 0.0, "patches"),
        ({"projection": 8}, 0.1, "uniform"),
        ({"dropout": 0.3, "prompt_init": "uniform"}, 0.3, "uniform"),
    ],
)
def test_what_depends_on_other_options_is_recorded(
    plain: Backbone, options: dict[str, Any], dropout: float, init: str
) -> None:
    config = VPT(VPTConfig(**options), plain).config
    assert (config.dropout, config.prompt_init) == (pytest.approx(dropout), init)
    before = dataclasses.asdict(VPTConfig(**options))
    assert VPTConfig(**VPTConfig.upgrade(before)) == config
    # An option that there was not yet has no meaning to fill in.
    assert VPTConfig.upgrade({"deep": True}) == {"deep": True}


@pytest.mark.parametrize(("options", "rate"), [({}, 0.1), ({"deep": False}, 0.0), ({"dropout": 0.3}, 0.3)])
def test_default_dropout_is_the_papers(plain: Backbone, options: dict[str, object], rate: float) -> None:
    assert VPT(VPTConfig(**options), plain).dropout == pytest.approx(rate)


def test_dropout_is_off_in_evaluation(plain: Backbone) -> None:
    method, images = made(plain, dropout=0.9).eval(), images_for(plain)
    assert torch.equal(features(method, plain, images), features(method, plain, images))


def test_dropout_differs_between_images(plain: Backbone) -> None:
    method = made(plain, dropout=0.5).train()
    twice = images_for(plain, 1).expand(2, -1, -1, -1)
    first, second = features(method, plain, twice)
    assert not torch.allclose(first, second, atol=1e-3)


@pytest.mark.parametrize("deep", [True, False])
def test_dropout_zeroes_its_share_and_scales_the_rest(plain: Backbone, deep: bool) -> None:
    method = VPT(VPTConfig(num_prompts=50, deep=deep, dropout=0.3), plain).train()
    nn.init.ones_(method.prompts.stages[0])
    dropped = method._inserted(0, plain.embed(images_for(plain, 8)))
    assert (dropped == 0).float().mean().item() == pytest.approx(0.3, abs=0.02)
    assert torch.allclose(dropped[dropped != 0], torch.tensor(1 / 0.7))


def test_dropout_comes_after_the_projection(plain: Backbone) -> None:
    method = made(plain, projection=4, dropout=0.5).train()
    assert (method._inserted(0, plain.embed(images_for(plain))) == 0).any()


@pytest.mark.parametrize("family", ["registers-average", "map-pool", "wide-image"])
def test_prompts_are_never_pooled(family: str) -> None:
    backbone = shared_backbone(family)
    stream = backbone.embed(images_for(backbone))
    huge = stream.with_prompts(torch.full((3, backbone.width), 1e6))
    assert torch.equal(backbone.pool(huge), backbone.pool(stream))


def test_a_deep_prompt_is_seen_by_its_block_only(plain: Backbone) -> None:
    method, images = made(plain, dropout=0.0), images_for(plain)
    stream = plain.embed(images)
    before = method.step(0, plain, stream)
    with torch.no_grad():
        method.prompts.stages[0][1:].add_(1.0)
    assert torch.equal(method.step(0, plain, stream).tokens, before.tokens)
    assert before.prompts.shape[1] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_prompts": 0}, "num_prompts is 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"dropout": -0.1}, "dropout is -0.1"),
        ({"projection": 0}, "projection is 0"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VPTConfig(**options)


@pytest.mark.parametrize("deep", [True, False])
def test_sets_say_where_prompts_enter(plain: Backbone, deep: bool) -> None:
    blocks = tuple(range(plain.depth))
    (prompts,) = made(plain, num_prompts=4, deep=deep).prompt_layout(plain)
    assert (prompts.count, prompts.enters) == (4, blocks if deep else (0,))
    assert prompts.carried == (() if deep else blocks[1:])
    assert prompts.blocks == blocks
