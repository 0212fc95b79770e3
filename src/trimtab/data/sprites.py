"""Sprites: drawn pictures in which one thing at a time is asked for, in the manner of VTAB's structured tasks."""

from __future__ import annotations

import colorsys
import functools
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from PIL import Image

from trimtab.data.images import BuiltInSet, drawn, randomness
from trimtab.data.shapes import SHAPES, SIDE, Colour, Scene, Sprite, Stroke

_HUES = {
    "blue": 225,
    "cyan": 180,
    "green": 120,
    "orange": 28,
    "pink": 325,
    "purple": 272,
    "red": 0,
    "yellow": 54,
}
"""Colours in degrees of hue; pictures stray from them by up to 6."""
_GRID = 4
"""Rows and columns that positions are told by."""
_MARGIN = 13.0
"""How near to the border a lone sprite's centre comes, in pixels; also its largest radius."""

FACTORS: Mapping[str, tuple[str, ...]] = {
    "colour": tuple(_HUES),
    "count": tuple("123456"),
    "middle": tuple(_HUES),
    "orientation": tuple(f"{45 * k:03}" for k in range(8)),
    "position": tuple(f"row{row}-column{column}" for row in range(1, _GRID + 1) for column in range(1, _GRID + 1)),
    "shape": SHAPES,
}
"""What can be asked for, each with its classes."""


@dataclass(frozen=True)
class Sprites(BuiltInSet):
    """Pictures of 64x64 pixels with drawn shapes, labelled by one of the factors they are made from.

    ``shape``, ``position``, ``orientation`` and ``colour`` ask four questions about the same pictures, of one
    sprite each. ``count`` has its own, of one to six sprites, and so has ``middle``, which asks for the colour of the
    sprite in the middle, with three to five others around it. Whatever is not asked for varies freely: also size,
    background, and up to four faint lines behind the sprites. In every split each factor's classes are equally
    frequent (to one picture) and independent of the other factors'.

    Masks tell the shapes apart: in a mask, a shape is its position in ``SHAPES`` and 1.

    Labels and what is in a picture are the same on every machine, for they come from SHA-256 and Python's
    promised random numbers. So are the pixels under one release of Pillow; others may round an edge otherwise.

    Attributes:
        factor: What is asked for: a name of `FACTORS`.
        seed: Which pictures.
        clutter: Whether there are lines behind the sprites.

    References:
        | A Large-scale Study of Representation Learning with the Visual Task Adaptation Benchmark
          (Zhai et al., 2019), its structured tasks (dSprites, CLEVR); pictures and classes here are our own
        | https://arxiv.org/abs/1910.04867
    """

    factor: str
    seed: int = 0
    clutter: bool = True
    sizes: ClassVar[Mapping[str, int]] = {"train": 800, "val": 200, "test": 800}

    @property
    def name(self) -> str:
        """``sprites/`` and the factor."""
        return f"sprites/{self.factor}"

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes of the factor."""
        return FACTORS[self.factor]

    def labels(self, split: str) -> tuple[str, ...]:
        """The class of every picture of a split."""
        return tuple(self.classes[value] for value in _values(self.factor, self.seed, split))

    def image(self, split: str, number: int) -> Image.Image:
        """One picture, in RGB."""
        return self.scene(split, number).image()

    @property
    def mask_classes(self) -> tuple[str, ...]:
        """The background, then the shapes."""
        return ("background", *SHAPES)

    def mask(self, split: str, number: int) -> Image.Image:
        """Its mask: 0 where the background is, else the shape's position in ``SHAPES`` and 1."""
        return self.scene(split, number).mask()

    def scene(self, split: str, number: int) -> Scene:
        """Return the content of a picture, in numbers."""
        alone = self.factor not in ("count", "middle")
        # Those of lone sprites share their pictures.
        draw = randomness("sprites", "alone" if alone else self.factor, self.seed, split, number)

        def value(factor: str) -> str:
            return FACTORS[factor][_values(factor, self.seed, split)[number]]

        if alone:
            sprites: tuple[Sprite, ...] = (_lone(draw, *map(value, ("shape", "position", "orientation", "colour"))),)
        elif self.factor == "middle":
            sprites = _several(draw, 4 + int(draw.random() * 3), value("middle"))
        else:
            sprites = _several(draw, int(value("count")))
        base = _background(draw, [sprite.colour for sprite in sprites])
        background = tuple(_shade(base, _between(draw, -0.1, 0.1)) for _ in range(9))
        strokes = tuple(_stroke(draw, base) for _ in range(int(draw.random() * 5)))
        return Scene(sprites, background, strokes if self.clutter else ())


