"""The pictures of a report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from trimtab.methods.base import BlockFigure, PromptSet
from trimtab.reporting.figure import INK, MARKERS, PAPER, SERIES, STYLES, WIDTH, Drawing, figure, finished, shown
from trimtab.reporting.runs import Run
from trimtab.reporting.words import percent

LARGEST_CONFUSION = 25
"""Classes of a confusion matrix that can still be read."""
_MOST_BARS = 40
"""Classes that have a row each."""


def losses(runs: Sequence[Run]) -> Drawing:
    """Training and validation loss, epoch by epoch."""
    made, axes = figure(2.6 + 0.17 * _legend_rows([run.name for run in runs]))
    for k, run in enumerate(runs):
        look = _look(k)
        train, val = _curve(run, "train_loss"), _curve(run, "val_loss")
        if len(runs) == 1:
            axes.plot(*train, **_dot(train), color=SERIES[1], linestyle="--", label="training")
            axes.plot(*val, **_dot(val), color=SERIES[0], label="validation")
        else:
            axes.plot(*train, color=look["color"], linewidth=1.0, alpha=0.8, linestyle=":")
            axes.plot(*val, **_dot(val), **look, label=shown(run.name, 24))
    _dress(axes, "epoch", "loss")
    if len(runs) > 1:
        axes.set_title("validation (dotted: training)")
    _legend(made, axes)
    ends = "; ".join(f"{run.name} {_last(run, 'train_loss')} and {_last(run, 'val_loss')}" for run in runs)
    return finished(made, f"Loss by epoch. Training and validation loss at the end: {ends}.")


def training_curve(runs: Sequence[Run]) -> Drawing | None:
    """The metric that chose the epoch, by epoch, with the one that was kept; nothing where it was not measured."""
    task = runs[0].task
    key, called = f"val_{task.monitor}", task.metric_labels[task.monitor]
    if not any(_curve(run, key)[0] for run in runs):
        return None
    made, axes = figure(2.6 + 0.17 * _legend_rows([run.name for run in runs]))
    for k, run in enumerate(runs):
        epochs, values = _curve(run, key, 100)
        look = _look(k)
        axes.plot(epochs, values, **look, label=shown(run.name, 24) if len(runs) > 1 else None)
        best = run.metrics.get("best_epoch")
        if best in epochs:
            marker = MARKERS[k % len(MARKERS)]
            axes.plot(best, values[epochs.index(best)], marker=marker, color=look["color"], markersize=7)
    _dress(axes, "epoch", f"validation {called}, %")
    axes.set_title("the mark is the epoch that was kept")
    _legend(made, axes)
    kept = "; ".join(f"{run.name} {percent(run.metrics.get(key))}" for run in runs)
    return finished(made, f"Validation {called} by epoch. Kept: {kept}.")


def tradeoff(points: Sequence[tuple[str, int, float, float | None]], what: str) -> Drawing:
    """A metric against trainable parameters.

    Args:
        points: Name, trainable parameters, the metric and its standard error if that is known, 0 to 1, of each run.
        what: Which metric.
    """
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    made, axes = figure(2.6 + 0.17 * _legend_rows([point[0] for point in points]))
    for k, (name, trained, value, error) in enumerate(points):
        axes.errorbar(
            trained,
            100 * value,
            yerr=None if error is None else 100 * error,
            color=SERIES[k % len(SERIES)],
            marker=MARKERS[(k + k // len(SERIES)) % len(MARKERS)],
            markersize=7,
            capsize=3,
            elinewidth=1,
            linestyle="none",
            label=shown(name, 32),
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.15, y=0.1)
    _dress(axes, "trainable parameters, the head's included", f"{what}, %")
    _legend(made, axes)
    told = "; ".join(f"{name} {trained:,} parameters, {percent(value)}" for name, trained, value, _ in points)
    return finished(made, f"{what[:1].upper()}{what[1:]} against trainable parameters: {told}.")


def between_blocks(found: BlockFigure) -> Drawing:
    """Draw a method's heat map of numbers between blocks, with groups of blocks boxed."""
    values = found.values.numpy().astype(float)
    depth, starts = values.shape[0], found.starts
    side = max(WIDTH, 0.7 + 0.2 * depth)
    made, axes = figure(side * 0.88, side)
    # Between stages of different width there is no angle, and what was not computed is 0.
    masked = np.ma.masked_equal(values, 0.0)
    heat = axes.pcolormesh(masked, cmap="cividis", vmax=1.0)
    for start, end in zip(starts, (*starts[1:], depth), strict=True):
        size = end - start
        for colour, width in (("black", 3.2), ("white", 1.6)):
            box = [start, start + size, start + size, start, start], [start, start, end, end, start]
            axes.plot(*box, color=colour, linewidth=width, solid_joinstyle="miter", clip_on=False)
    _blocks(axes, depth, both=True)
    axes.set_aspect("equal")
    axes.invert_yaxis()
    bar = made.colorbar(heat, ax=axes, shrink=0.8, pad=0.02)
    bar.set_label(found.label, labelpad=8)
    bar.outline.set_visible(False)
    groups = ", ".join(
        f"{start} to {end - 1}" if end - start > 1 else str(start)
        for start, end in zip(starts, (*starts[1:], depth), strict=True)
    )
    alt = f"{found.title} between blocks, {masked.min():.2f} to 1. {len(starts)} {found.groups}, of blocks {groups}."
    return finished(made, alt)


