"""Pictures of what benchmarks/speed.py measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours, which people with the common kinds of colour blindness can tell apart."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "*")

_AXES = {"prompts": "prompts a block", "image_size": "image size in pixels"}


def draw_speed(records: list[dict[str, Any]], out: Path) -> list[Path]:
    """Speed beside the reference and operations by prompts and by image size, as SVG files in ``out``.

    Of a backbone and a kind of pass, only eager float32 is drawn, at the image size or number of prompts that has most
    records; with fewer than two points there is no picture.
    """
    _use_svg()
    paths = []
    for by in _AXES:
        figures = [
            (kind, model, points)
            for kind in ("forward", "training")
            for model in ("tiny", "small", "base")
            if len(points := _points(records, kind, model, by)) > 0
        ]
        if not figures:
            continue
        figure, axes = _new_figure(2, len(figures), 8.0, 2.6 * len(figures))
        for k, (kind, model, points) in enumerate(figures):
            _panel(axes[2 * k], points, by, "speed_to_reference", f"ViT-{model.title()}, {kind}: speed")
            _panel(axes[2 * k + 1], points, by, "flops_to_reference", "operations")
        axes[0].legend(fontsize=7, frameon=False)
        path = out / f"speed-by-{by.replace('_', '-')}.svg"
        figure.savefig(path, metadata={"Date": None})
        paths.append(path)
    return paths


def _points(records: list[dict[str, Any]], kind: str, model: str, by: str) -> dict[str, list[dict[str, Any]]]:
    """By subject, its records in the order of what is varied; empty if there is nothing to vary."""
    other = next(name for name in _AXES if name != by)
    shown = (kind, model, "fp32", False, "classifier")
    same = [r for r in records if tuple(r[n] for n in ("kind", "model", "dtype", "compiled", "head")) == shown]
    values = [r[other] for r in same]
    if not values:
        return {}
    common = max(sorted(set(values)), key=values.count)
    lines: dict[str, list[dict[str, Any]]] = {}
    for record in sorted((r for r in same if r[other] == common), key=lambda r: float(r[by])):
        lines.setdefault(record["subject"], []).append(record)
    return {subject: line for subject, line in lines.items() if len(line) > 1}


def _panel(axes: Any, points: dict[str, list[dict[str, Any]]], by: str, what: str, title: str) -> None:
    for k, (subject, line) in enumerate(points.items()):
        axes.plot(
            [r[by] for r in line],
            [r[what] for r in line],
            color=COLOURS[k % len(COLOURS)],
            marker=MARKERS[k % len(MARKERS)],
            markersize=4,
            linewidth=1.2,
            label=subject,
        )
    axes.axhline(1.0, color="grey", linewidth=0.8)
    axes.set_title(f"{title} beside the reference", fontsize=9)
    axes.set_xlabel(_AXES[by])


def _use_svg() -> None:
    """Draw into files; text stays text, and the same numbers give the same file."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams.update(
        {"svg.fonttype": "none", "svg.hashsalt": "trimtab", "font.size": 9, "font.family": "sans-serif"}
    )


def _new_figure(columns: int, rows: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels; the panels row by row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for one in axes.flat:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(alpha=0.25, linewidth=0.6)
    return figure, list(axes.flat)
