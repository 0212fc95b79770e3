"""Small pictures drawn from numbers: shapes that point somewhere on a soft background, and their masks."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

SIDE = 64
"""Height and width of a picture, in pixels."""
_FINE = 8
"""Shapes are drawn this many times as large and averaged down, which smooths their edges."""

Point = tuple[float, float]
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Sprite:
    """One shape in a picture.

    Attributes:
        shape: A name of `SHAPES`.
        x: Pixels from the left border to its centre.
        y: Pixels from the upper border to its centre.
        radius: Pixels from its centre to its outermost point.
        angle: Degrees to which it points, counted from the right against the clock.
        colour: Red, green and blue, 0 to 255.
    """

    shape: str
    x: float
    y: float
    radius: float
    angle: float
    colour: Colour


@dataclass(frozen=True)
class Stroke:
    """A faint line behind the shapes, from one point to another, in pixels."""

    ends: tuple[Point, Point]
    width: float
    colour: Colour


@dataclass(frozen=True)
class Scene:
    """Content of a picture.

    Attributes:
        sprites: The shapes; later ones lie above earlier ones.
        background: Nine colours, row by row, between which the background flows.
        clutter: Lines between background and shapes.
    """

    sprites: tuple[Sprite, ...]
    background: tuple[Colour, ...]
    clutter: tuple[Stroke, ...] = ()

    def image(self) -> Image.Image:
        """The picture, in RGB."""
        corners = Image.new("RGB", (3, 3))
        corners.putdata(self.background)
        image = corners.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        for stroke in self.clutter:
            image.paste(stroke.colour, (0, 0), _line(stroke))
        for sprite in self.sprites:
            image.paste(sprite.colour, (0, 0), _outline(sprite))
        return image

    def mask(self) -> Image.Image:
        """For each pixel the number of the shape that covers at least half of it, from 1; 0 is background."""
        mask = Image.new("L", (SIDE, SIDE))
        for sprite in self.sprites:
            covered = _outline(sprite).point(lambda share: 255 if share >= 128 else 0)
            mask.paste(SHAPES.index(sprite.shape) + 1, (0, 0), covered)
        return mask


def _outline(sprite: Sprite) -> Image.Image:
    """Coverage of each pixel by a sprite, 0 to 255."""
    turn = math.radians(sprite.angle)
    cos, sin = sprite.radius * math.cos(turn), sprite.radius * math.sin(turn)
    # In pictures y grows downwards.
    points = [(sprite.x + cos * x - sin * y, sprite.y - sin * x - cos * y) for x, y in _POINTS[sprite.shape]()]
    fine = _blank()
    ImageDraw.Draw(fine).polygon(_grid(points), fill=255)
    return fine.reduce(_FINE)


def _line(stroke: Stroke) -> Image.Image:
    fine = _blank()
    ImageDraw.Draw(fine).line(_grid(stroke.ends), fill=255, width=round(stroke.width * _FINE))
    return fine.reduce(_FINE)


def _blank() -> Image.Image:
    return Image.new("L", (SIDE * _FINE, SIDE * _FINE))


def _grid(points: Sequence[Point]) -> list[tuple[int, int]]:
    # Whole numbers, because releases of Pillow may round differently.
    return [(round(x * _FINE), round(y * _FINE)) for x, y in points]


# --- the shapes: outlines within the unit circle that point to the right and are their own mirror image ----------


def _arc(centre: float, radius: float, start: float, stop: float, count: int = 48) -> list[Point]:
    """Points of a circle around (``centre``, 0), by angles in degrees."""
    angles = [math.radians(start + (stop - start) * k / count) for k in range(count + 1)]
    return [(centre + radius * math.cos(angle), radius * math.sin(angle)) for angle in angles]


def _arrow() -> list[Point]:
    upper = [(1.0, 0.0), (0.1, 0.85), (0.1, 0.34), (-0.92, 0.34)]
    return upper + [(x, -y) for x, y in reversed(upper[1:])]


def _crescent() -> list[Point]:
    # Both circles meet where the horns end.
    return _arc(-0.05, 0.95, 48, 312) + _arc(0.48, 0.715, 261, 99)


def _drop() -> list[Point]:
    return [(1.0, 0.0), *_arc(-0.36, 0.64, 62, 298)]


def _heart() -> list[Point]:
    def point(t: float) -> Point:
        across = 16 * math.sin(t) ** 3
        along = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        return (-along - 1.5) / 16, across / 17

    return [point(2 * math.pi * k / 64) for k in range(64)]


def _house() -> list[Point]:
    return [(1.0, 0.0), (0.25, 0.62), (-0.78, 0.62), (-0.78, -0.62), (0.25, -0.62)]


def _pie() -> list[Point]:
    return [(-0.1, 0.0), *_arc(0.0, 0.95, 38, 322)]


_POINTS = {
    name: functools.cache(points)
    for name, points in {
        "arrow": _arrow,
        "crescent": _crescent,
        "drop": _drop,
        "heart": _heart,
        "house": _house,
        "pie": _pie,
    }.items()
}
SHAPES = tuple(_POINTS)
"""The names of the shapes; in a mask, each is its position here and 1."""