def entries(sets: Sequence[PromptSet], depth: int) -> Drawing:
    """Which prompt set is put in at which block, and which blocks it is carried on to."""
    made, axes = _of_blocks(len(sets), depth)
    for row, one in enumerate(sets):
        colour = SERIES[row % len(SERIES)]
        for i in one.carried:
            # From the block before.
            axes.plot([i - 0.5, i + 0.5], [row + 0.5, row + 0.5], color=colour, linewidth=2.2, zorder=2)
        rest = [i + 0.5 for i in one.carried if i not in one.enters]
        axes.plot(rest, [row + 0.5] * len(rest), "o", markersize=5, color=PAPER, markeredgecolor=colour, zorder=3)
        put = [i + 0.5 for i in one.enters]
        axes.plot(put, [row + 0.5] * len(put), "o", markersize=8, color=colour, zorder=4)
    axes.set_yticks([row + 0.5 for row in range(len(sets))], [_row(one) for one in sets])
    _blocks(axes, depth)
    axes.set_ylim(len(sets), 0)
    axes.set_xlim(0, depth)
    axes.tick_params(length=0)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_xticks(range(depth + 1), minor=True)
    axes.grid(which="minor", axis="x", alpha=0.15, linewidth=0.6)
    told = "; ".join(
        f"{one.name}, {one.count} prompts, put in at block {_ranges(one.enters)}"
        + (f", carried on to {_ranges(one.carried)}" if one.carried else "")
        for one in sets
    )
    return finished(made, f"Where prompts enter: {told}.")


def shares(names: Sequence[str], values: Sequence[Sequence[float | None]], whose: str) -> Drawing:
    """The part of the attention of some tokens that goes to each prompt set, block by block.

    Args:
        names: Of the sets, with a last one for all prompts if there are several.
        values: A row a set, an entry a block, 0 to 1; ``None`` where a block does not have it.
        whose: Which tokens, in words.
    """
    depth = len(values[0])
    made, axes = _of_blocks(len(values), depth, bar=True)
    table = np.ma.masked_invalid([[math.nan if v is None else 100 * v for v in row] for row in values])
    heat = axes.pcolormesh(table, cmap="viridis", vmin=0)
    axes.set_yticks([row + 0.5 for row in range(len(names))], [shown(name, 24) for name in names])
    _blocks(axes, depth)
    axes.set_ylim(len(values), 0)
    axes.tick_params(length=0)
    axes.spines[["left", "bottom"]].set_visible(False)
    bar = made.colorbar(heat, ax=axes, orientation="horizontal", shrink=0.9, aspect=30, pad=0.02)
    bar.set_label("% of the attention")
    bar.outline.set_visible(False)
    means = "; ".join(f"{name} {row.mean():.1f} %" for name, row in zip(names, table, strict=True))
    return finished(made, f"Part of the attention of {whose} that goes to prompts, mean over blocks: {means}.")


