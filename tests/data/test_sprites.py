from __future__ import annotations

import colorsys
import hashlib
import itertools
import math

import numpy as np
import pytest

from trimtab.data import Sprites
from trimtab.data.shapes import SHAPES
from trimtab.data.sprites import FACTORS

MEANS = [[87.978, 75.265, 88.708], [42.279, 43.377, 47.132], [47.454, 61.839, 46.995]]

ALONE = [factor for factor in FACTORS if factor not in ("count", "middle")]

each_factor = pytest.mark.parametrize("factor", FACTORS)


@each_factor
def test_classes_are_balanced(factor: str) -> None:
    sprites = Sprites(factor)
    assert sprites.classes == tuple(sorted(sprites.classes))
    for split, size in sprites.sizes.items():
        labels = sprites.labels(split)
        counts = [labels.count(label) for label in sprites.classes]
        assert sum(counts) == size
        assert max(counts) - min(counts) <= 1


@each_factor
def test_labels_are_what_is_drawn(factor: str) -> None:
    sprites = Sprites(factor)
    for number, label in enumerate(sprites.labels("val")):
        drawn = sprites.scene("val", number).sprites
        first = drawn[0]
        if factor == "count":
            assert len(drawn) == int(label)
        elif factor == "shape":
            assert first.shape == label
        elif factor == "orientation":
            assert abs(first.angle - int(label)) <= 12
        elif factor == "position":
            column, row = int((first.x - 13) // 9.5) + 1, int((first.y - 13) // 9.5) + 1
            assert f"row{row}-column{column}" == label
        else:
            hue = 360 * colorsys.rgb_to_hsv(*(part / 255 for part in first.colour))[0]
            hues = {"red": 0, "orange": 28, "yellow": 54, "green": 120, "cyan": 180, "blue": 225}
            hues |= {"purple": 272, "pink": 325}
            assert min(hues, key=lambda name: abs((hue - hues[name] + 180) % 360 - 180)) == label


def test_others_around_the_middle_one_say_nothing_of_its_colour() -> None:
    shared, seen = 0, set()
    for number in range(800):
        first, *others = Sprites("middle").scene("train", number).sprites
        assert max(abs(first.x - 32), abs(first.y - 32)) < 64 / 6
        assert all(max(abs(one.x - 32), abs(one.y - 32)) > 64 / 6 for one in others)
        assert 3 <= len(others) <= 5
        seen.add(len(others))
        hue = colorsys.rgb_to_hsv(*first.colour)[0]
        apart = (abs((hue - colorsys.rgb_to_hsv(*one.colour)[0] + 0.5) % 1 - 0.5) for one in others)
        shared += sum(one < 13 / 360 for one in apart)
    assert seen == {3, 4, 5}
    # An eighth of four others each; within four standard deviations.
    assert abs(shared - 400) < 4 * 20


def test_factors_are_independent() -> None:
    """Chi-square of every pair of factors, against a bound that one in a million would pass by chance."""
    from scipy.stats import chi2_contingency

    for one, other in itertools.combinations(ALONE, 2):
        table = np.zeros((len(FACTORS[one]), len(FACTORS[other])))
        for a, b in zip(Sprites(one).labels("train"), Sprites(other).labels("train"), strict=True):
            table[FACTORS[one].index(a), FACTORS[other].index(b)] += 1
        assert chi2_contingency(table).pvalue > 1e-6


def test_lone_sprites_share_their_pictures() -> None:
    scenes = {Sprites(factor).scene("test", 5) for factor in ALONE}
    assert len(scenes) == 1
    assert len(next(iter(scenes)).sprites) == 1
    assert not scenes & {Sprites(factor).scene("test", 5) for factor in ("count", "middle")}


def test_splits_are_disjoint() -> None:
    seen = [
        Sprites("count", seed=seed).image(split, number).tobytes()
        for seed in (0, 1)
        for split in ("train", "val", "test")
        for number in range(40)
    ]
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("factor", ["shape", "count", "middle"])
def test_sprites_are_whole_and_apart(factor: str) -> None:
    for number in range(200):
        drawn = Sprites(factor).scene("val", number).sprites
        for sprite in drawn:
            assert sprite.radius <= min(sprite.x, sprite.y, 64 - sprite.x, 64 - sprite.y)
        for one, other in itertools.combinations(drawn, 2):
            assert math.dist((one.x, one.y), (other.x, other.y)) >= one.radius + other.radius


@pytest.mark.parametrize("factor", ["shape", "count", "middle"])
def test_masks_agree_with_pictures(factor: str) -> None:
    sprites = Sprites(factor, clutter=False)
    for number in range(30):
        scene, image, mask = sprites.scene("val", number), sprites.images("val")[number], None
        pixels, mask = np.asarray(image.open()).astype(float), np.asarray(image.mask())
        assert mask.shape == pixels.shape[:2]
        assert set(np.unique(mask)) == {0, *(SHAPES.index(sprite.shape) + 1 for sprite in scene.sprites)}
        for sprite in scene.sprites:
            y, x = np.indices(mask.shape) + 0.5
            own = (np.hypot(x - sprite.x, y - sprite.y) <= sprite.radius + 1) & (mask > 0)
            assert own.sum() > 15
            # Whatever is masked looks more like the sprite than the background, and whatever is not does not.
            assert np.abs(pixels[own] - sprite.colour).max(-1).mean() < 30
        empty = np.asarray(Sprites(factor, clutter=False).scene("val", number).__class__((), scene.background).image())
        assert np.abs(pixels - empty).sum(-1)[mask > 0].min() > 40


def test_sprites_can_be_seen() -> None:
    for number in range(200):
        scene = Sprites("count").scene("train", number)
        for sprite in scene.sprites:
            assert all(math.dist(sprite.colour, ground) > 40 for ground in scene.background)


def test_clutter_can_be_left_out() -> None:
    with_lines = [Sprites("shape").scene("train", number) for number in range(50)]
    assert {len(scene.clutter) for scene in with_lines} == {0, 1, 2, 3, 4}
    without = [Sprites("shape", clutter=False).scene("train", number) for number in range(50)]
    assert [scene.sprites for scene in without] == [scene.sprites for scene in with_lines]
    assert not any(scene.clutter for scene in without)


def test_what_is_in_a_picture_is_the_same_on_every_machine() -> None:
    text = "\n".join(
        f"{sprite.shape} {sprite.x:.6f} {sprite.y:.6f} {sprite.radius:.6f} {sprite.angle:.6f} {sprite.colour}"
        for factor in ("shape", "count")
        for split in ("train", "val", "test")
        for number in range(20)
        for sprite in Sprites(factor).scene(split, number).sprites
    )
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "21e60d47cadf4d52"


def test_pictures_are_what_they_were() -> None:
    """Means of pixels, so that a release of Pillow may round an edge otherwise, but not draw something else."""
    pictures = [np.asarray(Sprites("count").image("test", number)).mean((0, 1)) for number in range(3)]
    assert np.abs(np.array(pictures) - MEANS).max() < 0.5
