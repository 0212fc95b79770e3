from __future__ import annotations

import math

import numpy as np
import pytest

from trimtab.data.shapes import SHAPES, SIDE, Scene, Sprite, Stroke

BLACK, RED, GREEN = (0, 0, 0), (255, 0, 0), (0, 255, 0)


def sprite(shape: str, *, x: float = 32, y: float = 32, angle: float = 0, radius: float = 20) -> Sprite:
    return Sprite(shape, x, y, radius, angle, RED)


def mask(*sprites: Sprite) -> np.ndarray:
    return np.asarray(Scene(sprites, (BLACK,) * 9).mask())


def red(*sprites: Sprite) -> np.ndarray:
    """How much of each pixel is covered, 0 to 255."""
    return np.asarray(Scene(sprites, (BLACK,) * 9).image())[..., 0]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_points_where_its_angle_says(shape: str) -> None:
    right = mask(sprite(shape)) > 0
    assert np.abs(np.argwhere(right).mean(0) - 31.5).max() < 9
    assert (right != right[::-1]).sum() <= 0.08 * right.sum(), "its own mirror image"
    assert (right != right[:, ::-1]).sum() > 0.16 * right.sum(), "but not from the other side"
    # Against the clock: what pointed right points up.
    up = mask(sprite(shape, angle=90)) > 0
    assert (up != np.rot90(right)).sum() <= 0.08 * right.sum()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_fills_its_radius_and_no_more(shape: str) -> None:
    covered = np.argwhere(red(sprite(shape, angle=33)) > 0) + 0.5 - SIDE / 2
    assert 0.8 * 20 < np.hypot(*covered.T).max() < 1.05 * 20 + 1
    area = red(sprite(shape, angle=33)).sum() / 255
    assert 0.25 < area / (math.pi * 20**2) < 0.95


def test_shapes_differ_in_every_direction() -> None:
    for angle in range(0, 360, 45):
        outlines = [mask(sprite(shape, angle=angle)) > 0 for shape in SHAPES]
        for one in range(len(SHAPES)):
            for other in range(one):
                both, either = outlines[one] & outlines[other], outlines[one] | outlines[other]
                assert both.sum() / either.sum() < 0.85, (SHAPES[one], SHAPES[other])


def test_edges_are_smooth() -> None:
    covered = red(sprite("drop", x=30.3, y=33.4))
    assert len(np.unique(covered)) > 20


def test_a_mask_is_what_is_covered_by_half() -> None:
    for number, shape in enumerate(SHAPES, start=1):
        covered = red(sprite(shape, x=20, y=41, angle=70))
        assert np.array_equal(mask(sprite(shape, x=20, y=41, angle=70)), np.where(covered >= 128, number, 0))


def test_later_sprites_lie_above() -> None:
    found = mask(sprite("arrow"), sprite("pie"))
    below, above = mask(sprite("arrow")), mask(sprite("pie"))
    assert np.array_equal(found, np.where(above > 0, above, below))


def test_backgrounds_flow_and_lines_lie_behind() -> None:
    grounds = tuple((20 * k, 0, 200 - 20 * k) for k in range(9))
    line = Stroke(((0, 32), (64, 32)), 2, GREEN)
    plain = np.asarray(Scene((), grounds).image()).astype(int)
    assert np.abs(np.diff(plain, axis=1)).max() < 16
    assert plain[0, 0, 0] < 20 < 140 < plain[-1, -1, 0]
    lined = np.asarray(Scene((sprite("house"),), grounds, (line,)).image())
    assert tuple(lined[32, 3]) == GREEN
    assert tuple(lined[32, 32]) == RED
