"""Families of one width: timm's VisionTransformer and Eva, blocks that attend over the whole image."""

from __future__ import annotations

import dataclasses
from typing import Any

import timm.layers
import torch
import torch.nn.functional as F
from timm.layers import AttentionPoolLatent, apply_rot_embed_cat
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva, EvaAttention, EvaBlock
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import Tensor, nn

from trimtab.backbone.family import BesideMLP, BlockInputs, Family, Keep, Part, gathered, half_precision, run_mlp
from trimtab.stream import AttentionInputs, KeysValues

# Younger than timm 1.0.
_ATTENTION_ROPE = getattr(timm.layers, "AttentionRope", EvaAttention)


class ViTFamily(Family):
    """VisionTransformer and Eva, with pre-norm blocks in sequence."""

    inside = "blocks."

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        pool = getattr(model, "attn_pool", None)
        if isinstance(pool, AttentionPoolLatent):
            self.heads_in_saliency = int(pool.num_heads)

    @staticmethod
    def takes(model: nn.Module) -> bool:
        """Whether the model is a VisionTransformer or an Eva."""
        return isinstance(model, (VisionTransformer, Eva))

    @staticmethod
    def reasons_not_to_open(model: Any) -> list[str]:
        """Blocks of other kinds, other attention, a forward pass of its own."""
        reasons = half_precision(model)
        if type(model).forward_features not in (VisionTransformer.forward_features, Eva.forward_features):
            reasons.append(f"{type(model).__name__} runs its blocks in a way of its own")
        if model.global_pool == "":
            reasons.append("it pools nothing (global_pool is '')")
        blocks = {type(block).__name__ for block in model.blocks if type(block) not in (Block, EvaBlock)}
        for name in sorted(blocks):
            reasons.append(f"its blocks are {name}s, not pre-norm blocks with attention and MLP in sequence")
        known = (Attention, EvaAttention, _ATTENTION_ROPE)
        attention = [getattr(block, "attn", None) for block in model.blocks]
        for name in sorted({type(attn).__name__ for attn in attention if type(attn) not in known} - {"NoneType"}):
            reasons.append(f"its attention is {name}, not ordinary softmax attention")
        if any(getattr(attn, "attn_dim", model.embed_dim) != model.embed_dim for attn in attention):
            reasons.append("its attention is wider or narrower than its tokens")
        return reasons

    def blocks(self) -> list[Part]:
        """``model.blocks``."""
        return [Part(f"blocks.{i}", block) for i, block in enumerate(self.model.blocks)]

    @property
    def num_prefix_tokens(self) -> int:
        """Class, distillation and register tokens."""
        return int(self.model.num_prefix_tokens)

    @property
    def pooled_tokens(self) -> slice:
        """The class token, both of a distilled model's, or the patches."""
        if isinstance(self.model, VisionTransformerDistilled):
            return slice(0, 2)
        if getattr(self.model, "attn_pool", None) is None and self.model.global_pool == "token":
            return slice(0, 1)
        whole = getattr(self.model, "pool_include_prefix", False) or (
            # Eva's map pooling reads the prefix tokens too.
            isinstance(self.model, Eva) and getattr(self.model, "attn_pool", None) is not None
        )
        return slice(0 if whole else self.num_prefix_tokens, None)

    def embed(self, model: Any, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Patches with position embeddings and prefix tokens, and what comes before the first block."""
        embedded = model._pos_embed(model.patch_embed(images))
        tokens, rope = embedded if isinstance(embedded, tuple) else (embedded, None)
        if getattr(model, "norm_pre", None) is not None:
            tokens = model.norm_pre(tokens)
        return tokens, rope

    def rope(self, i: int, rope: Tensor | None) -> Tensor | None:
        """The one table, or the block's own."""
        return rope[i] if rope is not None and getattr(self.model, "rope_mixed", False) else rope

    def run(self, block: Any, inputs: BlockInputs) -> tuple[Tensor, Tensor, Tensor | None]:
        """One pre-norm block over tokens and full prompts in one sequence."""
        tokens, prompts = inputs.tokens, inputs.prompts
        attn, count = block.attn, tokens.shape[1]
        x = torch.cat([tokens, prompts], 1) if prompts.shape[1] else tokens
        normed = block.norm1(x)
        context = self.join(block, inputs.context)
        if inputs.salient is not None:
            return self._run_salient(block, inputs, x, normed, context)
        # Joined with a context, keys and values are copied; apart from the queries, the originals need not be kept.
        apart = context is not None and torch.is_grad_enabled()
        queries, own = _heads(attn, normed, inputs.rope, count, inputs.num_read, apart=apart)
        read = slice(None, inputs.num_read)
        num_queries = count if inputs.num_read is None else inputs.num_read
        seen = AttentionInputs(queries, own, context, num_tokens=count, num_queries=num_queries, scale=attn.scale)
        attended = inputs.attend(seen).transpose(1, 2).flatten(2)
        x = _residuals(block, x[:, read], normed[:, read], attended, inputs.keep, inputs.beside_mlp)
        saliency = (
            None if inputs.pooled is None else _pooled_logits(queries[:, :, :num_queries][:, :, inputs.pooled], seen)
        )
        return x[:, :count], x[:, count:], saliency

    def _run_salient(
        self, block: Any, inputs: BlockInputs, x: Tensor, normed: Tensor, context: KeysValues | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """As :meth:`run` where besides the first tokens the salient ones and the full prompts are read, and no others.

        Which they are is known from one row of logits, so the others ask no queries and have no MLP.
        """
        attn, count, first = block.attn, inputs.tokens.shape[1], inputs.num_read
        if inputs.salient is None or first is None:
            raise RuntimeError("Everything of this block is read.")
        keys, values = _project(attn, normed, "keys values")
        own = _repeat_groups(attn, KeysValues(_qk_norm(attn, "k_norm", keys).to(values.dtype), values))

        def queries(rows: Tensor) -> Tensor:
            return _qk_norm(attn, "q_norm", _project(attn, rows, "queries")[0]).to(values.dtype)

        seen = AttentionInputs(keys, own, context, count, first + inputs.salient.count, attn.scale)
        saliency = _pooled_logits(queries(normed[:, inputs.pooled]), seen)
        places = inputs.salient.places(saliency)
        x, normed = (torch.cat([v[:, :first], gathered(v, places), v[:, count:]], 1) for v in (x, normed))
        seen = dataclasses.replace(seen, queries=queries(normed))
        attended = inputs.attend(seen).transpose(1, 2).flatten(2)
        x = _residuals(block, x, normed, attended, inputs.keep, inputs.beside_mlp)
        return x[:, : seen.num_queries], x[:, seen.num_queries :], saliency

    def bypass(self, block: Any, prompts: Tensor, keep: Keep) -> Tensor:
        """Normalised prompts to the output projection, then the MLP."""
        normed = block.norm1(prompts)
        return _residuals(block, prompts, normed, normed, keep)

    def keys_values(self, block: Any, prompts: Tensor) -> KeysValues:
        """Keys and values of prompts: no position, rotary or otherwise."""
        attn = block.attn
        keys, values = _project(attn, block.norm1(prompts), "keys values")
        return _repeat_groups(attn, KeysValues(_qk_norm(attn, "k_norm", keys).to(values.dtype), values))

    def pooling_logits(self, model: Any, tokens: Tensor) -> Tensor:
        """Logits of the pooling's latent query (the mean one, if there are several) over the tokens, after the norm."""
        pool, normed = model.attn_pool, model.norm(tokens)
        queries = pool.q_norm(pool.q(pool.latent)[0].unflatten(-1, (pool.num_heads, -1)).transpose(0, 1))
        query = queries.mean(1) * pool.scale  # (H, d)
        if pool.pos_embed is not None:
            # Of the tokens that are pooled; the others have none.
            places = pool.pos_embed.to(normed.dtype)
            normed = torch.cat([normed[:, : -places.shape[0]], normed[:, -places.shape[0] :] + places], 1)
        width = pool.kv.weight.shape[0] // 2
        weight = pool.kv.weight[:width].unflatten(0, (pool.num_heads, -1))  # (H, d, D)
        bias = None if pool.kv.bias is None else pool.kv.bias[:width]
        if isinstance(pool.k_norm, nn.Identity):
            # The query goes through the keys' projection, not the keys: one row and not a matrix.
            seen = torch.einsum("hd,hdc->hc", query, weight)
            shift = 0.0 if bias is None else (query * bias.unflatten(0, (pool.num_heads, -1))).sum(1)[:, None]
            return (normed @ seen.T).transpose(1, 2) + shift
        keys = pool.k_norm(F.linear(normed, weight.flatten(0, 1), bias).unflatten(-1, (pool.num_heads, -1)))
        return torch.einsum("hd,bthd->bht", query, keys)

    def token_norm(self, model: Any, tokens: Tensor) -> Tensor:
        """The final norm, or the one behind the pooling where there is no other."""
        behind = getattr(model, "fc_norm", None)
        norm = behind if isinstance(model.norm, nn.Identity) and behind is not None else model.norm
        normed: Tensor = norm(tokens)
        return normed

    def pool(self, model: Any, tokens: Tensor, grid_size: tuple[int, int]) -> Tensor:
        """Norm and timm's own pooling."""
        pooled: Tensor = model.forward_head(model.norm(tokens), pre_logits=True)
        return pooled


def _residuals(
    block: Any, x: Tensor, normed: Tensor, attended: Tensor, keep: Keep, beside_mlp: BesideMLP | None = None
) -> Tensor:
    """The block from the softmax core's output on: projection, layer scale, residuals, MLP."""
    attn = block.attn
    if getattr(attn, "norm", None) is not None:
        attended = attn.norm(attended)
    if getattr(attn, "gate", None) is not None:
        attended = attended * attn.gate(normed).sigmoid()
    update = _layer_scale(block, 1, attn.proj(attended))
    x = x + update if keep is None else torch.addcmul(x, update.to(x.dtype), keep[0])
    update = _layer_scale(block, 2, run_mlp(block.mlp, block.norm2(x)))
    beside = None if beside_mlp is None else beside_mlp(x)
    x = x + update if keep is None else torch.addcmul(x, update.to(x.dtype), keep[1])
    return x if beside is None else x + beside


def _layer_scale(block: Any, which: int, update: Tensor) -> Tensor:
    if isinstance(block, EvaBlock):
        gamma = getattr(block, f"gamma_{which}")
        update = update if gamma is None else gamma * update
    else:
        update = getattr(block, f"ls{which}")(update)
    return update


_QKV = ("queries", "keys", "values")


def _project(attn: Any, x: Tensor, wanted: str = " ".join(_QKV)) -> list[Tensor]:
    """Queries, keys and values of ``x`` (B, S, D), or some of them, each (B, heads, S, d)."""
    if attn.qkv is None:
        layers = {"queries": attn.q_proj, "keys": attn.k_proj, "values": attn.v_proj}
        head_dim = attn.proj.in_features // attn.num_heads
        return [layers[name](x).unflatten(-1, (-1, head_dim)).transpose(1, 2) for name in wanted.split()]
    return project_fused(attn, x, wanted)


def project_fused(attn: Any, x: Tensor, wanted: str = " ".join(_QKV)) -> list[Tensor]:
    """As :func:`_project`, by one layer for adjacent parts."""
    bias = attn.qkv.bias
    if getattr(attn, "q_bias", None) is not None:
        bias = torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])
    names, width = wanted.split(), attn.qkv.weight.shape[0] // 3
    first = _QKV.index(names[0])
    rows = slice(first * width, (first + len(names)) * width)
    projected = F.linear(x, attn.qkv.weight[rows], None if bias is None else bias[rows])
    return list(projected.unflatten(-1, (len(names), attn.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0))


def _heads(
    attn: Any, normed: Tensor, rope: Tensor | None, num_tokens: int, num_read: int | None, *, apart: bool
) -> tuple[Tensor, KeysValues]:
    """Queries, keys and values of tokens and full prompts; rotary positions on the patches only.

    Queries are held ``apart`` from keys and values, or all in one tensor.
    """
    if num_read is None and not apart:
        queries, keys, values = _project(attn, normed)
    else:
        keys, values = _project(attn, normed, "keys values")
        (queries,) = _project(attn, normed[:, :num_read], "queries")
    queries, keys = _qk_norm(attn, "q_norm", queries), _qk_norm(attn, "k_norm", keys)
    if rope is not None:
        # What is read alone are prefix tokens, which have no position.
        queries = queries if num_read is not None else _rotate(attn, queries, rope, num_tokens)
        keys = _rotate(attn, keys, rope, num_tokens)
    own = KeysValues(keys.to(values.dtype), values)
    return queries.to(values.dtype), _repeat_groups(attn, own)


def _qk_norm(attn: Any, name: str, x: Tensor) -> Tensor:
    norm = getattr(attn, name, None)  # timm 1.0's EvaAttention has none
    return x if norm is None else norm(x)


def _rotate(attn: Any, x: Tensor, rope: Tensor, num_tokens: int) -> Tensor:
    prefix = attn.num_prefix_tokens
    half = {"half": True} if getattr(attn, "rotate_half", False) else {}
    patches = apply_rot_embed_cat(x[:, :, prefix:num_tokens], rope, **half)
    return torch.cat([x[:, :, :prefix], patches.to(x.dtype), x[:, :, num_tokens:]], 2)


def _repeat_groups(attn: Any, pair: KeysValues) -> KeysValues:
    """Grouped-query attention: each key and value head serves several query heads."""
    groups = getattr(attn, "num_kv_groups", 1)
    if groups == 1:
        return pair
    return KeysValues(pair.keys.repeat_interleave(groups, dim=1), pair.values.repeat_interleave(groups, dim=1))


def _pooled_logits(queries: Tensor, inputs: AttentionInputs) -> Tensor:
    # The mean of several queries' logits is the mean query's logits: one row, whatever the pooling.
    query = queries.mean(2, keepdim=True)
    keys = inputs.own.keys[:, :, : inputs.num_tokens]
    return (query * inputs.scale @ keys.transpose(-2, -1)).squeeze(2)
