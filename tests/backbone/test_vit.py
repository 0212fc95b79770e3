"""What pooling reads: learned pooling's patches, and the last block that computes no more than is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.families import FAMILIES, images_for, scramble, shared_backbone
from tests.versions import has, need
from trimtab.backbone import Backbone
from trimtab.backbone.functional import block_and_select, pooled_hidden_state
from trimtab.backbone.vit import resize_positions
from trimtab.methods.ship import decoupled_attention
from trimtab.stream import BlockHooks, Stream

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def made(**pooling: object) -> Backbone:
    """A SigLIP-like backbone whose learned pooling has other options."""
    model = FAMILIES["map-pool"].model()
    options = {"num_heads": 3, "mlp_ratio": 2.0, "norm_layer": torch.nn.LayerNorm, **pooling}
    model.attn_pool = scramble(timm.layers.AttentionPoolLatent(48, **options), seed=1)
    return Backbone(model.eval())


def attention_of(backbone: Backbone, stream: Stream) -> torch.Tensor:
    """(B, H, T): the weights that timm's own pooling gives to the tokens."""
    pool, seen = backbone.model.attn_pool, []

    def written_out(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **_: object) -> torch.Tensor:
        weights = (q @ k.transpose(-2, -1) * pool.scale).softmax(-1)
        seen.append(weights.mean(2))
        return weights @ v

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("timm.layers.attention_pool.F.scaled_dot_product_attention", written_out)
        pool(backbone.model.norm(stream.tokens))
    return seen[0]


@pytest.mark.parametrize(
    "pooling",
    [{}, {"qk_norm": True}, {"q_proj": False}, {"qkv_bias": False}, {"pos_embed": "abs", "feat_size": 16}],
    ids=str,
)
def test_saliency_is_what_timms_pooling_attends_to(pooling: dict[str, object]) -> None:
    need("timm", "1.0.28" if "q_proj" in pooling else "1.0.7" if "feat_size" in pooling else "1.0.3")
    backbone = made(**pooling)
    stream = backbone.block(0, backbone.embed(images_for(backbone)), saliency=True)
    assert stream.saliency is not None
    torch.testing.assert_close(stream.saliency.softmax(-1), attention_of(backbone, stream), **CLOSE)


def test_feature_is_the_mean_of_the_tokens_with_the_poolings_weights() -> None:
    backbone = shared_backbone("map-pool")
    stream = backbone.block(0, backbone.embed(images_for(backbone)))
    weights = attention_of(backbone, stream).mean(1)
    expected = (weights[:, :, None] * stream.tokens).sum(1)
    torch.testing.assert_close(pooled_hidden_state(backbone, stream), expected, **CLOSE)


def test_several_latent_queries_have_their_mean_logits() -> None:
    backbone = made(latent_len=3)
    stream = backbone.block(0, backbone.embed(images_for(backbone)), saliency=True)
    pool, normed = backbone.model.attn_pool, backbone.model.norm(stream.tokens)
    queries = pool.q(pool.latent)[0].unflatten(-1, (3, 16)).transpose(0, 1)
    keys = pool.kv(normed)[..., :48].unflatten(-1, (3, 16)).transpose(1, 2)
    expected = (queries @ keys.transpose(-2, -1) * pool.scale).mean(2)
    torch.testing.assert_close(stream.saliency, expected, **CLOSE)


def test_prefix_tokens_that_pooling_reads_have_logits_too() -> None:
    model = scramble(
        timm.create_model(
            "vit_base_patch16_224", embed_dim=48, num_heads=3, depth=2, img_size=32, patch_size=8, global_pool="map"
        )
    )
    backbone = Backbone(model.eval())
    stream = backbone.block(0, backbone.embed(images_for(backbone)), saliency=True)
    assert stream.saliency is not None
    assert stream.saliency.shape == (2, 12 if model.attn_pool.num_heads == 12 else 3, 17)


@pytest.mark.parametrize("family", ["map-pool", "registers-average", "class-token", "swin", "swin-v2"])
@pytest.mark.parametrize("place", [0, 5, 11])
def test_the_obviously_salient_patch_has_the_largest_logit(family: str, place: int) -> None:
    """One patch is made what the pooling's query looks for; all others are nothing to it."""
    backbone = FAMILIES[family].backbone()
    _look_at_channel_0(backbone)
    stream = backbone.embed(images_for(backbone))
    tokens = 0.1 * torch.randn_like(stream.tokens)
    at = backbone.num_prefix_tokens + place
    tokens[:, at, 0] += 20.0
    stream = backbone.block(0, stream.replace(tokens=tokens), saliency=True)
    assert stream.saliency is not None
    patches = stream.saliency.mean(1)[:, backbone.num_prefix_tokens :]
    assert (patches.argmax(1) == place).all()


