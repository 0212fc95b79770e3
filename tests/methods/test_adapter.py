"""Adapters against timm's own modules, and facts from the papers and their official code."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.families import FAMILIES, images_for, shared_backbone
from trimtab.backbone import Backbone
from trimtab.backbone.weights import meta_model
from trimtab.checkpoint import config_from_json
from trimtab.errors import ConfigError
from trimtab.heads import SegmenterConfig
from trimtab.methods import recorded_options
from trimtab.methods.adapter import Adapter, AdapterConfig
from trimtab.methods.base import FoldedSteps
from trimtab.model import build
from trimtab.noise import Noise

CLOSE = {"atol": 1e-10, "rtol": 1e-9}


@functools.cache
def double(family: str) -> Backbone:
    """The family's backbone in double precision."""
    backbone = FAMILIES[family].backbone()
    backbone.model.double()
    return backbone


def adaptformer(**options: Any) -> AdapterConfig:
    """AdaptFormer's options."""
    return AdapterConfig(style="adaptformer", **options)


def made(backbone: Backbone, **options: Any) -> Adapter:
    """Adapters whose every number is large enough to be noticed."""
    method = Adapter(AdapterConfig(**{"style": "adaptformer", "dim": 5, "dropout": 0.0, **options}), backbone)
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
    method, images = Adapter(adaptformer(**options), backbone).train(), images_for(backbone)
    stream = backbone.embed(images)
    for i in range(backbone.depth):
        stream = backbone.block(i, stream)
    assert torch.equal(features(method, backbone, images), backbone.pool(stream))


def test_only_what_follows_the_bottleneck_is_moved_at_first(plain: Backbone) -> None:
    method = Adapter(adaptformer(learned_scale=True), plain)
    features(method, plain, images_for(plain)).pow(2).sum().backward()
    moved = {name for name, value in method.named_parameters() if value.grad.abs().max() > 0}
    assert moved == {f"up.{i}.{leaf}" for i in range(3) for leaf in ("weight", "bias")}


@pytest.mark.parametrize("dim", [4, 64])
def test_start_values_are_the_official_ones(plain: Backbone, dim: int) -> None:
    method, bound = Adapter(adaptformer(dim=dim, norm=True), plain), 1 / math.sqrt(48)
    weights = torch.stack([down.weight for down in method.down])
    assert bound * 0.95 < weights.abs().max() <= bound
    assert weights.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
    for layers in (method.down, method.up):
        assert all((layer.bias == 0).all() for layer in layers)
    assert all((up.weight == 0).all() for up in method.up)
    assert all((norm.weight == 1).all() and (norm.bias == 0).all() for norm in method.norms)


def test_a_learned_scale_starts_at_its_number(plain: Backbone) -> None:
    assert Adapter(adaptformer(learned_scale=True), plain).scale.tolist() == pytest.approx([0.1] * 3)
    assert Adapter(adaptformer(learned_scale=True, scale=0.0), plain).scale.tolist() == [0.0] * 3
    assert Adapter(adaptformer(), plain).scale is None


@pytest.mark.parametrize(("dim", "parameters"), [(64, 1_189_632), (4, 82_992), (1, 27_660)])
def test_vit_b_16_gains_less_than_2_percent(dim: int, parameters: int) -> None:
    backbone = Backbone(meta_model("vit_base_patch16_224"))
    method = Adapter(adaptformer(dim=dim), backbone)
    assert sum(value.numel() for value in method.parameters()) == parameters
    assert parameters < 0.02 * sum(value.numel() for value in backbone.named_weights().values())


def test_biases_norms_and_scales_are_not_decayed(plain: Backbone) -> None:
    method = Adapter(adaptformer(norm=True, learned_scale=True), plain)
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
    torch.testing.assert_close(method._adapter(0, x, stream), scale * branch)


