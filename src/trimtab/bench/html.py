"""A benchmark's report as a self-contained HTML page."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from trimtab.bench import figures
from trimtab.bench.results import Record
from trimtab.bench.summary import label
from trimtab.bench.text import NONE, lead_of, tables_of
from trimtab.reporting.figure import Drawing, looks, shown
from trimtab.reporting.page import render

_TEMPLATE = Path(__file__).parent / "report.html"


def page(summary: Record) -> str:
    """Render the page."""
    with looks():
        drawn = _drawn(summary)
    tables = [
        (title, [shown(name) for name in header], [[shown(cell) for cell in row] for row in rows], shown(note))
        for title, header, rows, note in tables_of(summary)
    ]
    return render(
        _TEMPLATE,
        title=f"Benchmark {shown(summary['suite'])}",
        lead=f"{len(summary['rows'])} rows, {len(summary['tasks'])} tasks. {shown(lead_of(summary))}",
        warnings=[
            f"{shown(label(row))} was chosen on the test images: its numbers are too high, and are here to reproduce "
            "how a paper got its own."
            for row in summary["rows"]
            if row["on_test"]
        ],
        pictures=drawn,
        tables=tables,
        rows=[(shown(label(row)), _facts(summary, row)) for row in summary["rows"]],
    )


def _drawn(summary: Record) -> list[tuple[Drawing, str]]:
    """Draw the figures, each with its caption."""
    found = [(figures.means(summary), "Means over the tasks of each group, over the groups, and over all tasks.")]
    for group in summary["groups"]:
        under = f"{shown(group)}: the bar's line is the 95 % interval over seeds."
        if any(one["ours"] for one in summary["published"]):
            under += " Upright marks: what was published of the method, comparable or not (see the table)."
        found.append((figures.tasks(summary, group), under))
    tradeoff, ranks = figures.against_parameters(summary), figures.ranks(summary)
    if tradeoff is not None:
        found.append((tradeoff, "What is trained, the head included, and what it gives; ± the 95 % interval."))
    if ranks is not None:
        found.append((ranks, "Rank on each task (small), and the mean rank."))
    return found


def _facts(summary: Record, row: Record) -> list[tuple[str, str]]:
    cells = row["tasks"].values()
    seeds = [seed for cell in cells for seed in cell["seeds"]]
    variants = sorted({summary["tasks"][name]["variant"] for name in row["tasks"]})
    return [
        (name, shown(value))
        for name, value in (
            ("protocol", f"{row['protocol']}: {row['chosen']}"),
            ("other than the recipes'", ", ".join(f"{k} {v}" for k, v in row["departures"].items()) or "nothing"),
            ("backbone", row["backbone"]),
            ("fingerprint of its weights", row["fingerprint"][:16]),
            ("data", ", ".join(variants)),
            ("test readings", str(sum(cell["readings"] for cell in cells))),
            ("versions", _each(_versions(seed) for seed in seeds)),
            ("machine", _each(_machine(seed) for seed in seeds)),
        )
    ]


def _each(values: Iterable[str]) -> str:
    """Join the distinct values: a resumed run may have several machines and versions."""
    return "; ".join(dict.fromkeys(values)) or NONE


def _versions(seed: Record) -> str:
    return ", ".join([*(f"{k} {v}" for k, v in (seed["versions"] or {}).items()), f"source {seed['code']}"])


def _machine(seed: Record) -> str:
    return ", ".join([*(str(v) for v in (seed["computer"] or {}).values()), seed["gpu"] or "no GPU"])
