"""Softmax attention, by torch's fused kernel or as batched products with a backward of their own.

Shapes: B images, H heads, S queries, P keys, d head width. Where the fused kernel is slow is a matter of device,
precision and size alone, so :func:`by_products` chooses without looking at a value: the same model computes the same
bits every time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

MOST_KEYS = 512
"""Keys up to which a training step may keep the matrices of probabilities, (B, H, S, P) a block; the fused kernel
keeps none. Beyond, products were slower as well: 1025 tokens took 1.4 times as long in bfloat16."""


class Keys(NamedTuple):
    """What one softmax is over."""

    keys: Tensor
    """(B or 1, H, P, d)."""
    values: Tensor
    """(B or 1, H, P, d)."""
    mask: Tensor | None = None
    """(B or 1, H, S, P), added to the logits."""


def by_products(device: str, dtype: torch.dtype, queries: int, keys: int, *, needs_grad: bool) -> bool:
    """Return whether attention is computed as batched products.

    On a CPU the backward pass of torch's fused kernel in bfloat16 does not use the matrix units; products do. In
    float32, and where nothing is trained, the fused kernel is as fast or faster (LOG.md).

    Args:
        device: Type of the device.
        dtype: Of queries, keys and values.
        queries: S.
        keys: P, of all softmaxes together.
        needs_grad: Whether a backward pass will follow.
    """
    small = max(queries, keys) <= MOST_KEYS
    return device == "cpu" and dtype == torch.bfloat16 and needs_grad and small


def attention(queries: Tensor, seen: Keys, *, scale: float) -> Tensor:
    """Compute ``softmax(scale * Q K^T + mask) V``: (B, H, S, d).

    Args:
        queries: (B, H, S, d).
        seen: Keys and values.
        scale: Factor on the logits.
    """
    if _by_products(queries, (seen,)):
        return products(queries, (seen,), (1.0,), scale=scale)
    return F.scaled_dot_product_attention(queries, seen.keys, seen.values, attn_mask=seen.mask, scale=scale)


def two_softmaxes(queries: Tensor, many: Keys, few: Keys, weights: tuple[float, float], *, scale: float) -> Tensor:
    """Attend to each of two by a softmax of its own, and add the outcomes times their weights: (B, H, S, d).

    Args:
        queries: (B, H, S, d), of both.
        many: Keys and values.
        few: Fewer of them, without a mask.
        weights: Of the many and of the few.
        scale: Factor on the logits of both.
    """
    if _by_products(queries, (many, few)):
        return products(queries, (many, few), weights, scale=scale)
    left = F.scaled_dot_product_attention(queries, many.keys, many.values, attn_mask=many.mask, scale=scale)
    # The few values are scaled, so that adding is one step over all rows.
    keys, values = few.keys.to(many.keys), (weights[1] * few.values).to(many.values)
    keys, values = (part.expand(queries.shape[0], -1, -1, -1) for part in (keys, values))
    return torch.add(F.scaled_dot_product_attention(queries, keys, values, scale=scale), left, alpha=weights[0])


def products(queries: Tensor, parts: Sequence[Keys], weights: Sequence[float], *, scale: float) -> Tensor:
    """Attend to each part by a softmax of its own and add the weighted outcomes, as batched products: (B, H, S, d).

    Keeps the probabilities for a backward pass in which all parts share the queries; there is no gradient of gradients.

    Args:
        queries: (B, H, S, d).
        parts: What each softmax is over.
        weights: Factors on the outcomes.
        scale: Factor on the logits.
    """
    batch, tensors = queries.shape[0], []  # type: int, list[Tensor | None]
    for keys, values, mask in parts:
        # What is of one image is repeated here, so that autograd sums its gradient; a mask need not be.
        tensors += [part.to(queries).expand(batch, -1, -1, -1) for part in (keys, values)]
        tensors.append(None if mask is None else mask.to(queries))
    left: Tensor = _Products.apply(scale, tuple(weights), queries, *tensors)
    whole: Tensor = left.unflatten(0, queries.shape[:2])
    return whole


def _by_products(queries: Tensor, parts: Sequence[Keys]) -> bool:
    read = (queries, *(x for part in parts for x in (part.keys, part.values, part.mask) if x is not None))
    needs_grad = torch.is_grad_enabled() and any(x.requires_grad for x in read)
    keys = sum(part.keys.shape[2] for part in parts)
    return by_products(queries.device.type, queries.dtype, queries.shape[2], keys, needs_grad=needs_grad)


class _Products(torch.autograd.Function):
    """Attention over parts, (B * H, S, d), from queries (B, H, S, d) and the keys, values and mask of each part."""

    @staticmethod
    def forward(ctx: Any, scale: float, weights: tuple[float, ...], queries: Tensor, *tensors: Tensor | None) -> Tensor:
        flat, nothing = queries.flatten(0, 1), queries.new_empty(())  # (B * H, S, d)
        kept: list[Tensor] = []
        left: Tensor | None = None
        for weight, (keys, values, mask) in zip(weights, _triples(tensors), strict=True):
            keys, values = keys.flatten(0, 1), values.flatten(0, 1)  # (B * H, P, d)
            logits = torch.baddbmm(nothing, flat, keys.transpose(1, 2), beta=0, alpha=scale)  # (B * H, S, P)
            if mask is not None:
                logits.unflatten(0, queries.shape[:2]).add_(mask)
            # In place: another matrix would cost as much as a product.
            probabilities = torch.softmax(logits, -1, out=logits)
            beta = 0 if left is None else 1
            left = torch.baddbmm(nothing if left is None else left, probabilities, values, beta=beta, alpha=weight)
            kept += [keys, values, probabilities]
        ctx.save_for_backward(flat, *kept)
        ctx.scale, ctx.weights, ctx.shape = scale, weights, queries.shape[:2]
        ctx.masks = [None if mask is None else mask.shape for _, _, mask in _triples(tensors)]
        if left is None:
            raise RuntimeError("There is nothing to attend to.")
        return left

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        queries, *kept = ctx.saved_tensors
        gradient, nothing = gradient.contiguous(), queries.new_empty(())  # (B * H, S, d)
        of_queries: Tensor | None = None
        found: list[Tensor | None] = []
        for i, (keys, values, probabilities) in enumerate(_triples(kept)):
            needs_keys, needs_values, needs_mask = ctx.needs_input_grad[3 + 3 * i : 6 + 3 * i]
            weight, of_keys, of_values, of_mask = ctx.weights[i], None, None, None
            if needs_values:
                of_values = torch.baddbmm(nothing, probabilities.transpose(1, 2), gradient, beta=0, alpha=weight)
            if needs_keys or needs_mask or ctx.needs_input_grad[2]:
                of_logits = torch.baddbmm(nothing, gradient, values.transpose(1, 2), beta=0, alpha=weight)
                torch.ops.aten._softmax_backward_data.out(
                    of_logits, probabilities, -1, of_logits.dtype, grad_input=of_logits
                )
                if needs_keys:
                    of_keys = torch.baddbmm(nothing, of_logits.transpose(1, 2), queries, beta=0, alpha=ctx.scale)
                if needs_mask:
                    of_mask = of_logits.unflatten(0, ctx.shape).sum_to_size(ctx.masks[i])
                if ctx.needs_input_grad[2]:
                    beta = 0 if of_queries is None else 1
                    before = nothing if of_queries is None else of_queries
                    of_queries = torch.baddbmm(before, of_logits, keys, beta=beta, alpha=ctx.scale)
            found += [None if x is None else x.unflatten(0, ctx.shape) for x in (of_keys, of_values)]
            found.append(of_mask)
        return None, None, None if of_queries is None else of_queries.unflatten(0, ctx.shape), *found


def _triples(tensors: Sequence[Any]) -> list[Any]:
    return [tensors[i : i + 3] for i in range(0, len(tensors), 3)]