def confusion(counts: Tensor, labels: Sequence[str], what: str = "images") -> Drawing:
    """A row a class, a column what was said, each cell a part of its row.

    Args:
        counts: (C, C).
        labels: C names.
        what: What was counted; images are told by their number, others by their part of the row in per cent.
    """
    n = len(labels)
    side = max(WIDTH, 0.9 + 0.27 * n)
    made, axes = figure(side, side)
    table = counts.numpy()
    parts = table / np.maximum(table.sum(1, keepdims=True), 1)
    axes.pcolormesh(parts, cmap="cividis", vmin=0, vmax=1, edgecolors=PAPER, linewidth=0.4)
    told = table if what == "images" else (100 * parts).round().astype(int)
    for row, column in zip(*told.nonzero(), strict=True):
        colour = "black" if parts[row, column] > 0.55 else "white"
        size = 8 if n <= 12 and told.max() < 1000 else 6
        where: dict[str, Any] = {"ha": "center", "va": "center", "color": colour, "fontsize": size}
        axes.text(column + 0.5, row + 0.5, str(told[row, column]), **where)
    names = [shown(label, 14) for label in labels]
    ticks = [k + 0.5 for k in range(n)]
    axes.set_xticks(ticks, names, rotation=0 if max(map(len, names)) <= 2 else 90)
    axes.set_yticks(ticks, names)
    axes.invert_yaxis()
    axes.set_aspect("equal")
    axes.tick_params(length=0)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set(xlabel="what the model said", ylabel="what it was")
    right = int(counts.diagonal().sum())
    alt = f"Confusion matrix of {n} classes: {right} of {int(counts.sum())} {what} are right."
    return finished(made, alt)


