"""SSF: weights with scale and shift multiplied in are outputs scaled and shifted."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.layers import RmsNorm
from torch import Tensor, nn

from tests.families import SMALL, images_for, scramble, shared_backbone
from tests.methods.hooked import hooked_features
from trimtab.backbone import Backbone
from trimtab.backbone.weights import meta_model
from trimtab.methods.ssf import SSF, SSFConfig


def lively(backbone: Backbone) -> SSF:
    """Scales and shifts that are far from their start."""
    method = SSF(SSFConfig(), backbone)
    with torch.no_grad():
        for scale in method.scale.values():
            scale.uniform_(0.6, 1.5)
        for shift in method.shift.values():
            shift.normal_(0.0, 0.3)
    return method


def features(method: SSF, backbone: Backbone, images: Tensor) -> Tensor:
    stream = backbone.embed(images, weights=method.weight_overrides(backbone))
    for i in range(backbone.depth):
        stream = method.step(i, backbone, stream)
    return backbone.pool(stream)


def scaled_and_shifted(method: SSF, backbone: Backbone, images: Tensor) -> Tensor:
    """The paper's equation on the output of every layer of timm's own model."""

    def change(name: str, module: nn.Module, _: Tensor, output: Tensor) -> Tensor:
        key = name.replace(".", "/")
        scale, shift = method.scale[key], method.shift[key] if key in method.shift else torch.zeros(())
        if isinstance(module, nn.Conv2d):
            return output * scale[:, None, None] + shift[:, None, None]
        return output * scale + shift

    return hooked_features(backbone, images, change)


def same_features_and_gradients(backbone: Backbone) -> SSF:
    method, images = lively(backbone), images_for(backbone, 3)
    ours, theirs = features(method, backbone, images), scaled_and_shifted(method, backbone, images)
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)

    direction = torch.randn(ours.shape)
    names, trained = zip(*method.named_parameters(), strict=True)
    gradients = [torch.autograd.grad((out * direction).sum(), trained) for out in (ours, theirs)]
    for name, our, their in zip(names, *gradients, strict=True):
        assert (our - their).norm() <= 1e-4 * their.norm() + 1e-4, name
    return method


def test_outputs_are_scaled_and_shifted(backbone: Backbone) -> None:
    method = same_features_and_gradients(backbone)
    # Every layer of every family has both.
    assert method.scale.keys() == method.shift.keys()


def test_scales_and_shifts_start_as_in_the_official_code(plain: Backbone) -> None:
    method = SSF(SSFConfig(), plain)
    scale, shift = (torch.cat([value.detach() for value in part.values()]) for part in (method.scale, method.shift))
    assert scale.mean().item() == pytest.approx(1.0, abs=0.002)
    assert scale.std().item() == pytest.approx(0.02, rel=0.1)
    assert shift.mean().item() == pytest.approx(0.0, abs=0.002)
    assert shift.std().item() == pytest.approx(0.02, rel=0.1)


def test_parameters_of_vit_b_16() -> None:
    method = SSF(SSFConfig(), Backbone(meta_model("vit_base_patch16_224")))
    # A block: two norms, qkv, proj, fc1, fc2; then the patch embedding and the last norm.
    expected = 2 * (12 * (2 + 3 + 1 + 4 + 1) * 768 + 2 * 768)
    assert sum(p.numel() for p in method.parameters()) == expected == 205_824


def test_nothing_is_decayed(plain: Backbone) -> None:
    assert all(value.ndim == 1 for value in SSF(SSFConfig(), plain).parameters())


def test_keys_shift_matters_with_rotary_positions() -> None:
    """A shift of all keys alike changes no softmax, unless positions turn it; Eva holds it in a buffer."""
    backbone = shared_backbone("eva02")
    method, images = lively(backbone), images_for(backbone)
    before = features(method, backbone, images)
    with torch.no_grad():
        method.shift["blocks/0/attn/qkv"][48:96] += 1.0
    assert not torch.allclose(features(method, backbone, images), before, atol=1e-3)
    assert (backbone.model.blocks[0].attn.k_bias == 0).all()


def test_a_norm_without_a_bias_is_only_scaled() -> None:
    model = timm.create_model("vit_base_patch16_224", **SMALL, norm_layer=RmsNorm)
    method = same_features_and_gradients(Backbone(scramble(model).eval()))
    only_scaled = set(method.scale) - set(method.shift)
    assert only_scaled == {f"blocks/{i}/norm{k}" for i in range(3) for k in (1, 2)} | {"norm"}


def test_standardised_convolutions_are_left_alone() -> None:
    backbone = Backbone(meta_model("vit_tiny_r_s16_p8_224"))
    scaled = SSF(SSFConfig(), backbone).scale
    kinds = {type(backbone.named_layers()[name.replace("/", ".")]).__name__ for name in scaled}
    assert kinds == {"Linear", "LayerNorm", "Conv2d", "GroupNormAct"}
    assert "StdConv2dSame" in {type(layer).__name__ for layer in backbone.named_layers().values()}
