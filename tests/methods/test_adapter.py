"""Adapters against timm's own modules, and facts from the paper and its official code."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from tests.families import FAMILIES, images_for, shared_backbone
from trimtab.backbone import Backbone
from trimtab.errors import ConfigError
from trimtab.methods.adapter import Adapter, AdapterConfig
from trimtab.model import build
from trimtab.noise import Noise

CLOSE = {"atol": 1e-10, "rtol": 1e-9}


@functools.cache
def double(family: str) -> Backbone:
    """The family's backbone in double precision."""
    backbone = FAMILIES[family].backbone()
    backbone.model.double()
    return backbone


def made(backbone: Backbone, **options: Any) -> Adapter:
    """Adapters whose every number is large enough to be noticed."""
    method = Adapter(AdapterConfig(**{"dim": 5, "dropout": 0.0, **options}), backbone)
    for value in method.parameters():
        nn.init.normal_(value, std=0.3)
    return method.to(next(backbone.parameters()).dtype)


def features(method: Adapter, backbone: Backbone, images: Tensor, noise: Noise | None = None) -> Tensor:
    stream = backbone.embed(images, noise=noise)
    for i in range(backbone.depth):
        stream = method.step(i, backbone, stream)
    return backbone.pool(stream)


def plainly(method: Adapter, network: nn.Module, images: Tensor) -> Tensor:
    """The same by timm's own modules, token by token, from the method's tensors by name."""
    named = dict(method.named_parameters())
    x = network.norm_pre(network._pos_embed(network.patch_embed(images)))
    for i, block in enumerate(network.blocks):
        x = x + block.ls1(block.attn(block.norm1(x)))
        beside = torch.zeros_like(x)
        for image in range(len(x)):
            for position, token in enumerate(x[image]):
                seen = token
                if method.config.norm:
                    deviation = torch.sqrt(token.var(unbiased=False) + 1e-5)
                    seen = (token - token.mean()) / deviation * named[f"norms.{i}.weight"] + named[f"norms.{i}.bias"]
                hidden = (named[f"down.{i}.weight"] @ seen + named[f"down.{i}.bias"]).clamp(min=0)
                beside[image, position] = named[f"up.{i}.weight"] @ hidden + named[f"up.{i}.bias"]
        scale = named["scale"][i] if method.config.learned_scale else method.config.scale
        x = x + block.ls2(block.mlp(block.norm2(x))) + scale * beside
    return network.forward_head(network.norm(x), pre_logits=True)


@pytest.mark.parametrize("family", ["class-token", "distilled", "registers-average", "depth-5"])
@pytest.mark.parametrize("options", [{}, {"norm": True, "scale": 0.7}, {"learned_scale": True}], ids=str)
def test_features_and_gradients_equal_the_plain_computation(family: str, options: dict[str, Any]) -> None:
    backbone = double(family)
    method, images = made(backbone, **options).train(), images_for(backbone, 2)
    ours, theirs = features(method, backbone, images), plainly(method, backbone.model, images)
    torch.testing.assert_close(ours, theirs, **CLOSE)
    weight, parameters = torch.randn(ours.shape, dtype=ours.dtype), list(method.parameters())
    gradients = [torch.autograd.grad((out * weight).sum(), parameters) for out in (ours, theirs)]
    torch.testing.assert_close(gradients[0], gradients[1], **CLOSE)


@pytest.mark.parametrize("options", [{}, {"norm": True}, {"learned_scale": True, "scale": 1.0}], ids=str)
def test_training_starts_from_the_backbones_own_features(backbone: Backbone, options: dict[str, Any]) -> None:
    method, images = Adapter(AdapterConfig(**options), backbone).train(), images_for(backbone)
    stream = backbone.embed(images)
    for i in range(backbone.depth):
        stream = backbone.block(i, stream)
    assert torch.equal(features(method, backbone, images), backbone.pool(stream))


def test_only_what_follows_the_bottleneck_is_moved_at_first(plain: Backbone) -> None:
    method = Adapter(AdapterConfig(learned_scale=True), plain)
    features(method, plain, images_for(plain)).pow(2).sum().backward()
    moved = {name for name, value in method.named_parameters() if value.grad.abs().max() > 0}
    assert moved == {f"up.{i}.{leaf}" for i in range(3) for leaf in ("weight", "bias")}


@pytest.mark.parametrize("dim", [4, 64])
def test_start_values_are_the_official_ones(plain: Backbone, dim: int) -> None:
    method, bound = Adapter(AdapterConfig(dim=dim, norm=True), plain), 1 / math.sqrt(48)
    weights = torch.stack([down.weight for down in method.down])
    assert bound * 0.95 < weights.abs().max() <= bound
    assert weights.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
    for layers in (method.down, method.up):
        assert all((layer.bias == 0).all() for layer in layers)
    assert all((up.weight == 0).all() for up in method.up)
    assert all((norm.weight == 1).all() and (norm.bias == 0).all() for norm in method.norms)


def test_a_learned_scale_starts_at_its_number(plain: Backbone) -> None:
    assert Adapter(AdapterConfig(learned_scale=True), plain).scale.tolist() == pytest.approx([0.1] * 3)
    assert Adapter(AdapterConfig(learned_scale=True, scale=0.0), plain).scale.tolist() == [0.0] * 3
    assert Adapter(AdapterConfig(), plain).scale is None