def confused(counts: Tensor, most: int) -> list[tuple[int, int, int]]:
    """The cells beside the diagonal of counts (C, C) that have most: class, what was said, how often."""
    off = counts - counts.diag().diag()
    flat, n = off.flatten(), counts.shape[0]
    order = flat.argsort(descending=True, stable=True)[:most].tolist()
    return [(k // n, k % n, int(flat[k])) for k in order if int(flat[k])]


def bars(labels: Sequence[str], values: Sequence[float | None], mean: float | None) -> Drawing:
    """A part of 1 for each class, the highest first, and the mean of all.

    Args:
        labels: C names.
        values: One a class; ``None`` where there is none, which has no bar.
        mean: Of all that have one.
    """
    known = [k for k in _order([values]) if values[k] is not None]
    rows, title = _ends(known)
    made, axes = _of_classes(labels, rows)
    for place, k in enumerate(rows):
        value = 100 * (values[k] or 0.0)
        axes.barh(place, value, height=0.7, color=SERIES[0])
        # On paper of its own, so that the line of the mean does not cross it out.
        paper = {"facecolor": PAPER, "edgecolor": "none", "pad": 0.6}
        axes.text(value + 1.5, place, f"{value:.1f}", va="center", fontsize=7.5, bbox=paper)
    if mean is not None:
        axes.axvline(100 * mean, color=INK, linewidth=1, linestyle="--", zorder=0)
    axes.set_title(title)
    axes.set_xlim(0, 112)
    told = "; ".join(f"{labels[k]} {percent(values[k])}" for k in rows)
    return finished(made, f"IoU by class, mean {percent(mean)}. {told or 'No class is there'}.")


def dots(labels: Sequence[str], runs: Sequence[tuple[str, Sequence[float | None]]]) -> Drawing:
    """A part of 1 for each class and run, classes with the highest mean first.

    Args:
        labels: C names.
        runs: The name of each, and a value a class; ``None`` where there is none, which has no mark.
    """
    rows, title = _ends([k for k in _order([values for _, values in runs]) if any(v[k] is not None for _, v in runs)])
    made, axes = _of_classes(labels, rows, 0.17 * _legend_rows([name for name, _ in runs]))
    for number, (name, values) in enumerate(runs):
        seen = [(100 * value, place) for place, k in enumerate(rows) if (value := values[k]) is not None]
        axes.plot(
            [value for value, _ in seen],
            [place for _, place in seen],
            color=SERIES[number % len(SERIES)],
            marker=MARKERS[(number + number // len(SERIES)) % len(MARKERS)],
            # Hollow: where runs agree, all of them are seen.
            markersize=6,
            markerfacecolor="none",
            markeredgewidth=1.5,
            linestyle="none",
            label=shown(name, 32),
        )
    axes.grid(axis="y", alpha=0.15, linewidth=0.6)
    axes.set_title(title)
    axes.set_xlim(-2, 102)
    _legend(made, axes)
    told = "; ".join(f"{labels[k]}: " + ", ".join(f"{name} {percent(v[k])}" for name, v in runs) for k in rows)
    return finished(made, f"IoU by class. {told}.")


def _order(values: Sequence[Sequence[float | None]]) -> list[int]:
    """Places of classes, the highest mean first; what is nowhere is last."""

    def mean(k: int) -> float:
        known = [v for row in values if (v := row[k]) is not None]
        return sum(known) / len(known) if known else -1.0

    return sorted(range(len(values[0])), key=lambda k: (-mean(k), k))


def _ends(order: Sequence[int]) -> tuple[list[int], str]:
    """Return as many classes as can be shown, and a note where that is not all."""
    if len(order) <= _MOST_BARS:
        return list(order), ""
    half = _MOST_BARS // 2
    return [*order[:half], *order[-half:]], f"the best and the worst {half} of {len(order)} classes"


def _of_classes(labels: Sequence[str], rows: Sequence[int], below: float = 0.0) -> tuple[Any, Any]:
    """A panel with a row a class."""
    made, axes = figure(0.75 + 0.2 * max(len(rows), 2) + below)
    axes.set_yticks(range(len(rows)), [shown(labels[k], 18) for k in rows])
    axes.set_ylim(max(len(rows), 2) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("IoU, %")
    return made, axes


def _of_blocks(rows: int, depth: int, *, bar: bool = False) -> tuple[Any, Any]:
    return figure(0.75 + 0.24 * rows + 0.55 * bar, max(WIDTH, 1.5 + 0.19 * depth))


def _blocks(axes: Any, depth: int, *, both: bool = False) -> None:
    every = math.ceil(depth / 16)
    ticks = list(range(0, depth, every))
    axes.set_xticks([tick + 0.5 for tick in ticks], [str(tick) for tick in ticks])
    axes.set_xlabel("block")
    if both:
        axes.set_yticks([tick + 0.5 for tick in ticks], [str(tick) for tick in ticks])
        axes.set_ylabel("block")


def _row(one: PromptSet) -> str:
    return f"{shown(one.name, 22)} ({one.count})"


def _ranges(blocks: Sequence[int]) -> str:
    """``0 to 3, 5`` for 0, 1, 2, 3, 5."""
    groups: list[list[int]] = []
    for i in sorted(blocks):
        if groups and groups[-1][-1] == i - 1:
            groups[-1].append(i)
        else:
            groups.append([i])
    return ", ".join(f"{g[0]} to {g[-1]}" if len(g) > 2 else ", ".join(map(str, g)) for g in groups)


def _look(k: int) -> dict[str, Any]:
    return {"color": SERIES[k % len(SERIES)], "linestyle": STYLES[k % len(STYLES)]}


def _dot(curve: tuple[list[float], list[float]]) -> dict[str, Any]:
    """A mark for a curve of one epoch, which has no line."""
    return {"marker": "o", "markersize": 4} if len(curve[0]) == 1 else {}


def _legend_rows(names: Sequence[str]) -> int:
    return math.ceil(len(names) / _legend_columns(names))


def _legend_columns(names: Sequence[str]) -> int:
    return 2 if max(map(len, names), default=0) <= 16 else 1


def _legend(made: Any, axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        made.legend(handles, labels, loc="outside lower left", ncols=_legend_columns(labels))


def _dress(axes: Any, x: str, y: str) -> None:
    axes.grid(alpha=0.15, linewidth=0.6)
    axes.set(xlabel=x, ylabel=y)
    if x == "epoch":
        axes.xaxis.get_major_locator().set_params(integer=True)


def _curve(run: Run, key: str, factor: float = 1.0) -> tuple[list[float], list[float]]:
    rows = [entry for entry in run.history if key in entry]
    return [entry["epoch"] for entry in rows], [factor * entry[key] for entry in rows]


def _last(run: Run, key: str) -> str:
    values = _curve(run, key)[1]
    return f"{values[-1]:.3g}" if values else "not measured"
