"""What methods make of a backbone in stages of several widths (Swin)."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from tests.families import STAGED, images_for, scramble, shared_backbone
from tests.versions import has
from trimtab.backbone import Backbone
from trimtab.backbone.weights import meta_model
from trimtab.errors import ConfigError
from trimtab.methods.ship import SHIP, SHIPConfig, decoupled_attention
from trimtab.methods.svpt import SVPT, SVPTConfig
from trimtab.methods.vpt import VPT, VPTConfig
from trimtab.model import build
from trimtab.stream import AttentionInputs

SMALL: dict[str, Any] = {"prompt_length": 3, "shared_length": 2, "attribute_length": 2, "prototypes": 4}


pytestmark = pytest.mark.skipif(not has("timm", "1.0.8"), reason="Swin needs timm 1.0.8 or newer")


@functools.cache
def deep() -> Backbone:
    """Stages of 2, 4 and 3 blocks."""
    options = {"embed_dim": 24, "depths": (2, 4, 3), "num_heads": (2, 4, 8), "window_size": 4, "img_size": 64}
    return Backbone(scramble(timm.create_model("swin_tiny_patch4_window7_224", **options)).eval())


@pytest.fixture(params=STAGED)
def staged(request: pytest.FixtureRequest) -> Backbone:
    return shared_backbone(request.param)


def prepared(backbone: Backbone, **options: Any) -> SHIP:
    method = SHIP(SHIPConfig(**{**SMALL, **options}), backbone)
    method.prepare(backbone, [images_for(backbone, 6)])
    return method.eval()


# --- VPT ----------------------------------------------------------------------------------------------


def test_vpt_of_swin_b_has_the_official_number_of_parameters() -> None:
    backbone = Backbone(meta_model("swin_base_patch4_window7_224"))
    sizes = [
        sum(p.numel() for p in VPT(VPTConfig(num_prompts=1, deep=d), backbone).parameters()) for d in (True, False)
    ]
    assert sizes == [2 * 128 + 2 * 256 + 18 * 512 + 2 * 1024, 128]


def test_vpts_start_has_one_bound_in_all_stages() -> None:
    prompts = VPT(VPTConfig(num_prompts=200), deep()).prompts
    bound = (6 / (3 * 16 + 24)) ** 0.5
    assert all(0.99 * bound < stage.abs().max() <= bound for stage in prompts.stages)


def test_the_lengths_that_the_paper_searched() -> None:
    assert VPT.searched_lengths(deep()) == (1, 5, 10, 50)
    assert VPT.searched_lengths(shared_backbone("class-token")) == (1, 5, 10, 50, 100, 200)


def test_shallow_prompts_reach_the_last_stage(staged: Backbone) -> None:
    model = build(staged, VPTConfig(num_prompts=3, deep=False, prompt_init="uniform"), 2).eval()
    images = images_for(staged)
    assert model.run(images).prompts.shape == (2, 3, staged.widths[-1])
    before = model(images)
    with torch.no_grad():
        model.method.prompts.stages[0].normal_()
    assert not torch.allclose(model(images), before, atol=1e-3)


def test_patches_that_prompts_start_from_are_those_of_their_own_stage(staged: Backbone) -> None:
    method, images = VPT(VPTConfig(num_prompts=3), staged), images_for(staged)
    method.prepare(staged, [images])
    stream = staged.embed(images)
    for i in range(staged.depth):
        patches = stream.tokens.flatten(0, 1)
        unit = torch.nn.functional.layer_norm(patches, patches.shape[-1:])
        own = torch.nn.functional.layer_norm(method.prompts[i], unit.shape[-1:])
        assert torch.cdist(own, unit).amin(1).max() < 1e-2
        stream = staged.block(i, stream)


# --- SHIP ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [-1.0, 0.5, 1.0])
def test_every_stage_starts_a_hierarchy(threshold: float) -> None:
    method = prepared(deep(), threshold=threshold)
    assert {0, 2, 6} <= set(method.config.hierarchy or ())
    if threshold == -1.0:
        assert method.config.hierarchy == (0, 2, 6)


def test_an_end_block_does_not_keep_a_stage_from_starting_one() -> None:
    assert prepared(deep(), threshold=1.0, end_block=1).config.hierarchy == (0, 2, 6)


def test_affinity_is_within_stages() -> None:
    affinity = prepared(deep()).affinity
    for a, stage in enumerate(deep().stages):
        for b, other in enumerate(deep().stages):
            block = affinity[stage.start : stage.stop, other.start : other.stop]
            assert (block != 0).all() if a == b else (block == 0).all()
    torch.testing.assert_close(affinity.diagonal(), torch.ones(9))


def test_attribute_prompts_enter_the_last_stage_only() -> None:
    method = prepared(deep(), threshold=1.0, attribute_sets=9)
    assert method.attribute_starts == (6, 7, 8)
    assert method.attribute is not None
    assert method.attribute.shape == (3, 2, 96)
    assert method.prototypes.shape == (4, 96)


def test_a_stage_has_its_own_shared_prompts() -> None:
    method, backbone = prepared(deep(), threshold=-1.0), deep()
    assert [tuple(p.shape) for p in method.shared] == [(2, 24), (2, 48), (2, 96)]
    assert [p.shape[1] for p in method.independent] == [24, 48, 96]
    images = images_for(backbone)

    def after(block: int) -> Tensor:
        stream = backbone.embed(images)
        for i in range(block + 1):
            stream = method.step(i, backbone, stream)
        return stream.tokens

    before = [after(1), after(5)]
    with torch.no_grad():
        method.shared[1].normal_()
    assert torch.equal(after(1), before[0])
    assert not torch.allclose(after(5), before[1], atol=1e-3)


def test_a_hierarchy_across_stages_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"hierarchy \(0, 3\) goes across its stages; start one at block 2, 6 too"):
        SHIP(SHIPConfig(**{**SMALL, "hierarchy": (0, 3)}), deep())


@pytest.mark.parametrize("additive", [False, True])
def test_decoupled_attention_within_windows(staged: Backbone, additive: bool) -> None:
    """Against both softmaxes written out, in a block whose windows are shifted and masked."""
    seen: list[tuple[AttentionInputs, Tensor]] = []

    def spy(inputs: AttentionInputs) -> Tensor:
        seen.append((inputs, decoupled_attention(0.3, additive)(inputs)))
        return seen[0][1]

    stream = staged.embed(images_for(staged)).with_prompts(torch.randn(2, 48))
    staged.block(1, stream, context=torch.randn(2, 3, 48), attend=spy)
    inputs, out = seen[0]
    t, mask = inputs.num_tokens, inputs.mask
    assert mask is not None
    assert (mask[..., :t, :t] < -50).any()
    logits = inputs.queries @ inputs.own.keys.transpose(-2, -1) * inputs.scale + mask
    assert inputs.context is not None
    beyond = inputs.queries @ inputs.context.keys.transpose(-2, -1) * inputs.scale
    image = logits[:, :, :t, :t].softmax(-1) @ inputs.own.values[:, :, :t]
    values = torch.cat([inputs.own.values[:, :, t:], inputs.context.values], 2)
    prompts = torch.cat([logits[:, :, :t, t:], beyond[:, :, :t]], 3).softmax(-1) @ values
    expected = image + 0.3 * prompts if additive else 0.7 * image + 0.3 * prompts
    torch.testing.assert_close(out[:, :, :t], expected, atol=1e-5, rtol=1e-5)
    everything = torch.cat([inputs.own.values, inputs.context.values], 2)
    attending = torch.cat([logits, beyond], 3)[:, :, t:].softmax(-1) @ everything
    torch.testing.assert_close(out[:, :, t:], attending, atol=1e-5, rtol=1e-5)


# --- SVPT ---------------------------------------------------------------------------------------------


def test_nothing_is_connected_across_stages() -> None:
    backbone = deep()
    method = SVPT(SVPTConfig(num_prompts=3, prompt_init="uniform"), backbone).eval()
    assert [tuple(w.shape) for w in method.gate_weight] == [(1, 1, 24), (3, 1, 48), (2, 1, 96)]
    assert [len(b) for b in method.gate_bias] == [1, 3, 2]
    assert method.strength is not None
    assert len(method.strength) == 8
    stream, fed = backbone.embed(images_for(backbone)), []
    for i in range(backbone.depth):
        stream = method.step(i, backbone, stream)
        fed.append(stream.carry.shared)
    for i, prompts in enumerate(fed):
        own = method.prompts[i]
        # Gates are open by a tenth at the start.
        expected = own if i in (0, 2, 6) else own + 0.1 * fed[i - 1]
        torch.testing.assert_close(prompts, expected.expand_as(prompts))


def test_stages_of_one_block_have_no_gates() -> None:
    options = {"embed_dim": 24, "depths": (1, 2), "num_heads": (2, 4), "window_size": 4, "img_size": 32}
    backbone = Backbone(scramble(timm.create_model("swin_tiny_patch4_window7_224", **options)).eval())
    method = SVPT(SVPTConfig(num_prompts=3), backbone)
    assert [tuple(w.shape) for w in method.gate_weight] == [(1, 1, 48)]
    model = build(backbone, SVPTConfig(num_prompts=3, prompt_init="uniform"), 2).train()
    model(images_for(backbone)).sum().backward()


@pytest.mark.parametrize("gate_from", ["prompts", "constant"])
def test_enhancement_reaches_patches_after_merging(staged: Backbone, gate_from: Any) -> None:
    config = SVPTConfig(num_prompts=3, gate_from=gate_from, strength=0.5, salient=2, prompt_init="uniform")
    method = SVPT(config, staged).eval()
    stream = staged.embed(images_for(staged))
    for i in range(2):
        stream = method.step(i, staged, stream)
    assert stream.saliency is not None
    assert stream.saliency.shape[2] == stream.tokens.shape[1] == staged.patches[2]
    seen: list[Tensor] = []
    original = staged.block

    def spy(i: int, entering: Any, **options: Any) -> Any:
        seen.append(entering.tokens)
        return original(i, entering, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(staged), "block", lambda _, *arguments, **options: spy(*arguments, **options))
        method.step(2, staged, stream)
    changed = (seen[0] - stream.tokens).abs().amax(2) > 0
    top = stream.saliency.softmax(-1).mean(1).topk(2).indices
    assert torch.equal(changed.nonzero()[:, 1].view(2, 2), top.sort(1).values)
