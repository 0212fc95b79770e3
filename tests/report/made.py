"""What the tests of reports share."""

from __future__ import annotations

import csv
import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests import job
from trimtab.fit import fit
from trimtab.report.runs import Run, read_runs

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "$x^2$ {{ 7 * 7 }} %s",
    "日本語のクラス",
    "right\u202eleft",
    "bell\x07",
    "new\nline",
    "a very long name that goes on and on " * 3 + "to its end",
)
"""Names of classes that a page has to survive."""


def run(method: str = "vpt") -> Run:
    """A finished small run."""
    (found,) = read_runs([job.finished(method)])
    return found


@functools.cache
def hostile() -> Path:
    """A run on classes with such names, of files and in a folder of such names; leave it as it is."""
    home = Path(tempfile.mkdtemp(dir=job.home()))
    rows = [
        (f"<b>{label}-{k}\"'.png", name, "val" if k else "train")
        for label, name in enumerate(_names())
        for k in range(2)
    ]
    return _fit(home, rows, home / "<i>run & co", 'trimtab fit "</pre><script>alert(3)</script>"')


@functools.cache
def many(classes: int = 60) -> Path:
    """A run on more classes than a confusion matrix can show."""
    home = Path(tempfile.mkdtemp(dir=job.home()))
    rows = [
        (f"{label}-{k}.png", f"class {label}", "val" if k else "train") for label in range(classes) for k in range(2)
    ]
    return _fit(home, rows, home / "many", None)


def _names() -> list[str]:
    return [name.strip() for name in HOSTILE]


def _fit(home: Path, rows: Sequence[tuple[str, str, str]], out: Path, command: str | None) -> Path:
    for number, (name, _, _) in enumerate(rows):
        job.draw(home / name, number, number)
    with (home / "data.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split"), *rows])
    fit(home / "data.csv", out=out, command=command, **job.options("vpt", epochs=2, batch_size=64))
    return out