def _look_at_channel_0(backbone: Backbone) -> None:
    """Queries along one direction, keys along it by a token's first channel; the block changes no token."""
    block = next(module for module in backbone.model.modules() if hasattr(module, "attn"))
    attn = block.attn
    pool = getattr(backbone.model, "attn_pool", None)
    with torch.no_grad():
        for value in (attn.proj.weight, attn.proj.bias, block.mlp.fc2.weight, block.mlp.fc2.bias):
            value.zero_()
        for norm in (block.norm1, block.norm2, backbone.model.norm):
            if not isinstance(norm, torch.nn.Identity):
                norm.weight.fill_(1.0)
                norm.bias.zero_()
        attn.qkv.weight.zero_()
        attn.qkv.weight[48:96:16, 0] = 1.0
        apart = attn.qkv.bias is None
        of_queries, of_keys = (attn.q_bias, attn.k_bias) if apart else (attn.qkv.bias[:48], attn.qkv.bias[48:96])
        for bias, direction in ((of_queries, 0), (of_keys, 1)):
            bias.zero_()
            bias[direction::16] = 1.0
        if pool is not None:
            pool.q.weight.copy_(torch.eye(48))
            pool.latent.fill_(1.0)
            pool.kv.weight.zero_()
            pool.kv.weight[:48:16, 0] = 1.0
            pool.q.bias.zero_()
            pool.kv.bias.zero_()


# --- the last block -----------------------------------------------------------------------------------


def left(backbone: Backbone, pooled_only: bool, **options: Any) -> Stream:
    stream = backbone.embed(images_for(backbone), pooled_only=pooled_only)
    for i in range(backbone.depth):
        last = options if i == backbone.depth - 1 else {}
        stream = backbone.block(i, stream.with_prompts(last.pop("prompts")) if "prompts" in last else stream, **last)
    return stream


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("how", ["context", "prompts", "decoupled", "hooks"])
def test_the_last_block_computes_what_pooling_reads_and_no_more(family: str, how: str) -> None:
    backbone = shared_backbone(family)
    torch.manual_seed(1)
    context, width = torch.randn(2, 3, backbone.widths[-1]), backbone.widths[-1]
    weight = torch.randn(width, width)
    options: dict[str, Any] = {
        "context": {"context": context},
        "prompts": {"prompts": context, "context": torch.randn(2, width)},
        "decoupled": {"prompts": context, "context": context, "attend": decoupled_attention(0.3)},
        "hooks": {
            "hooks": BlockHooks(
                attention=lambda branch: branch.update @ weight,
                mlp=lambda branch: branch.input @ weight,
                output=lambda x: x @ weight,
                tokenwise=True,
            )
        },
    }[how]
    whole, part = left(backbone, False, **options), left(backbone, True, **options)
    torch.testing.assert_close(backbone.pool(part), backbone.pool(whole), **CLOSE)
    pooled = range(whole.tokens.shape[1])[backbone.pooled_tokens]
    reads_first = pooled.start == 0 and len(pooled) < whole.tokens.shape[1]
    assert part.tokens.shape[1] == (len(pooled) if reads_first else whole.tokens.shape[1])


def test_saliency_of_the_last_block_needs_all_of_it(plain: Backbone) -> None:
    asked = left(plain, True, saliency=True)
    assert asked.tokens.shape == (2, 17, 48)
    assert asked.saliency is not None


