"""Keys and values that are joined."""

from __future__ import annotations

import torch

from trimtab.stream import AttentionInputs, KeysValues, softmax_attention


def _pair(batch: int, count: int, dtype: torch.dtype) -> KeysValues:
    noise = torch.Generator().manual_seed(count)
    keys, values = torch.randn(2, batch, 2, count, 4, generator=noise).to(dtype)
    return KeysValues(keys, values)


def test_stored_float32_is_joined_in_the_precision_of_the_images() -> None:
    own, stored = _pair(3, 5, torch.bfloat16), _pair(1, 2, torch.float32)
    joined = KeysValues.join([own, stored])
    assert joined.keys.dtype == joined.values.dtype == torch.bfloat16
    assert torch.equal(joined.keys[:, :, :5], own.keys)
    assert torch.equal(joined.values[:, :, 5:], stored.values.bfloat16().expand(3, -1, -1, -1))


def test_what_is_learned_gets_its_gradient_through_another_precision() -> None:
    learned = _pair(1, 2, torch.float32)
    learned.keys.requires_grad_()
    own = _pair(3, 5, torch.bfloat16)
    queries = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    seen = AttentionInputs(queries, own, learned, num_tokens=5, num_queries=4, scale=0.5)
    softmax_attention(seen).float().sum().backward()  # type: ignore[no-untyped-call]
    assert learned.keys.grad is not None
    assert learned.keys.grad.dtype == torch.float32
    assert learned.keys.grad.abs().sum() > 0
