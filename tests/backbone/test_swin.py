"""Swin with prompts, against attention written out window by window."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.families import STAGED, images_for, scramble, shared_backbone
from tests.versions import has
from trimtab.backbone import Backbone
from trimtab.backbone.functional import pooled_hidden_state, skip_attention
from trimtab.errors import BackboneError
from trimtab.stream import Stream

pytestmark = pytest.mark.skipif(not has("timm", "1.0.8"), reason="Swin needs timm 1.0.8 or newer")

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
SIZES = [((64, 64), 4), ((56, 72), 5), ((32, 32), 7), ((60, 44), 3), ((32, 32), 1)]
"""Images and windows: that fit, that do not, one window larger than the image."""


def made(version: str, size: tuple[int, int] = (56, 72), window: int = 5, **options: Any) -> Backbone:
    name = {"1": "swin_tiny_patch4_window7_224", "2": "swinv2_tiny_window8_256"}[version]
    small = {"embed_dim": 24, "depths": (2, 1, 3), "num_heads": (2, 4, 8), "num_classes": 5}
    model = timm.create_model(name, img_size=size, window_size=window, **small, **options)
    return Backbone(scramble(model).eval())


def run(backbone: Backbone, stream: Stream, **options: Any) -> Stream:
    for i in range(backbone.depth):
        stream = backbone.block(i, stream, **options)
    return stream


@pytest.fixture(params=["1", "2"])
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize(("size", "window"), SIZES)
def test_without_prompts_it_is_timm(version: str, size: tuple[int, int], window: int) -> None:
    backbone = made(version, size, window)
    images = images_for(backbone, 3)
    left = run(backbone, backbone.embed(images))
    model = backbone.model
    torch.testing.assert_close(backbone.pool(left), model.forward_head(model.forward_features(images), pre_logits=True))


@pytest.mark.parametrize("options", [{"dynamic_img_size": True, "strict_img_size": False}, {"always_partition": True}])
def test_timms_other_ways_to_cut_are_timms(version: str, options: dict[str, Any]) -> None:
    backbone = made(version, (32, 32), 4, **options)
    images = images_for(backbone, 2)
    if "dynamic_img_size" in options:
        images = torch.randn(2, 3, 48, 40)
    left = run(backbone, backbone.embed(images))
    expected = backbone.model.forward_head(backbone.model.forward_features(images), pre_logits=True)
    torch.testing.assert_close(backbone.pool(left), expected)


def test_another_image_size_is_timms_own_resizing(version: str) -> None:
    backbone = made(version, (64, 64), 4)
    model, before = copy.deepcopy(backbone.model), backbone.fingerprint
    backbone.set_image_size(96, 64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.set_input_size(img_size=(96, 64))
    images = torch.randn(2, 3, 96, 64)
    left = run(backbone, backbone.embed(images))
    torch.testing.assert_close(backbone.pool(left), model.forward_head(model.forward_features(images), pre_logits=True))
    assert backbone.fingerprint == before
    assert backbone.patches == (384, 384, 96, 24, 24, 24)


def test_sizes(version: str) -> None:
    backbone = made(version, (60, 44), 3)
    assert backbone.widths == (24, 24, 48, 96, 96, 96)
    assert backbone.heads == (2, 2, 4, 8, 8, 8)
    assert backbone.stages == (range(2), range(2, 3), range(3, 6))
    assert backbone.patches == (15 * 11, 15 * 11, 8 * 6, 4 * 3, 4 * 3, 4 * 3)
    assert (backbone.num_features, backbone.num_prefix_tokens, backbone.patch_size) == (96, 0, (4, 4))


# --- prompts ------------------------------------------------------------------------------------------


def slow_attention(block: Any, x: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
    """One image's grid (h, w, D) and prompts (P, D) through a block's attention, window by window and head by head.

    Each window, with the prompts in front, attends to itself; what becomes of the prompts is averaged over windows.
    """
    attn, v2 = block.attn, hasattr(block.attn, "logit_scale")
    height, width, channels = x.shape
    rows, columns = block.window_size
    down, right = block.shift_size
    padded_height, padded_width = -(-height // rows) * rows, -(-width // columns) * columns
    normed = x if v2 else block.norm1(x)
    grid = x.new_zeros(padded_height, padded_width, channels)
    grid[:height, :width] = torch.roll(normed, (-down, -right), (0, 1))
    fronts = prompts if v2 else block.norm1(prompts)
    count, out, out_prompts = 0, torch.zeros_like(grid), torch.zeros_like(prompts)
    for top in range(0, padded_height, rows):
        for left in range(0, padded_width, columns):
            window = grid[top : top + rows, left : left + columns].reshape(-1, channels)
            allowed = None
            if down or right:
                allowed = block.get_attn_mask(x.new_zeros(1, padded_height, padded_width, 1))[count]
            attended = _one_window(attn, window, fronts, allowed)
            out[top : top + rows, left : left + columns] = attended[len(prompts) :].reshape(rows, columns, channels)
            out_prompts += attended[: len(prompts)]
            count += 1
    back = torch.roll(out[:height, :width], (down, right), (0, 1))
    return attn.proj(back), attn.proj(out_prompts / count)


def _one_window(attn: Any, window: Tensor, fronts: Tensor, allowed: Tensor | None) -> Tensor:
    number, sequence = len(fronts), torch.cat([fronts, window])
    heads, v2 = attn.num_heads, hasattr(attn, "logit_scale")
    bias = torch.cat([attn.q_bias, attn.k_bias, attn.v_bias]) if v2 else attn.qkv.bias
    q, k, v = F.linear(sequence, attn.qkv.weight, bias).view(len(sequence), 3, heads, -1).permute(1, 2, 0, 3)
    if v2:
        table = 16 * attn.cpb_mlp(attn.relative_coords_table).view(-1, heads).sigmoid()
    else:
        table = attn.relative_position_bias_table
    outs = []
    for head in range(heads):
        if v2:
            logits = F.normalize(q[head], dim=-1) @ F.normalize(k[head], dim=-1).T * attn.logit_scale[head, 0, 0].exp()
        else:
            logits = q[head] @ k[head].T * attn.scale
        positions = table[attn.relative_position_index.view(-1), head].view(len(window), len(window))
        logits[number:, number:] += positions if allowed is None else positions + allowed
        outs.append(logits.softmax(-1) @ v[head])
    return torch.cat(outs, -1)


def slow_block(backbone: Backbone, i: int, grids: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
    """All images one by one, (B, h, w, D) and (B, P, D), with the merging that follows."""
    blocks = [block for stage in backbone.model.layers for block in stage.blocks]
    block, merges = blocks[i], {}
    for s, stage in enumerate(backbone.stages[:-1]):
        merges[stage.stop - 1] = backbone.model.layers[s + 1].downsample
    v2, outs = hasattr(block.attn, "logit_scale"), []
    for x, p in zip(grids, prompts, strict=True):
        attended = slow_attention(block, x, p)
        pair = [a + (block.norm1(b) if v2 else b) for a, b in zip((x, p), attended, strict=True)]
        outs.append([a + (block.norm2(block.mlp(a)) if v2 else block.mlp(block.norm2(a))) for a in pair])
    grids, prompts = (torch.stack(parts) for parts in zip(*outs, strict=True))
    if i in merges:
        merge = merges[i]
        grids = merge(grids)
        four = prompts.repeat(1, 1, 4)
        prompts = merge.norm(merge.reduction(four)) if v2 else merge.reduction(merge.norm(four))
    return grids, prompts


@pytest.mark.parametrize(("size", "window"), SIZES)
def test_shallow_prompts_equal_attention_written_out(version: str, size: tuple[int, int], window: int) -> None:
    backbone = made(version, size, window).double()
    stream = backbone.embed(images_for(backbone)).with_prompts(torch.randn(2, 3, 24, dtype=torch.double))
    grids, prompts = stream.tokens.unflatten(1, stream.grid_size), stream.prompts
    with torch.no_grad():
        for i in range(backbone.depth):
            stream = backbone.block(i, stream)
            grids, prompts = slow_block(backbone, i, grids, prompts)
            torch.testing.assert_close(stream.tokens.unflatten(1, stream.grid_size), grids)
            torch.testing.assert_close(stream.prompts, prompts)


def test_context_acts_on_patches_as_full_prompts_do(version: str) -> None:
    backbone = made(version)
    stream, images = backbone.embed(images_for(backbone)), 2
    for i in range(backbone.depth):
        prompts = torch.randn(images, 4, backbone.widths[i])
        expected = backbone.block(i, stream.with_prompts(prompts)).tokens
        torch.testing.assert_close(backbone.block(i, stream, context=prompts).tokens, expected, **CLOSE)
        stored = backbone.keys_values(i, prompts)
        torch.testing.assert_close(backbone.block(i, stream, context=stored).tokens, expected, **CLOSE)
        stream = backbone.block(i, stream, context=prompts[0])


def test_skip_attention_leaves_the_softmax_core_out(version: str) -> None:
    backbone, prompts = made(version), torch.randn(1, 4, 24)
    block = backbone.model.layers[0].blocks[1]
    if version == "2":
        expected = prompts + block.norm1(block.attn.proj(prompts))
        expected = expected + block.norm2(block.mlp(expected))
    else:
        expected = prompts + block.attn.proj(block.norm1(prompts))
        expected = expected + block.mlp(block.norm2(expected))
    stream = backbone.embed(images_for(backbone))
    torch.testing.assert_close(skip_attention(backbone, 1, prompts, stream), expected)


@pytest.mark.parametrize("how", ["full", "context"])
def test_no_prompt_of_one_image_reaches_another(version: str, how: str) -> None:
    """The official code orders windows by image and prompts by window, which mixes the images of a batch."""
    backbone = made(version)
    stream, prompts = backbone.embed(images_for(backbone, 3)), torch.randn(3, 4, 24)
    changed = prompts.clone()
    changed[1] = torch.randn(4, 24)

    def left(given: Tensor) -> Tensor:
        if how == "full":
            return backbone.pool(run(backbone, stream.with_prompts(given)))
        first = backbone.block(0, stream, context=given)
        for i in range(1, backbone.depth):
            first = backbone.block(i, first)
        return backbone.pool(first)

    before, after = left(prompts), left(changed)
    torch.testing.assert_close(after[[0, 2]], before[[0, 2]], rtol=0, atol=0)
    assert not torch.allclose(after[1], before[1], atol=1e-3)


def test_no_gradient_of_one_image_reaches_anothers_prompts(version: str) -> None:
    backbone, prompts = made(version), torch.randn(3, 4, 24, requires_grad=True)
    stream = backbone.embed(images_for(backbone, 3)).with_prompts(prompts)
    backbone.pool(run(backbone, stream))[1].sum().backward()
    assert prompts.grad is not None
    assert (prompts.grad.abs().amax((1, 2)) > 0).tolist() == [False, True, False]


# --- saliency -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "window"), SIZES)
def test_saliency_is_the_mean_querys_row_over_all_patches(version: str, size: tuple[int, int], window: int) -> None:
    backbone = made(version, size, window)
    stream = backbone.embed(images_for(backbone))
    block = backbone.model.layers[0].blocks[1]
    stream = backbone.block(0, stream)
    left = backbone.block(1, stream, saliency=True).saliency
    attn, v2 = block.attn, version == "2"
    normed = stream.tokens if v2 else block.norm1(stream.tokens)
    bias = torch.cat([attn.q_bias, attn.k_bias, attn.v_bias]) if v2 else attn.qkv.bias
    q, k, _ = F.linear(normed, attn.qkv.weight, bias).unflatten(2, (3, 2, 12)).permute(2, 0, 3, 1, 4)
    if v2:
        q, k = F.normalize(q, dim=-1) * attn.logit_scale.exp(), F.normalize(k, dim=-1)
    logits = (q.mean(2, keepdim=True) @ k.transpose(-2, -1)).squeeze(2) * (1.0 if v2 else attn.scale)
    # The block ends its stage: a merged patch has the attention of its four.
    height, width = stream.grid_size
    attention = F.pad(logits.softmax(-1).unflatten(2, (height, width)), (0, width % 2, 0, height % 2))
    expected = attention.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).sum((3, 5)).flatten(2)
    assert left is not None
    torch.testing.assert_close(left.softmax(-1), expected, **CLOSE)


@pytest.mark.parametrize("family", STAGED)
def test_feature_is_of_before_merging(family: str) -> None:
    backbone = shared_backbone(family)
    stream = backbone.block(0, backbone.embed(images_for(backbone)))
    assert stream.unmerged is None
    left = backbone.block(1, stream)
    assert left.tokens.shape[2] == 96
    assert left.unmerged is not None
    assert torch.equal(pooled_hidden_state(backbone, left), left.unmerged.mean(1))
    assert backbone.block(2, left).unmerged is None


# --- refused ------------------------------------------------------------------------------------------


def test_attention_of_another_width_is_refused() -> None:
    model = timm.create_model(
        "swin_tiny_patch4_window7_224", embed_dim=24, depths=(1, 1), num_heads=(1, 2), head_dim=32, img_size=32
    )
    with pytest.raises(BackboneError, match="wider or narrower than its tokens"):
        Backbone(model)


def test_blocks_of_other_kinds_are_refused() -> None:
    model = made("1").model
    model.layers[0].blocks[0] = torch.nn.Identity()
    with pytest.raises(BackboneError, match="its blocks are Identitys"):
        Backbone(model)


def test_a_size_that_leaves_windows_of_one_patch_is_refused_and_changes_nothing(version: str) -> None:
    backbone = made(version, (64, 64), 4)
    before = copy.deepcopy(backbone.state_dict())
    with pytest.raises(BackboneError, match=r"At 12x12 the windows of this SwinTransformer\w* would be single patches"):
        backbone.set_image_size(12, 12)
    assert backbone.image_size == (64, 64)
    torch.testing.assert_close(backbone.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "vit_tiny_patch16_224"])
def test_a_model_that_pools_nothing_is_refused(name: str) -> None:
    with torch.device("meta"), pytest.raises(BackboneError, match="it pools nothing"):
        Backbone(timm.create_model(name, global_pool=""))


def test_a_timm_that_does_not_pad_windows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=56, embed_dim=24, depths=(2, 1), num_heads=(2, 4)
    )
    monkeypatch.delattr("timm.models.swin_transformer.SwinTransformerBlock.get_attn_mask")
    with pytest.raises(BackboneError, match=r"does not pad its windows; install timm 1\.0\.8 or newer"):
        Backbone(model)
