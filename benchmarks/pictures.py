"""Pictures of the comparison and the studies."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.bench.results import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours, which people with the common kinds of colour blindness can tell apart."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "*")
_STYLES = ("-", "--", "-.", ":")


def draw(summary: Record, out: Path) -> list[Path]:
    """The pictures of a study, as SVG files in ``out``."""
    use_svg()
    name = summary["study"]
    if name == "methods":
        figures = {"methods": _tradeoff(summary), "methods-sets": _tradeoff_of_sets(summary)}
    elif any(row.get("panel") for row in summary["rows"]):
        figures = {name: _curves(summary)}
    else:
        figures = {name: _bars(summary)}
    paths = []
    for stem, figure in figures.items():
        path = out / f"{stem}.svg"
        figure.savefig(path, metadata={"Date": None})
        paths.append(path)
    return paths


def use_svg() -> None:
    """Draw into files; text stays text, and the same numbers give the same file."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams.update(
        {"svg.fonttype": "none", "svg.hashsalt": "trimtab", "font.size": 9, "font.family": "sans-serif"}
    )


def new_figure(columns: int, rows: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels; the panels row by row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for one in axes.flat:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(alpha=0.25, linewidth=0.6)
    return figure, list(axes.flat)


def _looks(summary: Record) -> dict[str, dict[str, Any]]:
    """Colour and marker of every row, the same in all pictures; a colour comes back with another marker."""
    names = [row["name"] for row in summary["rows"]]
    return {
        name: {"color": COLOURS[k % len(COLOURS)], "marker": MARKERS[k % len(MARKERS)]} for k, name in enumerate(names)
    }


def _tradeoff(summary: Record) -> Figure:
    figure, (axes,) = new_figure(1, 1, 7.0, 4.6)
    points = []
    for row in summary["rows"]:
        if row["mean"] is None or not row["trainable"]:
            continue
        x, y, half = row["trainable"], 100 * row["mean"], 100 * (row["half"] or 0.0)
        look = _looks(summary)[row["name"]]
        axes.errorbar(x, y, yerr=half or None, capsize=3, markersize=7, elinewidth=1, linestyle="none", **look)
        points.append((x, y, row["name"], look["color"]))
    axes.set(
        xscale="log",
        xlabel="trainable parameters, the head's included (mean over the sets)",
        ylabel="test accuracy, %, mean over the sets",
        title=f"{len(summary['sets'])} sets, {summary['seeds']} seeds, 95 % t interval over seeds",
    )
    axes.margins(x=0.12, y=0.1)
    _label(figure, axes, points)
    return figure


def _tradeoff_of_sets(summary: Record) -> Figure:
    sets = summary["sets"]
    columns = min(2, len(sets))
    figure, axes = new_figure(columns, math.ceil(len(sets) / columns), 8.0, 3.3 * math.ceil(len(sets) / columns))
    looks = _looks(summary)
    for k, (one, ax) in enumerate(zip(sets, axes, strict=False)):
        points = []
        for row in summary["rows"]:
            cell = row["sets"].get(one)
            if cell is None or not cell["trainable"]:
                continue
            look = looks[row["name"]]
            seeds = [100 * seed["accuracy"] for seed in cell["seeds"]]
            ax.plot([cell["trainable"]] * len(seeds), seeds, ".", color=look["color"], alpha=0.45, markersize=4)
            ax.plot(cell["trainable"], 100 * cell["mean"], linestyle="none", markersize=6, **look)
            points.append((cell["trainable"], 100 * cell["mean"], row["name"], look["color"]))
        ax.set(xscale="log", title=one)
        ax.margins(x=0.15, y=0.12)
        if k % columns == 0:
            ax.set_ylabel("test accuracy, %")
        if k >= len(sets) - columns:
            ax.set_xlabel("trainable parameters, the head's included")
        _label(figure, ax, points)
    for ax in axes[len(sets) :]:
        ax.set_visible(False)
    figure.suptitle("Mean of the seeds; small dots are single seeds")
    return figure


def _label(figure: Figure, axes: Axes, points: list[tuple[float, float, str, str]]) -> None:
    """Write the names beside the points, each where it covers least."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.transforms import Bbox

    # The layout is known once it was drawn.
    FigureCanvasAgg(figure).draw()  # type: ignore[no-untyped-call]
    dots = [axes.transData.transform(point[:2]) for point in points]
    taken = [Bbox.from_extents(x - 5, y - 5, x + 5, y + 5) for x, y in dots]
    for x, y, name, colour in points:
        left, bottom = axes.transData.transform((x, y))
        best: tuple[float, Bbox, tuple[float, float]] | None = None
        width, height = 5.2 * len(name) * figure.dpi / 72, 9 * figure.dpi / 72
        for reach in (8, 16, 26):
            for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)):
                low = left + dx * reach - (width if dx < 0 else width / 2 if dx == 0 else 0)
                base = bottom + dy * reach - height / 2
                box = Bbox.from_bounds(low, base, width, height)
                covered = sum(_overlap(box, other) for other in taken)
                inside = _overlap(box, axes.bbox) / (width * height)
                cost = covered + (1 - inside) * width * height + reach
                if best is None or cost < best[0]:
                    best = (cost, box, (low - left, base - bottom))
        if best is None:
            continue
        taken.append(best[1])
        offset = (best[2][0] * 72 / figure.dpi, best[2][1] * 72 / figure.dpi)
        axes.annotate(name, (x, y), xytext=offset, textcoords="offset points", fontsize=8, color=colour)


def _overlap(one: Any, other: Any) -> float:
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return float(max(width, 0.0) * max(height, 0.0))


def _curves(summary: Record) -> Figure:
    """A panel an option, a thin line a set, and a thick line for their mean."""
    panels = list(dict.fromkeys(row["panel"] for row in summary["rows"] if row.get("panel")))
    columns = min(2, len(panels))
    figure, axes = new_figure(columns, math.ceil(len(panels) / columns), 8.0, 3.0 * math.ceil(len(panels) / columns))
    for panel, ax in zip(panels, axes, strict=False):
        rows = sorted((row for row in summary["rows"] if row.get("panel") == panel), key=lambda row: row["value"])
        for k, one in enumerate(summary["sets"]):
            line = [(x_of(row, one), 100 * row["sets"][one]["mean"]) for row in rows if one in row["sets"]]
            look: dict[str, Any] = {"color": COLOURS[k % len(COLOURS)], "linestyle": _STYLES[k % len(_STYLES)]}
            ax.plot(*zip(*line, strict=True), marker=".", linewidth=1, label=one, **look)
        whole = [row for row in rows if row["mean"] is not None]
        middle = [statistics.fmean(x_of(row, one) for one in summary["sets"]) for row in whole]
        ax.plot(middle, [100 * row["mean"] for row in whole], marker="o", linewidth=2.6, color="#444444", label="mean")
        found = panel == "threshold"
        ax.set_xlabel("hierarchies found (by the threshold)" if found else panel.replace("_", " "))
    for k, ax in enumerate(axes):
        ax.set_visible(k < len(panels))
        if k % columns == 0:
            ax.set_ylabel("validation accuracy, %")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    return figure


def x_of(row: Record, one: str) -> float:
    """Where a row stands: at its value, or for the threshold at the number of hierarchies that it led to."""
    if row["panel"] == "threshold":
        counts = [len((seed["method_config"] or {}).get("hierarchy") or ()) for seed in row["sets"][one]["seeds"]]
        if all(counts):
            return statistics.fmean(counts)
    return float(row["value"])


def _bars(summary: Record) -> Figure:
    """Mean and interval of every row, top to bottom, with the sets as dots."""
    rows = summary["rows"]
    figure, (axes,) = new_figure(1, 1, 7.0, 0.8 + 0.34 * len(rows))
    for k, row in enumerate(rows):
        for number, one in enumerate(summary["sets"]):
            if one in row["sets"]:
                dot: dict[str, Any] = {"color": COLOURS[number], "marker": MARKERS[number]}
                label = one if k == 0 else None
                axes.plot(100 * row["sets"][one]["mean"], k, markersize=4, linestyle="none", label=label, **dot)
        if row["mean"] is not None:
            half = 100 * row["half"] if row["half"] else None
            look: dict[str, Any] = {
                "fmt": "|",
                "color": "#444444",
                "markersize": 12,
                "markeredgewidth": 2,
                "capsize": 3,
            }
            axes.errorbar(100 * row["mean"], k, xerr=half, label="mean, 95 %" if k == 0 else None, **look)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("validation accuracy, %")
    figure.legend(loc="outside lower center", ncols=5, frameon=False)
    return figure
