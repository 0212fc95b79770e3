"""Prompts as they enter a block."""

from __future__ import annotations

import pytest
import torch

from tests.families import images_for, shared_backbone
from trimtab.methods.prompts import dropped
from trimtab.noise import Noise


@pytest.mark.parametrize("shape", [(50, 48), (1, 50, 48), (8, 50, 48)])
def test_dropout_zeroes_its_share_and_scales_the_rest(shape: tuple[int, ...]) -> None:
    backbone = shared_backbone("class-token")
    left = dropped(torch.ones(shape), 0.3, backbone.embed(images_for(backbone, 8)))
    assert left.shape == (8, 50, 48)
    assert (left == 0).float().mean().item() == pytest.approx(0.3, abs=0.02)
    assert torch.allclose(left[left != 0], torch.tensor(1 / 0.7))
    assert not torch.equal(left[0], left[1])


def test_without_a_rate_nothing_is_drawn() -> None:
    backbone, prompts = shared_backbone("class-token"), torch.ones(3, 48)
    state = torch.get_rng_state()
    assert dropped(prompts, 0.0, backbone.embed(images_for(backbone))) is prompts
    assert torch.equal(torch.get_rng_state(), state)


def test_the_seed_decides() -> None:
    backbone, prompts = shared_backbone("class-token"), torch.ones(3, 48)
    one, again, other = (
        dropped(prompts, 0.5, backbone.embed(images_for(backbone), noise=Noise(seed, total=2))) for seed in (1, 1, 2)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
