"""Visual Fourier prompt tuning against VPT, against sums written out, and facts of its transform."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.families import images_for, shared_backbone
from trimtab.backbone import Backbone
from trimtab.backbone.weights import meta_model
from trimtab.errors import ConfigError
from trimtab.methods.vfpt import VFPT, VFPTConfig, fourier
from trimtab.methods.vpt import VPT, VPTConfig
from trimtab.model import TunedModel, build
from trimtab.noise import Noise


def model(backbone: Backbone, **options: Any) -> TunedModel:
    return build(backbone, VFPTConfig(**{"num_prompts": 5, **options}), 4).eval()


def plain_with(backbone: Backbone, prompts: list[Tensor], head: nn.Module, deep: bool) -> TunedModel:
    """VPT that is fed these prompts."""
    vpt = build(backbone, VPTConfig(num_prompts=len(prompts[0]), deep=deep, dropout=0.0), 4).eval()
    with torch.no_grad():
        for own, value in zip(vpt.method.prompts, prompts, strict=True):
            own.copy_(value)
    vpt.head.load_state_dict(head.state_dict())
    return vpt


@pytest.mark.parametrize("dimension", ["all", "sequence", "hidden"])
@pytest.mark.parametrize(("k", "d"), [(1, 6), (4, 6), (5, 7)])
def test_the_transform_is_the_sum_of_cosines(dimension: str, k: int, d: int) -> None:
    x, expected = torch.randn(k, d).double(), torch.zeros(k, d).double()
    for m in range(k):
        for n in range(d):
            for u in range(k):
                for v in range(d):
                    if (dimension == "sequence" and v != n) or (dimension == "hidden" and u != m):
                        continue
                    row = m * u / k if dimension != "hidden" else 0.0
                    column = n * v / d if dimension != "sequence" else 0.0
                    expected[m, n] += x[u, v] * math.cos(2 * math.pi * (row + column))
    torch.testing.assert_close(fourier(x, dimension), expected)


@pytest.mark.parametrize(("k", "d"), [(5, 48), (4, 48), (2, 48), (1, 48)])
def test_the_transform_has_the_rank_and_the_singular_values_it_should(k: int, d: int) -> None:
    matrix = fourier(torch.eye(k * d).double().unflatten(1, (k, d))).flatten(1)
    torch.testing.assert_close(matrix, matrix.T, atol=1e-9, rtol=0)
    values = torch.linalg.svdvals(matrix)
    large = values > 1e-6
    torch.testing.assert_close(values[large], torch.full_like(values[large], math.sqrt(k * d)))
    symmetric = (1 if k % 2 else 2) * (1 if d % 2 else 2)
    assert int(large.sum()) == (k * d + symmetric) // 2


def test_half_precision_is_summed_in_float32() -> None:
    x = torch.randn(50, 768).bfloat16()
    assert torch.equal(fourier(x), fourier(x.float()))
    with torch.autocast("cpu", torch.bfloat16):
        assert fourier(x.float()).dtype == torch.float32


@pytest.mark.parametrize(
    ("prompts", "share", "count"), [(10, 0.5, 5), (8, 0.7, 5), (7, 0.3, 2), (5, 0.7, 3), (4, 1.0, 4), (3, 0.0, 0)]
)
def test_the_share_is_rounded_down(prompts: int, share: float, count: int) -> None:
    assert VFPTConfig(num_prompts=prompts, fourier_share=share).num_fourier == count


@pytest.mark.parametrize("deep", [True, False])
def test_a_share_of_0_is_plain_vpt_to_the_bit(plain: Backbone, deep: bool) -> None:
    ours = model(plain, fourier_share=0.0, deep=deep)
    theirs = plain_with(plain, list(ours.method.prompts), ours.head, deep)
    images = images_for(plain)
    assert torch.equal(ours(images), theirs(images))


@pytest.mark.parametrize("family", ["class-token", "registers", "swin"])
@pytest.mark.parametrize("deep", [True, False])
def test_folding_gives_vpt_with_the_transformed_prompts(family: str, deep: bool) -> None:
    backbone = shared_backbone(family)
    ours, images = model(backbone, deep=deep), images_for(backbone)
    fed = [ours.method.fed(i).detach() for i in range(len(ours.method.prompts))]
    plain = plain_with(backbone, fed, ours.head, deep)
    folded = ours.fold()
    torch.testing.assert_close(folded(images), plain(images), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(folded(images), ours(images), atol=1e-5, rtol=1e-5)
    assert not list(folded.method.parameters())


def test_the_first_prompts_are_transformed_and_may_come_last(plain: Backbone) -> None:
    method = model(plain, num_prompts=4).method
    own = method.prompts[1]
    expected = fourier(own[:2])
    assert torch.equal(method.fed(1), torch.cat([expected, own[2:]]))
    after = VFPT(VFPTConfig(num_prompts=4, fourier_location="append"), plain)
    after.load_state_dict(method.state_dict())
    assert torch.equal(after.fed(1), torch.cat([own[2:], expected]))


def test_blocks_that_are_not_named_have_plain_prompts(plain: Backbone) -> None:
    method = model(plain, fourier_blocks=(0, 2)).method
    changed = [not torch.equal(method.fed(i), method.prompts[i]) for i in range(3)]
    assert changed == [True, False, True]


def test_what_is_odd_has_no_gradient(plain: Backbone) -> None:
    ours = model(plain, num_prompts=5, fourier_share=1.0)
    ours(images_for(plain)).square().sum().backward()
    gradient = ours.method.prompts.stages[0].grad[0]
    mirrored = gradient.roll(-1, 0).flip(0).roll(-1, 1).flip(1)
    torch.testing.assert_close(gradient, mirrored, atol=1e-4, rtol=1e-4)


def test_dropout_comes_before_the_transform_and_is_each_images_own(plain: Backbone) -> None:
    method = model(plain, dropout=0.5, fourier_share=1.0).method.train()
    images = images_for(plain, 4)
    stream = plain.embed(images, noise=Noise(3, total=4))
    fed = method.fed(0, stream)
    assert fed.shape == (4, 5, 48)
    assert not torch.equal(fed[0], fed[1])
    # A dropped entry is missing from every sum, so no transformed one is 0.
    assert (fed == 0).float().mean() < 0.01
    part = plain.embed(images[2:], noise=Noise(3, first=2, total=4))
    torch.testing.assert_close(method.fed(0, part), fed[2:])


def test_a_projection_comes_before_the_transform(plain: Backbone) -> None:
    method = model(plain, projection=7).method
    projected = method.projection(method.prompts[0])
    torch.testing.assert_close(method.fed(0)[:2], fourier(projected[:2]))


def test_start_values_are_vpts(plain: Backbone) -> None:
    torch.manual_seed(4)
    ours = VFPT(VFPTConfig(num_prompts=6), plain)
    torch.manual_seed(4)
    theirs = VPT(VPTConfig(num_prompts=6), plain)
    assert torch.equal(ours.prompts.stages[0], theirs.prompts.stages[0])


@pytest.mark.parametrize(("deep", "parameters"), [(True, 92_160), (False, 7_680)])
def test_vit_b_16_gains_what_vpt_gains(deep: bool, parameters: int) -> None:
    backbone = Backbone(meta_model("vit_base_patch16_224"))
    config = VFPTConfig(num_prompts=10, deep=deep)
    assert VFPT.num_parameters(config, backbone) == parameters
    assert sum(value.numel() for value in VFPT(config, backbone).parameters()) == parameters


@pytest.mark.parametrize("family", ["class-token", "swin"])
def test_the_parameter_formula_counts_a_projection(family: str) -> None:
    backbone, config = shared_backbone(family), VFPTConfig(deep=False, projection=7)
    parameters = VFPT(config, backbone).parameters()
    assert VFPT.num_parameters(config, backbone) == sum(value.numel() for value in parameters)


def test_the_papers_classifier_can_be_had(plain: Backbone) -> None:
    head = nn.Linear(48, 4)
    VFPT(VFPTConfig(head_init="paper"), plain).initialise_head(head)
    assert head.bias.tolist() == pytest.approx([-math.log(99)] * 4)


def test_blocks_beyond_those_that_have_prompts_are_refused(plain: Backbone) -> None:
    with pytest.raises(ConfigError, match=r"fourier_blocks \(3,\) goes beyond the 3 blocks that have prompts"):
        VFPT(VFPTConfig(fourier_blocks=(3,)), plain)
    with pytest.raises(ConfigError, match="goes beyond the 1 blocks"):
        VFPT(VFPTConfig(fourier_blocks=(1,), deep=False), plain)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_prompts": 0}, "num_prompts is 0"),
        ({"num_prompts": 1}, "less than one of 1 prompts; use 1 or more, more prompts, or 0 for plain VPT"),
        ({"num_prompts": 3, "fourier_share": 0.3}, "less than one of 3 prompts; use 0.34 or more"),
        ({"fourier_share": 1.5}, "fourier_share is 1.5"),
        ({"fourier_share": -0.5}, "fourier_share is -0.5"),
        ({"fourier_blocks": (-1,)}, "blocks are counted from 0"),
        ({"fourier_blocks": ()}, "fourier_blocks is empty; name blocks, leave it out, or use fourier_share 0"),
        ({"fourier_dimension": "both"}, "fourier_dimension is 'both'"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"projection": 0}, "projection is 0"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VFPTConfig(**options)