def most(count: int, first: int = 0) -> Callable[[torch.Tensor], torch.Tensor]:
    """Select the tokens of the largest saliency, from position ``first`` on."""
    return lambda saliency: saliency.mean(1)[:, first:].topk(count, dim=1).indices + first


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("how", ["context", "decoupled"])
def test_salient_tokens_and_prompts_leave_the_last_block_as_if_all_did(family: str, prefix: bool, how: str) -> None:
    backbone = shared_backbone(family)
    if min(backbone.patches) < 3:
        pytest.skip("fewer patches than salient tokens")
    torch.manual_seed(1)
    context, prompts = (torch.randn(2, 3, backbone.widths[-1], requires_grad=True) for _ in range(2))
    select = most(3, 0 if prefix else backbone.num_prefix_tokens)
    options: dict[str, Any] = {"context": context}
    if how == "decoupled":
        options["attend"] = decoupled_attention(0.3)
    results = []
    for pooled_only in (False, True):
        stream = backbone.embed(images_for(backbone), pooled_only=pooled_only)
        for i in range(backbone.depth - 1):
            stream = backbone.block(i, stream)
        entered = stream.with_prompts(prompts) if how == "decoupled" else stream
        stream, selected = block_and_select(backbone, backbone.depth - 1, entered, select, **options)
        parts = (backbone.pool(stream), selected, stream.prompts)
        wanted = (context, prompts) if how == "decoupled" else (context,)
        gradients = torch.autograd.grad(sum(part.square().sum() for part in parts), wanted)
        results.append((*parts, *gradients))
    for whole, part in zip(*results, strict=True):
        torch.testing.assert_close(part, whole, atol=1e-4, rtol=1e-4)


def test_salient_tokens_cost_no_more_than_they_and_the_first() -> None:
    backbone, flops = FAMILIES["depth-1"].backbone(), []
    stream = backbone.embed(images_for(backbone), pooled_only=True)
    with FlopCounterMode(display=False) as counter:
        backbone.block(0, stream, saliency=True)
    flops.append(counter.get_total_flops())
    with FlopCounterMode(display=False) as counter:
        left_over, _ = block_and_select(backbone, 0, stream, most(2))
    flops.append(counter.get_total_flops())
    assert left_over.tokens.shape[1] == 1
    # Keys and values of 17 tokens, everything else of three: 2 of 12 parts, and 10 of 12 for 3 of 17 tokens.
    assert flops[1] < 0.36 * flops[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_salient_tokens_are_those_with_the_largest_saliency(family: str) -> None:
    backbone = shared_backbone(family)
    select = most(2, backbone.num_prefix_tokens)
    stream, selected = block_and_select(backbone, 0, backbone.embed(images_for(backbone)), select)
    assert stream.saliency is not None
    logits = stream.saliency.mean(1)
    logits[:, : backbone.num_prefix_tokens] = -torch.inf
    for image, (row, tokens) in enumerate(zip(logits, selected, strict=True)):
        first, second = row.argsort(descending=True)[:2].tolist()
        assert torch.equal(tokens, stream.tokens[image, [first, second]])


def test_the_last_block_costs_what_one_token_costs() -> None:
    backbone, flops = FAMILIES["depth-1"].backbone(), []
    for pooled_only in (False, True):
        stream = backbone.embed(images_for(backbone), pooled_only=pooled_only)
        with FlopCounterMode(display=False) as counter:
            backbone.block(0, stream)
        flops.append(counter.get_total_flops())
    # Keys and values of 17 tokens, everything else of one: 2 of 12 parts of a plain block's layers.
    assert flops[1] < 0.26 * flops[0]


@pytest.mark.parametrize("family", ["class-token", "registers-average", "distilled", "eva02"])
@pytest.mark.parametrize("grid", [(3, 5), (2, 2), (8, 8)])
def test_positions_are_resized_as_by_a_timm_that_can(family: str, grid: tuple[int, int]) -> None:
    need("timm", "1.0.18")
    timms, ours = FAMILIES[family].model(), FAMILIES[family].model()
    size = tuple(g * p for g, p in zip(grid, timms.patch_embed.patch_size, strict=True))
    timms.set_input_size(img_size=size)
    resize_positions(ours, *size)
    images = torch.randn(2, 3, *size)
    assert torch.equal(ours.forward_features(images), timms.forward_features(images))
    assert ours.patch_embed.grid_size == grid
    assert ours.patch_embed.num_patches == timms.patch_embed.num_patches


def test_positions_of_a_dynamic_model_are_resized_at_every_pass() -> None:
    if has("timm", "1.0.8"):
        pytest.skip("timm 1.0.8 and newer resize them themselves")
    model = FAMILIES["class-token"].model(dynamic_img_size=True)
    before, images = model.pos_embed, torch.randn(2, 3, 24, 40)
    expected = model.forward_features(images)
    resize_positions(model, 24, 40)
    assert model.pos_embed is before
    assert model.patch_embed.grid_size == (3, 5)
    assert torch.equal(model.forward_features(images), expected)
