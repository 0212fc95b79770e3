"""The parts of a report as plain values: what the page shows, before it is a page."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from trimtab.methods.base import PromptSet
from trimtab.progress import clock
from trimtab.report import pictures
from trimtab.report.attention import Attention
from trimtab.report.drawing import Drawing, shown
from trimtab.report.findings import Findings, Picture
from trimtab.report.runs import Run
from trimtab.report.thumbnails import overlay, thumbnail

_PAIRS = 10
"""Confused pairs that are listed."""
_MAPS = 2
"""Prompts whose attention is laid over an image."""


@dataclasses.dataclass(frozen=True)
class Card:
    """One image with its overlays."""

    pictures: tuple[tuple[Drawing, str], ...]
    """Each with the line under it."""
    target: str
    said: str
    probability: str
    name: str
    right: bool


@dataclasses.dataclass(frozen=True)
class Section:
    """What is shown of one run."""

    id: str
    name: str
    facts: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    command: str
    config: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    """Groups of options by their title."""
    affinity: Drawing | None = None
    entries: Drawing | None = None
    shares: Drawing | None = None
    measured: str = ""
    """What was looked at, in a sentence; empty where nothing was."""
    confusion: Drawing | None = None
    pairs: tuple[tuple[str, str, int, str], ...] = ()
    """Class, what was said, how often, and of how many of the class."""
    wrong: int = 0
    mistakes: tuple[Card, ...] = ()
    examples: tuple[Card, ...] = ()


def section(number: int, run: Run, findings: Findings | None, notes: Sequence[str]) -> Section:
    """What is shown of one run, with findings where there are some."""
    sets = run.sets if run.depth else ()
    drawn: dict[str, Any] = {
        "affinity": None if run.hierarchy is None else pictures.affinity(run.hierarchy),
        "entries": pictures.entries(sets, run.depth) if sets and run.depth else None,
    }
    if findings is not None:
        drawn |= _of_findings(sets, findings)
    return Section(
        id=f"run-{number}",
        name=shown(run.name),
        facts=_facts(run),
        notes=tuple(shown(note) for note in (*run.notes, *notes)),
        command=shown(run.record.get("command") or "Trained from Python."),
        config=_config(run.record),
        **drawn,
    )


def _of_findings(sets: Sequence[PromptSet], findings: Findings) -> dict[str, Any]:
    few = len(findings.labels) <= pictures.LARGEST_CONFUSION
    layout = _Layout(sets, findings.attention)
    rows = layout.shares()
    return {
        "measured": _measured(findings),
        "confusion": pictures.confusion(findings.confusion, findings.labels) if few else None,
        "pairs": _pairs(findings),
        "wrong": findings.wrong,
        "mistakes": tuple(_card(one, [(thumbnail(one.pixels, _said(one)), "")]) for one in findings.mistakes),
        "examples": _examples(layout, findings),
        "shares": pictures.shares([name for name, _ in rows], [row for _, row in rows]) if rows else None,
    }


def _facts(run: Run) -> tuple[tuple[str, str], ...]:
    metrics, backbone = run.metrics, run.described["backbone"]
    height, width = backbone["image_size"]
    labels = run.described["labels"]
    facts = {
        "method": run.described["method"],
        "backbone": f"{backbone['name']} at {height}x{width}",
        "classes": f"{len(labels)}: {', '.join(labels[:8])}{', …' if len(labels) > 8 else ''}",
        "trained on": f"{metrics.get('train_images', '?')} images, validated on {metrics.get('val_images', '?')}",
        **{name: _value(value) for name, value in run.described["facts"].items()},
    }
    return tuple((shown(name), shown(value)) for name, value in facts.items())


def _config(record: Mapping[str, Any]) -> tuple[tuple[str, tuple[tuple[str, str], ...]], ...]:
    resolved = record.get("resolved") or {}
    parts = {
        "method": resolved.get("method_config"),
        "training": {**(record.get("options") or {}), **(resolved.get("recipe") or {})},
        "preprocessing": resolved.get("preprocessing"),
        "machine": {"trimtab": record.get("trimtab"), **(record.get("machine") or {})},
    }
    return tuple(
        (title, tuple((shown(name), shown(_value(value))) for name, value in part.items() if value is not None))
        for title, part in parts.items()
        if part
    )


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_value, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def accuracy(value: float | None, images: int | None) -> str:
    """An accuracy with its standard error in points, if the number of images is known."""
    if value is None:
        return "not measured"
    return f"{100 * value:.1f} %" + (f" ± {100 * error_of(value, images):.1f}" if images else "")


def error_of(value: float, images: int) -> float:
    """Standard error of an accuracy over so many images, of independent ones."""
    return math.sqrt(value * (1 - value) / images)


def duration(seconds: float | None) -> str:
    """Short ones with a decimal."""
    if seconds is None:
        return "?"
    return clock(seconds) if seconds >= 60 else f"{seconds:.1f} s"


def size(count: float | None) -> str:
    """Bytes in their unit."""
    if count is None:
        return "?"
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:,.0f} kB"


def _measured(findings: Findings) -> str:
    metrics, images = findings.metrics, findings.images
    return (
        f"Measured on the {images} {_SPLITS.get(findings.split, findings.split)} images of {shown(findings.source)}: "
        f"accuracy {accuracy(metrics['accuracy'], images)}, mean class accuracy "
        f"{100 * metrics['mean_class_accuracy']:.1f} %, loss {metrics['loss']:.3f}, calibration error "
        f"{100 * metrics['calibration_error']:.1f} %."
    )


_SPLITS = {"val": "validation", "train": "training", "all": "labelled"}


def _pairs(findings: Findings) -> tuple[tuple[str, str, int, str], ...]:
    """The pairs confused most, the most frequent first."""
    counts = findings.confusion
    off = counts - counts.diag().diag()
    flat = off.flatten()
    order = flat.argsort(descending=True, stable=True)[:_PAIRS].tolist()
    totals, n = counts.sum(1).tolist(), len(findings.labels)
    labels = [shown(label) for label in findings.labels]
    return tuple(
        (labels[k // n], labels[k % n], int(flat[k]), f"of {int(totals[k // n])}") for k in order if int(flat[k])
    )


def _said(one: Picture) -> str:
    if one.said == one.target:
        return f"An image of {one.target}, which the model says, too."
    return f"An image of {one.target}, of which the model says {one.said}."


def _card(one: Picture, drawn: Sequence[tuple[Drawing, str]]) -> Card:
    # Rounded down: a mistake is not made with certainty.
    sure = f"{math.floor(1000 * one.probability) / 10:.1f} %"
    return Card(
        tuple(drawn), shown(one.target, 40), shown(one.said, 40), sure, shown(one.name, 40), one.said == one.target
    )


def _examples(layout: _Layout, findings: Findings) -> tuple[Card, ...]:
    maps = layout.maps()
    cards = []
    for k, one in enumerate(findings.examples):
        heat = findings.attention.saliency[k]
        drawn = [
            (thumbnail(one.pixels, _said(one)), "image"),
            (overlay(one.pixels, heat, f"What pooling looks at in an image of {one.target}."), "pooling"),
        ]
        for name, i, column in maps:
            alt = f"Where patches of an image of {one.target} attend to {name} in block {i}."
            drawn.append(
                (overlay(one.pixels, findings.attention.patches[i][k, ..., column], alt), f"{name}, block {i}")
            )
        cards.append(_card(one, drawn))
    return tuple(cards)


class _Layout:
    """Which of the prompts of each block belong to which set."""

    def __init__(self, sets: Sequence[PromptSet], attention: Attention) -> None:
        self.attention = attention
        self.sets = [one for one in sets if one.count]
        counts = [sum(one.count for one in self.sets if i in one.blocks) for i in range(len(attention.pooled))]
        seen = [pooled.shape[1] for pooled in attention.pooled]
        if counts != seen:
            # A method that does not say how its prompts are laid out.
            self.sets = [
                PromptSet(f"{count} prompts", count, tuple(i for i, n in enumerate(seen) if n == count))
                for count in sorted({n for n in seen if n})
            ]

    def columns(self, one: PromptSet, i: int) -> slice:
        """The places of a set's prompts among those of a block that has them."""
        before = [other for other in self.sets[: self.sets.index(one)] if i in other.blocks]
        first = sum(other.count for other in before)
        return slice(first, first + one.count)

    def shares(self) -> list[tuple[str, list[float | None]]]:
        """Of each set, and of all if there are several, what the pooled tokens give to it in each block."""
        pooled = [values.mean(0) for values in self.attention.pooled]
        rows: list[tuple[str, list[float | None]]] = [
            (
                one.name,
                [float(p[self.columns(one, i)].sum()) if i in one.blocks else None for i, p in enumerate(pooled)],
            )
            for one in self.sets
        ]
        if len(rows) > 1:
            rows.append(("all prompts", [float(p.sum()) if len(p) else None for p in pooled]))
        return rows

    def maps(self) -> list[tuple[str, int, int]]:
        """The prompts that tell patches apart best, of different sets first: a name, the block, the place in it."""
        found = [(*self._spread(one, i), one, i) for one in self.sets for i in one.blocks]
        found.sort(key=lambda entry: -entry[0])
        # The first of each set before the others.
        firsts = {entry[2].name: entry for entry in reversed(found)}
        chosen = [entry for entry in found if firsts[entry[2].name] is entry]
        chosen = (chosen + [entry for entry in found if entry not in chosen])[:_MAPS]
        return [
            (
                (f"{one.name}, " if len(self.sets) > 1 else "") + f"prompt {column - self.columns(one, i).start + 1}",
                i,
                column,
            )
            for _, column, one, i in chosen
        ]

    def _spread(self, one: PromptSet, i: int) -> tuple[float, int]:
        # Of the prompt whose weight varies most over the patches of an image: how much it does, and its place.
        columns = self.columns(one, i)
        values: Tensor = self.attention.patches[i][..., columns]
        spread = values.flatten(1, 2).std(1, correction=0).mean(0)
        return float(spread.max()), columns.start + int(spread.argmax())
