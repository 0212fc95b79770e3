"""Figures of a benchmark's report: bars, score against parameters, ranks."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.bench.results import Record
from trimtab.bench.summary import label
from trimtab.reporting.figure import INK, MARKERS, SERIES, WIDTH, Drawing, figure, finished, shown
from trimtab.reporting.pictures import tradeoff

_HATCHES = ("", "////", "....", "xxxx")
_NAME = 44
"""Letters of a row's name that a legend still shows."""


def tasks(summary: Record, group: str) -> Drawing:
    """Draw a bar for each row on each task of a group, with its interval and published values of the same method."""
    names = [name for name, task in summary["tasks"].items() if task["group"] == group]
    published = [
        {name: one["values"][name] for name in names if name in one["values"]}
        for row in summary["rows"]
        for one in (_published(summary, row),)
    ]
    return _bars(summary["rows"], names, [row["tasks"] for row in summary["rows"]], published, summary["measure"])


def means(summary: Record) -> Drawing:
    """Draw a bar for each row and group, and for both overall means."""
    over = {"of groups": "mean_of_groups", "of tasks": "mean_of_tasks"}
    found = [{**row["groups"], **{name: row[key] for name, key in over.items()}} for row in summary["rows"]]
    names = [*summary["groups"], *over]
    return _bars(summary["rows"], names, found, [{} for _ in found], summary["measure"])


def _published(summary: Record, row: Record) -> Record:
    found = (one for one in summary["published"] if row["name"] in one["ours"])
    return next(found, {"values": {}})


def _bars(
    rows: Sequence[Record],
    names: Sequence[str],
    values: Sequence[Mapping[str, Record]],
    published: Sequence[Mapping[str, float]],
    measure: str,
) -> Drawing:
    """Draw horizontal bars in groups, one group for each of ``names``."""
    many = len(rows)
    made, axes = figure(0.9 + 0.13 * (many + 1) * len(names) + 0.17 * many)
    for k, (row, own, theirs) in enumerate(zip(rows, values, published, strict=True)):
        here = [n for n, name in enumerate(names) if own.get(name, {}).get("mean") is not None]
        found = [own[names[n]] for n in here]
        places = [n * (many + 1) + k for n in here]
        axes.barh(
            places,
            [100 * one["mean"] for one in found],
            xerr=[100 * (one["half"] or 0.0) for one in found],
            height=0.9,
            label=shown(label(row), _NAME),
            hatch=_HATCHES[k // len(SERIES) % len(_HATCHES)],
            error_kw={"elinewidth": 1, "ecolor": INK},
            color=SERIES[k % len(SERIES)],
        )
        marks = [(100 * theirs[name], n * (many + 1) + k) for n, name in enumerate(names) if name in theirs]
        if marks:
            axes.plot(*zip(*marks, strict=True), "|", color=INK, markersize=7, markeredgewidth=1.6)
    axes.set_yticks([n * (many + 1) + (many - 1) / 2 for n in range(len(names))], [shown(name, 22) for name in names])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", alpha=0.15, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlim(0, 104)
    axes.set_xlabel(f"{measure}, %")
    made.legend(*axes.get_legend_handles_labels(), loc="outside lower left", ncols=1)
    told = "; ".join(
        f"{label(row)}: " + ", ".join(f"{name} {_percent(own[name]['mean'])}" for name in names if name in own)
        for row, own in zip(rows, values, strict=True)
    )
    return finished(made, f"{measure.capitalize()}. {told}.")


def against_parameters(summary: Record) -> Drawing | None:
    """Draw the mean score against trainable parameters; ``None`` where fewer than two rows have all tasks."""
    points = []
    for row in summary["rows"]:
        trained = [one["trainable"] for one in row["tasks"].values() if one["trainable"] is not None]
        if row["mean_of_tasks"]["mean"] is not None and trained:
            half = row["mean_of_tasks"]["half"] or 0.0
            points.append((label(row), round(statistics.fmean(trained)), row["mean_of_tasks"]["mean"], half))
    return tradeoff(points, f"mean {summary['measure']}") if len(points) > 1 else None


def ranks(summary: Record) -> Drawing | None:
    """Draw the rank of each row on each task and the mean rank; ``None`` where fewer than two rows have all tasks."""
    from scipy.stats import rankdata

    rows = [row for row in summary["rows"] if row["whole"]]
    if len(rows) < 2:
        return None
    means = [[row["tasks"][name]["mean"] for name in summary["tasks"]] for row in rows]
    found = rankdata([[-mean for mean in own] for own in means], axis=0).tolist()
    order = sorted(range(len(rows)), key=lambda k: statistics.fmean(found[k]))
    made, axes = figure(0.8 + 0.28 * len(rows), max(WIDTH, 5.0))
    look: dict[str, Any] = {"linestyle": "none", "markersize": 8}
    for place, k in enumerate(order):
        axes.plot(found[k], [place] * len(found[k]), "o", color=SERIES[k % len(SERIES)], alpha=0.3, markersize=5)
        marker = MARKERS[k % len(MARKERS)]
        axes.plot(statistics.fmean(found[k]), place, marker=marker, color=SERIES[k % len(SERIES)], **look)
    axes.set_yticks(range(len(rows)), [shown(label(rows[k]), _NAME) for k in order])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0.7, len(rows) + 0.3)
    axes.set_xticks(range(1, len(rows) + 1))
    axes.set_xlabel("rank; 1 is best")
    axes.grid(axis="x", alpha=0.15, linewidth=0.6)
    axes.tick_params(axis="y", length=0)
    told = "; ".join(f"{label(rows[k])} {statistics.fmean(found[k]):.2f}" for k in order)
    return finished(made, f"Mean rank over {len(summary['tasks'])} tasks: {told}.")


def _percent(value: float | None) -> str:
    return "not measured" if value is None else f"{100 * value:.1f} %"
