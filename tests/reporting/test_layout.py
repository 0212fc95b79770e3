"""Which prompts of a block are whose, and what is seen of them."""

from __future__ import annotations

import pytest
import torch

from trimtab.methods.base import PromptSet
from trimtab.reporting.attention import Attention
from trimtab.reporting.layout import Layout


def attention(*counts: int) -> Attention:
    """Three images, 2x2 patches; the j-th prompt of a block gets j + 1 hundredths."""
    rows = [torch.arange(1, count + 1) / 100 for count in counts]
    return Attention(
        torch.full((3, 2, 2), 0.25),
        tuple(row.expand(3, -1) for row in rows),
        tuple(row.expand(3, 2, 2, -1).clone() for row in rows),
    )


def test_shares_are_the_sums_of_a_sets_prompts() -> None:
    sets, seen = [PromptSet("first", 2, (0,)), PromptSet("both", 1, (0, 1))], attention(3, 1)
    names, rows = zip(*Layout(sets, seen).shares(seen.pooled), strict=True)
    assert names == ("first", "both", "all prompts")
    assert rows[0] == pytest.approx([0.03, None])
    assert rows[1] == pytest.approx([0.03, 0.01])
    assert rows[2] == pytest.approx([0.06, 0.01])


def test_maps_are_of_the_prompts_that_tell_patches_apart() -> None:
    sets = [PromptSet("first", 2, (0,)), PromptSet("both", 1, (0, 1))]
    seen = attention(3, 1)
    seen.patches[0][:, 0, 0, 1] = 0.9
    seen.patches[1][:, 1, 1, 0] = 0.5
    assert Layout(sets, seen).maps() == [("first, prompt 2", 0, 1), ("both, prompt 1", 1, 0)]


def test_one_set_has_maps_of_two_blocks() -> None:
    seen = attention(2, 2)
    seen.patches[0][:, 0, 0, 1] = 0.9
    assert [(name, i) for name, i, _ in Layout([PromptSet("p", 2, (0, 1))], seen).maps()] == [
        ("prompt 2", 0),
        ("prompt 1", 1),
    ]


def test_prompts_that_no_method_tells_of_are_shown_all_the_same() -> None:
    seen = attention(0, 2, 2)
    layout = Layout([PromptSet("wrong", 5, (0,))], seen)
    assert [(one.name, one.enters) for one in layout.sets] == [("2 prompts", (1, 2))]
    assert layout.shares(seen.pooled)[0][1] == pytest.approx([None, 0.03, 0.03])
