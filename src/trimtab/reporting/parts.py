"""What a model says of images, as plain values: what the page shows, before it is a page."""

from __future__ import annotations

import dataclasses

from trimtab.reporting.figure import Drawing

Captioned = tuple[Drawing, str]
"""A picture with the line under it."""


@dataclasses.dataclass(frozen=True)
class Card:
    """Pictures of one image with what is said of it."""

    pictures: tuple[Captioned, ...]
    name: str
    verb: str = ""
    said: str = ""
    """What stands out."""
    aside: str = ""
    """A number beside it."""
    note: str = ""
    """The line under it."""
    kind: str = ""
    """``right`` or ``wrong`` where an answer is one of these; ``scene`` where pictures stand four in a row."""


@dataclasses.dataclass(frozen=True)
class Gallery:
    """Some images of one kind."""

    title: str
    text: str
    cards: tuple[Card, ...] = ()


@dataclasses.dataclass(frozen=True)
class Table:
    """A small table."""

    title: str
    columns: tuple[tuple[str, str], ...]
    """What each is called, and the class of its cells."""
    rows: tuple[tuple[str, ...], ...]


@dataclasses.dataclass(frozen=True)
class ModelFigures:
    """All that is shown of what one model says of images."""

    measured: str
    """What was looked at, in a sentence."""
    pictures: tuple[Captioned, ...]
    pairs: Table
    """What is confused."""
    galleries: tuple[Gallery, ...]
    legend: tuple[Captioned, ...] = ()
    """Colours of classes, with their names."""
    shares: Captioned | None = None
    """How much attention prompts get."""
