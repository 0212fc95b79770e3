"""Style of pictures: sizes for a phone's width, colours for light and dark, text that stays text."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import io
import re
import unicodedata
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 3.7
"""Inches of a picture that a phone shows whole."""
INK, PAPER = "#010203", "#fdfcfb"
"""Stand-ins for what depends on light or dark."""
SERIES = ("#010211", "#010212", "#010213", "#010214", "#010215", "#010216", "#010217")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
STYLES = ("-", "--", "-.")
# Okabe and Ito's hues, which people with the common kinds of colour blindness can tell apart, each darkened or
# lightened until it stands out from the paper.
_LIGHT = ("#0072b2", "#c24e00", "#007d5a", "#a8487e", "#8a6100", "#2b7fb0", "#24292f")
_DARK = ("#56b4e9", "#ff9d5c", "#2fc79a", "#e39fc4", "#e6b24a", "#9bd2f2", "#e6e9ee")
_COLOURS = {
    INK: ("--ink", "#24292f", "#e6e9ee"),
    PAPER: ("--paper", "#ffffff", "#1b1f27"),
    **{mark: (f"--s{k}", _LIGHT[k], _DARK[k]) for k, mark in enumerate(SERIES)},
}


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A picture for the page."""

    uri: str
    """``data:`` and the picture itself."""
    width: int
    """In CSS pixels."""
    height: int
    alt: str
    """The same in words."""

    @property
    def svg(self) -> str:
        """The picture as the text of an SVG file."""
        return base64.b64decode(self.uri.partition(",")[2]).decode()

    @property
    def wide(self) -> bool:
        """Whether a phone should scroll over it."""
        return self.width > 400


@contextlib.contextmanager
def looks() -> Iterator[None]:
    """The style of all pictures, while they are drawn."""
    import matplotlib as mpl

    style: dict[Any, Any] = {
        # Text stays text, is never read as formulas, and the same numbers give the same file.
        "svg.fonttype": "none",
        "svg.hashsalt": "trimtab",
        "text.parse_math": False,
        "font.size": 9,
        "font.family": "sans-serif",
        "axes.titlesize": 9,
        "axes.facecolor": "none",
        "figure.facecolor": "none",
        "legend.frameon": False,
        **dict.fromkeys(
            ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), INK
        ),
    }
    with mpl.rc_context(style), warnings.catch_warnings():
        # The reader's fonts count, not those that matplotlib measures with.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def figure(height: float, width: float = WIDTH) -> tuple[Figure, Axes]:
    """One plain panel, in inches."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), layout="constrained")
    axes = made.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return made, axes


def finished(made: Figure, alt: str) -> Drawing:
    """A figure as a self-contained SVG that follows the reader's choice of light or dark."""
    buffer = io.StringIO()
    made.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    svg = buffer.getvalue()
    for mark, (name, _, _) in _COLOURS.items():
        svg = svg.replace(mark, f"var({name})")
    light, dark = (";".join(f"{entry[0]}:{entry[k]}" for entry in _COLOURS.values()) for k in (1, 2))
    own = f"svg{{{light}}}@media (prefers-color-scheme:dark){{svg{{{dark}}}}}"
    svg = svg.replace('<style type="text/css">', f'<style type="text/css">{own}', 1)
    svg = svg[svg.index("<svg") :]
    width, height = (float(re.search(rf'{side}="([\d.]+)pt"', svg)[1]) for side in ("width", "height"))  # type: ignore[index]
    uri = "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
    return Drawing(uri, round(width * 4 / 3), round(height * 4 / 3), shown(alt))


def shown(text: object, most: int | None = None) -> str:
    """A user's text as it can stand in a page or picture: no control characters, halves of pairs or directions.

    Args:
        text: What is to be shown.
        most: Letters to keep of a long one, with an ellipsis in the middle.
    """
    # Of categories Cc, Cf, Cs: they hide, or turn what stands beside them around.
    letters = (c if unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co", "Cn") else escaped(c) for c in str(text))
    whole = "".join(letters)
    if most is None or len(whole) <= most:
        return whole
    head = (most - 1) * 2 // 3
    return f"{whole[:head]}…{whole[len(whole) - (most - 1 - head) :]}"


def escaped(letter: str) -> str:
    """A letter as Python writes it."""
    return repr(letter)[1:-1] if len(repr(letter)) > 3 else f"\\u{ord(letter):04x}"