@functools.cache
def _values(factor: str, seed: int, split: str) -> tuple[int, ...]:
    """For each picture of a split the position of its class: all equally often, in random order."""
    size, classes = Sprites.sizes[split], len(FACTORS[factor])
    order = sorted(range(size), key=lambda number: drawn("sprites", factor, seed, split, number))
    values = [0] * size
    for turn, number in enumerate(order):
        values[number] = turn % classes
    return tuple(values)


def _lone(draw: random.Random, shape: str, position: str, orientation: str, colour: str) -> Sprite:
    cell = FACTORS["position"].index(position)
    pitch = (SIDE - 2 * _MARGIN) / _GRID

    def centre(line: int) -> float:
        # Not quite to the next line, so that no picture lies on a border.
        return _MARGIN + pitch * (line + 0.5 + _between(draw, -0.4, 0.4))

    return Sprite(
        shape=shape,
        x=centre(cell % _GRID),
        y=centre(cell // _GRID),
        radius=_between(draw, 8, _MARGIN),
        angle=int(orientation) + _between(draw, -12, 12),
        colour=_colour(draw, colour),
    )


def _several(draw: random.Random, count: int, middle: str | None = None) -> tuple[Sprite, ...]:
    """Sprites of any shape, colour and direction in some of nine fields, so that none covers another.

    With ``middle``, the first is in the middle and has this colour.
    """
    fields = sorted(range(9), key=lambda field: (draw.random(), field))
    if middle is not None:
        fields.remove(4)
        fields.insert(0, 4)
    sprites: list[Sprite] = []
    for field in fields[:count]:
        radius = _between(draw, 5.5, 9)
        free = SIDE / 6 - radius
        x, y = (SIDE / 3 * (line + 0.5) + _between(draw, -free, free) for line in (field % 3, field // 3))
        shape, colour = _pick(draw, SHAPES), _pick(draw, tuple(_HUES))
        colour = middle if middle is not None and not sprites else colour
        sprites.append(Sprite(shape, x, y, radius, _between(draw, 0, 360), _colour(draw, colour)))
    return tuple(sprites)


def _background(draw: random.Random, colours: Sequence[Colour]) -> Colour:
    """Of a few dull colours the one that is farthest from those of the sprites."""
    offered = [_rgb(draw.random(), _between(draw, 0, 0.4), _between(draw, 0.12, 0.92)) for _ in range(6)]
    return max(offered, key=lambda ground: min(math.dist(ground, colour) for colour in colours))


def _stroke(draw: random.Random, base: Colour) -> Stroke:
    x, y, across, along = (_between(draw, 0, SIDE) for _ in range(4))
    # A change that can be seen, to either side.
    change = _between(draw, 0.1, 0.2) * (1 if draw.random() < 0.5 else -1)
    return Stroke(((x, y), (across, along)), _between(draw, 0.6, 2.0), _shade(base, change))


def _colour(draw: random.Random, name: str) -> Colour:
    hue = _HUES[name] + _between(draw, -6, 6)
    return _rgb(hue / 360 % 1, _between(draw, 0.7, 1), _between(draw, 0.8, 1))


def _rgb(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _shade(colour: Colour, change: float) -> Colour:
    """A colour made lighter or darker by a share of white."""
    red, green, blue = (min(max(round(part + 255 * change), 0), 255) for part in colour)
    return red, green, blue


def _between(draw: random.Random, low: float, high: float) -> float:
    return low + (high - low) * draw.random()


def _pick(draw: random.Random, names: Sequence[str]) -> str:
    return names[int(draw.random() * len(names))]