@pytest.mark.parametrize(("dim", "parameters"), [(64, 1_189_632), (4, 82_992), (1, 27_660)])
def test_vit_b_16_gains_less_than_2_percent(dim: int, parameters: int) -> None:
    with torch.device("meta"):
        backbone = Backbone(timm.create_model("vit_base_patch16_224"))
    method = Adapter(AdapterConfig(dim=dim), backbone)
    assert sum(value.numel() for value in method.parameters()) == parameters
    assert parameters < 0.02 * sum(value.numel() for value in backbone.named_weights().values())


def test_biases_norms_and_scales_are_not_decayed(plain: Backbone) -> None:
    method = Adapter(AdapterConfig(norm=True, learned_scale=True), plain)
    flat = {name for name, value in method.named_parameters() if value.ndim <= 1}
    assert {name for name, _ in method.named_parameters()} - flat == {
        f"{part}.{i}.weight" for i in range(3) for part in ("down", "up")
    }


def test_a_block_has_its_own_adapter(plain: Backbone) -> None:
    method, images = made(plain), images_for(plain)
    before = method.step(0, plain, plain.embed(images))
    with torch.no_grad():
        for layers in (method.down[1:], method.up[1:]):
            for value in layers.parameters():
                value.add_(1.0)
    assert torch.equal(method.step(0, plain, plain.embed(images)).tokens, before.tokens)


@pytest.mark.parametrize("scale", [0.1, -2.0])
def test_the_scale_multiplies_the_whole_branch(plain: Backbone, scale: float) -> None:
    method, x = made(plain, scale=scale), torch.randn(2, 17, 48)
    stream = plain.embed(images_for(plain))
    with torch.no_grad():
        branch = method.up[0](method.down[0](x).relu())
    torch.testing.assert_close(method._beside(0, x, stream), scale * branch)


class TestDropout:
    """Dropout of the bottleneck."""

    @pytest.fixture
    def shown(self, plain: Backbone) -> Adapter:
        """Adapters that show their bottleneck: it is 1 everywhere, and its width is the backbone's."""
        method = Adapter(AdapterConfig(dim=48, dropout=0.3, scale=1.0), plain).train()
        for i in range(3):
            nn.init.zeros_(method.down[i].weight)
            nn.init.ones_(method.down[i].bias)
            nn.init.eye_(method.up[i].weight)
        return method

    def test_zeroes_its_share_and_scales_the_rest(self, plain: Backbone, shown: Adapter) -> None:
        stream = plain.embed(images_for(plain, 8))
        left = shown._beside(0, stream.tokens, stream)
        assert (left == 0).float().mean().item() == pytest.approx(0.3, abs=0.02)
        assert torch.allclose(left[left != 0], torch.tensor(1 / 0.7))

    def test_differs_between_images_and_tokens(self, plain: Backbone, shown: Adapter) -> None:
        stream = plain.embed(images_for(plain, 1).expand(2, -1, -1, -1))
        left = shown._beside(0, stream.tokens, stream)
        assert not torch.equal(left[0], left[1])
        assert not torch.equal(left[0, 0], left[0, 1])

    def test_belongs_to_the_images_of_the_seed(self, plain: Backbone, shown: Adapter) -> None:
        images = images_for(plain, 4)
        whole = plain.embed(images, noise=Noise(5, total=4))
        part = plain.embed(images[2:], noise=Noise(5, first=2, total=4))
        left = shown._beside(0, whole.tokens, whole)
        assert torch.equal(shown._beside(0, part.tokens, part), left[2:])

    def test_is_off_in_evaluation(self, plain: Backbone, shown: Adapter) -> None:
        stream = plain.embed(images_for(plain))
        assert (shown.eval()._beside(0, stream.tokens, stream) == 1).all()

    def test_keeps_its_rate_in_low_precision(self, plain: Backbone) -> None:
        # Of bfloat16's uniform numbers a quarter more would lie under this rate.
        method = Adapter(AdapterConfig(dim=64, dropout=0.0025), plain).train()
        stream = plain.embed(images_for(plain, 300))
        nn.init.ones_(method.down[0].bias)
        nn.init.zeros_(method.down[0].weight)
        seen: list[Tensor] = []
        method.up[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        with torch.autocast("cpu", torch.bfloat16):
            method._beside(0, stream.tokens, stream)
        assert seen[0].dtype == torch.bfloat16
        assert (seen[0] == 0).float().mean().item() == pytest.approx(0.0025, rel=0.1)


@pytest.mark.parametrize("family", ["class-token", "rope-mixed"])
def test_a_nonlinear_branch_does_not_fold(family: str) -> None:
    model = build(shared_backbone(family), AdapterConfig(), 2)
    assert type(model.fold().method) is type(model.method)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 0}, "dim is 0"),
        ({"scale": 0.0}, "scale is 0"),
        ({"scale": math.inf}, "scale is inf"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"dropout": -0.1}, "dropout is -0.1"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AdapterConfig(**options)
