"""The report as one page of HTML: nothing but itself is loaded, and what users wrote is escaped."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trimtab import __version__
from trimtab.report import pictures
from trimtab.report.drawing import Drawing, shown
from trimtab.report.findings import Findings
from trimtab.report.runs import Run
from trimtab.report.sections import Section, accuracy, duration, error_of, size

_HERE = Path(__file__).parent


def page(runs: Sequence[Run], findings: Sequence[Findings | None], sections: Sequence[Section]) -> str:
    """The whole page.

    Args:
        runs: What is reported on.
        findings: What the model of each run says of images, if it was asked.
        sections: What is shown of each run.
    """
    columns, rows = _table(runs, findings)
    return render(
        _HERE / "page.html",
        title=sections[0].name if len(runs) == 1 else f"{len(runs)} runs compared",
        lead=_lead(runs),
        columns=columns,
        rows=list(zip(sections, rows, strict=True)),
        table_notes=_notes(runs, findings),
        overview=_overview(runs, findings),
        sections=sections,
    )


def render(template: Path, **values: Any) -> str:
    """A page in the style of all reports: nothing but itself is loaded, and what ``values`` hold is escaped.

    Args:
        template: The page; it may take from what is beside it, and from this folder.
        values: What it shows.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    style = (_HERE / "page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    loader = FileSystemLoader([template.parent, _HERE])
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template.name).render(
        version=__version__,
        style=Markup(style),  # noqa: S704 - our own file, not what a user wrote
        style_hash=digest,
        **values,
    )


def _table(
    runs: Sequence[Run], findings: Sequence[Findings | None]
) -> tuple[list[tuple[str, str]], list[tuple[str, ...]]]:
    """Columns with the class of their cells, and a row a run."""
    columns = [("run", ""), ("method", ""), ("backbone", ""), ("validation accuracy", "number")]
    other = next((found.split for found in findings if found is not None and found.split != "val"), None)
    if other is not None:
        columns.append((f"{other} accuracy", "number"))
    columns += [(name, "number") for name in ("trained numbers", "adapter size", "time", "epochs")]
    rows = []
    for run, found in zip(runs, findings, strict=True):
        metrics = run.metrics
        cells = [run.name, run.described["method"], run.described["backbone"]["name"]]
        cells.append(accuracy(metrics.get("val_accuracy"), metrics.get("val_images")))
        if other is not None:
            cells.append(accuracy(found.metrics["accuracy"], found.images) if found else "not measured")
        cells += [
            f"{run.trainable:,}",
            size(run.described["bytes"]["tensors"]),
            duration(metrics.get("seconds")),
            f"{metrics.get('best_epoch', '?')} of {metrics.get('epochs', '?')}",
        ]
        rows.append(tuple(shown(cell) for cell in cells))
    return columns, rows


def _lead(runs: Sequence[Run]) -> str:
    if len(runs) > 1:
        sets = {str(run.record.get("data")) for run in runs if run.record}
        return f"On {shown(sets.pop())}." if len(sets) == 1 else "On different images: compare with care."
    described = runs[0].described
    return f"{described['method']} on {shown(described['backbone']['name'])}, {len(described['labels'])} classes."


def _notes(runs: Sequence[Run], findings: Sequence[Findings | None]) -> list[str]:
    notes = []
    if any(run.metrics.get("val_accuracy") is not None for run in runs):
        notes.append(
            "± is one standard error, of images drawn at random; it knows nothing of seeds. Validation images chose "
            "the epoch, so their accuracy is a little optimistic. Epochs: the one kept, of all."
        )
    if len({str(run.record.get("identity", {}).get("images")) for run in runs}) > 1:
        notes.append("The runs were trained on different images, or on other splits of the same.")
    return notes


def _overview(runs: Sequence[Run], findings: Sequence[Findings | None]) -> list[tuple[Drawing, str]]:
    """Pictures of all runs, with what is written under them."""
    drawn: list[tuple[Drawing, str]] = []
    if any(run.history for run in runs):
        drawn.append((pictures.losses(runs), "Loss by epoch."))
        curve = pictures.accuracies(runs)
        if curve is not None:
            drawn.append((curve, "Accuracy on the validation images by epoch."))
    measured = [found for found in findings if found is not None]
    splits = {found.split for found in measured}
    if len(measured) == len(runs) and len(splits) == 1 and splits != {"val"}:
        what = f"{splits.pop()} accuracy"
        values = [(found.metrics["accuracy"], found.images) for found in measured]
        points = [(run.name, run.trainable, *_with_error(*value)) for run, value in zip(runs, values, strict=True)]
    else:
        what = "validation accuracy"
        points = [
            (run.name, run.trainable, *_with_error(run.metrics["val_accuracy"], run.metrics["val_images"]))
            for run in runs
            if run.metrics.get("val_accuracy") is not None
        ]
    if len(points) > 1:
        drawn.append((pictures.tradeoff(points, what), "What was trained, and what it gives; ± one standard error."))
    return drawn


def _with_error(value: float, images: int) -> tuple[float, float]:
    return value, error_of(value, images)
