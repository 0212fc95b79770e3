"""Random numbers that belong to images."""

from __future__ import annotations

import pytest
import torch

from trimtab.noise import Noise, drop


@pytest.mark.parametrize("sizes", [(6,), (3, 3), (1, 5), (2, 1, 3)], ids=str)
def test_parts_draw_what_the_whole_batch_draws(sizes: tuple[int, ...]) -> None:
    whole = Noise(1, total=6).per_image(6, 4, 2, like=torch.zeros(1))
    first, parts = 0, []
    for size in sizes:
        parts.append(Noise(1, first=first, total=6).per_image(size, 4, 2, like=torch.zeros(1)))
        first += size
    assert torch.equal(torch.cat(parts), whole)


def test_shared_draws_are_the_same_in_every_part() -> None:
    draws = [Noise(1, first=first, total=6).shared(3, like=torch.zeros(1)) for first in (0, 2, 5)]
    assert torch.equal(draws[0], draws[1])
    assert torch.equal(draws[0], draws[2])


def test_second_draws_agree_between_parts_too() -> None:
    noises = [Noise(1, first=first, total=4) for first in (0, 2)]
    for noise in noises:
        noise.per_image(2, 7, like=torch.zeros(1))
    draws = [noise.shared(3, like=torch.zeros(1)) for noise in noises]
    assert torch.equal(draws[0], draws[1])


def test_images_draw_differently() -> None:
    draws = Noise(1, total=2).per_image(2, 50, like=torch.zeros(1))
    assert not torch.equal(draws[0], draws[1])


def test_draws_follow_the_seed() -> None:
    draws = [Noise(seed, total=2).per_image(2, 5, like=torch.zeros(1)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_seeded_draws_leave_torchs_generator_alone() -> None:
    before = torch.get_rng_state()
    Noise(1, total=2).per_image(2, 5, like=torch.zeros(1))
    assert torch.equal(torch.get_rng_state(), before)


def test_unseeded_draws_come_from_torchs_generator() -> None:
    draws = []
    for _ in range(2):
        torch.manual_seed(3)
        noise = Noise()
        draws.append((noise.per_image(2, 5, like=torch.zeros(1)), noise.shared(5, like=torch.zeros(1))))
    assert torch.equal(draws[0][0], draws[1][0])
    assert torch.equal(draws[0][1], draws[1][1])


@pytest.mark.parametrize("seed", [None, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_are_uniform_in_the_type_asked_for(seed: int | None, dtype: torch.dtype) -> None:
    draws = Noise(seed, total=100).per_image(100, 50, like=torch.zeros(1, dtype=dtype))
    assert draws.dtype == dtype
    assert draws.min() >= 0
    assert draws.max() < 1
    assert draws.mean().item() == pytest.approx(0.5, abs=0.02)


def test_drop_zeroes_below_the_rate_and_scales_the_rest() -> None:
    uniform = torch.tensor([0.0, 0.19, 0.2, 0.9])
    expected = torch.tensor([0.0, 0.0, 3.75, 5.0])
    torch.testing.assert_close(drop(torch.tensor([1.0, 2.0, 3.0, 4.0]), 0.2, uniform), expected)


def test_drop_broadcasts_prompts_over_images() -> None:
    assert drop(torch.ones(1, 3, 4), 0.5, torch.rand(2, 3, 4)).shape == (2, 3, 4)


def test_drop_keeps_the_type() -> None:
    assert drop(torch.ones(3, dtype=torch.bfloat16), 0.5, torch.rand(3)).dtype == torch.bfloat16