class TestDropout:
    """Dropout of the bottleneck."""

    @pytest.fixture
    def shown(self, plain: Backbone) -> Adapter:
        """Adapters that show their bottleneck: it is 1 everywhere, and its width is the backbone's."""
        method = Adapter(adaptformer(dim=48, dropout=0.3, scale=1.0), plain).train()
        for i in range(3):
            nn.init.zeros_(method.down[i].weight)
            nn.init.ones_(method.down[i].bias)
            nn.init.eye_(method.up[i].weight)
        return method

    def test_zeroes_its_share_and_scales_the_rest(self, plain: Backbone, shown: Adapter) -> None:
        stream = plain.embed(images_for(plain, 8))
        left = shown._adapter(0, stream.tokens, stream)
        assert (left == 0).float().mean().item() == pytest.approx(0.3, abs=0.02)
        assert torch.allclose(left[left != 0], torch.tensor(1 / 0.7))

    def test_differs_between_images_and_tokens(self, plain: Backbone, shown: Adapter) -> None:
        stream = plain.embed(images_for(plain, 1).expand(2, -1, -1, -1))
        left = shown._adapter(0, stream.tokens, stream)
        assert not torch.equal(left[0], left[1])
        assert not torch.equal(left[0, 0], left[0, 1])

    def test_belongs_to_the_images_of_the_seed(self, plain: Backbone, shown: Adapter) -> None:
        images = images_for(plain, 4)
        whole = plain.embed(images, noise=Noise(5, total=4))
        part = plain.embed(images[2:], noise=Noise(5, first=2, total=4))
        left = shown._adapter(0, whole.tokens, whole)
        assert torch.equal(shown._adapter(0, part.tokens, part), left[2:])

    def test_is_off_in_evaluation(self, plain: Backbone, shown: Adapter) -> None:
        stream = plain.embed(images_for(plain))
        assert (shown.eval()._adapter(0, stream.tokens, stream) == 1).all()

    def test_keeps_its_rate_in_low_precision(self, plain: Backbone) -> None:
        # Of bfloat16's uniform numbers a quarter more would lie under this rate.
        method = Adapter(adaptformer(dim=64, dropout=0.0025), plain).train()
        stream = plain.embed(images_for(plain, 300))
        nn.init.ones_(method.down[0].bias)
        nn.init.zeros_(method.down[0].weight)
        seen: list[Tensor] = []
        method.up[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        with torch.autocast("cpu", torch.bfloat16):
            method._adapter(0, stream.tokens, stream)
        assert seen[0].dtype == torch.bfloat16
        assert (seen[0] == 0).float().mean().item() == pytest.approx(0.0025, rel=0.1)


@pytest.mark.parametrize("family", ["class-token", "rope-mixed"])
def test_a_nonlinear_branch_does_not_fold(family: str) -> None:
    model = build(shared_backbone(family), adaptformer(), 2)
    assert type(model.fold().method) is type(model.method)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 0}, "dim is 0"),
        ({"scale": 0.0}, "scale is 0"),
        ({"scale": math.inf}, "scale is inf"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"dropout": -0.1}, "dropout is -0.1"),
        ({"drop_path": 1.0}, "drop_path is 1.0"),
        ({"layout": "around"}, "layout is 'around'"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        adaptformer(**options)


# --- Adapter+ and the other layouts -----------------------------------------------------------------


def plus(backbone: Backbone, **options: Any) -> Adapter:
    """Adapter+ without stochastic depth, whose every number is large enough to be noticed."""
    off = {"dim": 5, "drop_path": 0.0, "backbone_drop_path": 0.0}
    method = Adapter(AdapterConfig(**{**off, **options}), backbone)
    for value in method.parameters():
        nn.init.normal_(value, std=0.3)
    return method.to(next(backbone.parameters()).dtype)


def by_layout(method: Adapter, network: nn.Module, images: Tensor) -> Tensor:
    """The official layouts by timm's own modules; of the adapters only the tensors are read."""
    named, norm = dict(method.named_parameters()), method.config.norm

    def adapter(n: int, x: Tensor) -> Tensor:
        if norm:
            x = F.layer_norm(x, x.shape[-1:], named[f"norms.{n}.weight"], named[f"norms.{n}.bias"], 1e-6)
        hidden = x @ named[f"down.{n}.weight"].T + named[f"down.{n}.bias"]
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        return named[f"scales.{n}"] * (hidden @ named[f"up.{n}.weight"].T + named[f"up.{n}.bias"])

    x = network.norm_pre(network._pos_embed(network.patch_embed(images)))
    for i, block in enumerate(network.blocks):
        attention = block.ls1(block.attn(block.norm1(x)))
        y = x + attention

        def mlp(z: Tensor, block: Any = block) -> Tensor:
            return block.ls2(block.mlp(block.norm2(z)))

        match method.config.layout:
            case "post" | "pfeiffer":
                z = y + mlp(y)
                x = z + adapter(i, z)
            case "parallel":
                x = y + mlp(y) + adapter(i, y)
            case "pre":
                z = y + adapter(i, y)
                x = z + mlp(z)
            case "intermediate":
                x = y + mlp(y) + adapter(i, mlp(y))
            case "houlsby":
                y = y + adapter(2 * i, attention)
                x = y + mlp(y) + adapter(2 * i + 1, mlp(y))
    return network.forward_head(network.norm(x), pre_logits=True)


@pytest.mark.parametrize("family", ["class-token", "registers-average"])
@pytest.mark.parametrize("layout", ["post", "parallel", "pre", "intermediate", "houlsby", "pfeiffer"])
def test_layouts_equal_the_official_equations(family: str, layout: str) -> None:
    backbone = double(family)
    method, images = plus(backbone, layout=layout).train(), images_for(backbone, 2)
    ours, theirs = features(method, backbone, images), by_layout(method, backbone.model, images)
    torch.testing.assert_close(ours, theirs, **CLOSE)
    weight, parameters = torch.randn(ours.shape, dtype=ours.dtype), list(method.parameters())
    gradients = [torch.autograd.grad((out * weight).sum(), parameters) for out in (ours, theirs)]
    torch.testing.assert_close(gradients[0], gradients[1], **CLOSE)


def test_adapter_plus_is_the_default_with_the_papers_values() -> None:
    assert recorded_options(AdapterConfig()) == {
        "style": "adapter-plus", "dim": 8, "layout": "post", "scale": 1.0, "learned_scale": True, "norm": False,
        "dropout": 0.0, "drop_path": 0.1, "backbone_drop_path": 0.1,
    }  # fmt: skip
    assert AdapterConfig(layout="pfeiffer").design.norm
    assert not AdapterConfig(layout="pfeiffer", norm=False).design.norm


def test_another_style_of_the_same_options_has_its_own_defaults() -> None:
    changed = dataclasses.replace(AdapterConfig(dim=16), style="adaptformer")
    assert changed == adaptformer(dim=16)
    assert changed.design == adaptformer(dim=16).design
    assert changed.design != AdapterConfig(dim=16).design


@pytest.mark.parametrize("options", [{}, {"style": "adaptformer"}, {"layout": "pfeiffer", "drop_path": 0.0}], ids=str)
def test_what_is_recorded_of_a_method_leaves_nothing_to_a_default(plain: Backbone, options: dict[str, Any]) -> None:
    config = AdapterConfig(**options)
    recorded = dataclasses.asdict(Adapter(config, plain).config)
    assert recorded == recorded_options(config) == {"style": config.style, **config.design._asdict()}
    assert config_from_json(AdapterConfig, recorded).design == config.design


def test_options_of_before_there_were_styles_are_adaptformers() -> None:
    old = {"dim": 16, "scale": 0.1, "learned_scale": False, "norm": False, "dropout": 0.1}
    assert config_from_json(AdapterConfig, old) == adaptformer(dim=16).resolved()
    assert config_from_json(AdapterConfig, recorded_options(AdapterConfig())) == AdapterConfig().resolved()


@pytest.mark.parametrize(
    ("dim", "parameters"), [(1, 36_876), (2, 55_320), (4, 92_208), (8, 165_984), (16, 313_536), (32, 608_640)]
)
def test_adapter_plus_has_the_published_number_of_parameters(dim: int, parameters: int) -> None:
    backbone = Backbone(meta_model("vit_base_patch16_224"))
    config = AdapterConfig(dim=dim)
    assert Adapter.num_parameters(config, backbone) == parameters
    assert sum(value.numel() for value in Adapter(config, backbone).parameters()) == parameters


@pytest.mark.parametrize("family", ["class-token", "swin"])
@pytest.mark.parametrize(
    "options",
    [
        {"layout": "houlsby", "norm": True}, {"learned_scale": False}, {"style": "adaptformer"},
        {"style": "adaptformer", "norm": True, "learned_scale": True},
    ],
    ids=str,
)  # fmt: skip
def test_the_parameter_formula_counts_what_there_is(family: str, options: dict[str, Any]) -> None:
    backbone, config = shared_backbone(family), AdapterConfig(dim=3, **options)
    parameters = Adapter(config, backbone).parameters()
    assert Adapter.num_parameters(config, backbone) == sum(value.numel() for value in parameters)


def test_adapter_plus_starts_near_the_backbone() -> None:
    with torch.device("cpu"):
        backbone = Backbone(timm.create_model("vit_base_patch16_224", depth=1))
    method = Adapter(AdapterConfig(dim=64), backbone)
    for layers in (method.down, method.up):
        weight = layers[0].weight
        assert weight.std().item() == pytest.approx(0.0088, abs=2e-4)
        assert 0.019 < weight.abs().max() <= 0.02
        assert (layers[0].bias == 0).all()
    assert (method.scales[0] == 1).all()


@pytest.mark.parametrize("family", ["class-token", "swin"])
def test_the_scale_folds_into_what_it_multiplies(family: str) -> None:
    model = build(shared_backbone(family), AdapterConfig(dim=3), 4).eval()
    with torch.no_grad():
        for value in model.method.parameters():
            value.add_(torch.randn_like(value), alpha=0.2)
    folded, images = model.fold(), images_for(model.backbone)
    torch.testing.assert_close(folded(images), model(images), atol=1e-5, rtol=1e-5)
    assert not [name for name, _ in folded.method.named_parameters() if "scale" in name]
    # Also where gradients are recorded.
    assert isinstance(model.method.fold(model.backbone), FoldedSteps)
    before = model(images)
    model.train()
    assert torch.equal(model.eval()(images), before)


class TestStochasticDepth:
    """Stochastic depth of the adapters."""

    @pytest.fixture
    def ones(self, plain: Backbone) -> Adapter:
        """Adapters that add 1 everywhere."""
        method = Adapter(AdapterConfig(dim=4, drop_path=0.3, backbone_drop_path=0.0), plain).train()
        for i in range(3):
            nn.init.zeros_(method.up[i].weight)
            nn.init.ones_(method.up[i].bias)
        return method

    def test_drops_an_image_or_keeps_it_whole(self, plain: Backbone, ones: Adapter) -> None:
        stream = plain.embed(images_for(plain, 1).expand(400, -1, -1, -1))
        added = ones._adapter(0, stream.tokens, stream)
        image = added.flatten(1)
        assert torch.equal(image.amin(1), image.amax(1))
        assert (image[:, 0] == 0).float().mean().item() == pytest.approx(0.3, abs=0.06)
        assert torch.allclose(image[image != 0], torch.tensor(1 / 0.7))

    def test_belongs_to_the_images_of_the_seed(self, plain: Backbone, ones: Adapter) -> None:
        images = images_for(plain, 8)
        whole = plain.embed(images, noise=Noise(5, total=8))
        part = plain.embed(images[4:], noise=Noise(5, first=4, total=8))
        added = ones._adapter(0, whole.tokens, whole)
        assert 0 < (added == 0).sum() < added.numel()
        assert torch.equal(ones._adapter(0, part.tokens, part), added[4:])

    def test_is_off_in_evaluation(self, plain: Backbone, ones: Adapter) -> None:
        stream = plain.embed(images_for(plain))
        assert (ones.eval()._adapter(0, stream.tokens, stream) == 1).all()

    def test_of_the_backbone_rises_from_0(self, plain: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
        method, rates, block = Adapter(AdapterConfig(dim=4), plain), [], Backbone.block

        def spy(self: Backbone, *arguments: Any, **options: Any) -> Any:
            rates.append(options["drop_path"])
            return block(self, *arguments, **options)

        monkeypatch.setattr(Backbone, "block", spy)
        features(method.train(), plain, images_for(plain))
        features(method.eval(), plain, images_for(plain))
        assert rates == pytest.approx([0, 0.05, 0.1, 0, 0, 0])


@pytest.mark.parametrize("head", ["dpt", "setr-pup"])
@pytest.mark.parametrize("family", ["swin", "swin-v2"])
def test_segmentation_heads_read_the_adapters_of_a_stages_last_block(family: str, head: str) -> None:
    backbone, last = shared_backbone(family), shared_backbone(family).stages[0].stop - 1
    model = build(backbone, AdapterConfig(dim=3), 4, SegmenterConfig(head=head, channels=6)).eval()
    images = images_for(backbone)
    before = model.forward_features(images)
    with torch.no_grad():
        nn.init.ones_(model.method.up[last].bias)
    after = model.forward_features(images)
    first = model.head.tapped.index(last)
    # Its own grid, at the width of the stage: 1 more everywhere.
    torch.testing.assert_close(after[first], before[first] + 1, atol=1e-4, rtol=1e-4)
    model.train().outputs(images).logits.square().mean().backward()
    assert all(value.grad.abs().max() > 0 for value in model.method.up.parameters())


def test_the_papers_recipe_has_the_official_rates() -> None:
    recipe = Adapter.paper_recipes["adapter-plus"]
    rates = [recipe.learning_rate(15 * epoch, 15) for epoch in range(100)]
    assert rates[:3] == pytest.approx([1e-5, 1e-5, 1e-5 + (1e-3 - 1e-5) / 9])
    assert rates[9:13] == pytest.approx([8.9e-4, 1e-3, 1e-3, 1e-6 + 0.5 * (1e-3 - 1e-6) * (1 + math.cos(math.pi / 90))])
    assert rates[-1] == pytest.approx(2.2e-6, rel=0.02)
