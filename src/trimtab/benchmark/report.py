"""The report of a benchmark as files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trimtab.benchmark.page import page
from trimtab.benchmark.results import Record
from trimtab.benchmark.summary import summarise
from trimtab.benchmark.text import csv_of, text_of
from trimtab.errors import TrainingError
from trimtab.files import write_json, write_text


@dataclass(frozen=True)
class BenchReport:
    """What was written."""

    out: Path
    text: str
    """The tables."""
    summary: Record
    """All numbers."""


def bench_report(folders: Sequence[str | Path], *, out: str | Path | None = None) -> BenchReport:
    """Write tables and pictures of what ``bench`` measured; an earlier report in the same place is replaced.

    Args:
        folders: Result folders of ``bench``, of one suite.
        out: Folder for ``report.txt``, ``report.html``, CSV files and ``summary.json``; by default ``report`` in the
            first of ``folders``.

    Raises:
        TrimtabError: If there are no results, they do not belong into one table, or ``out`` cannot be written.
    """
    summary = summarise(folders)
    out = Path(out) if out is not None else Path(folders[0]) / "report"
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"Could not make the folder {str(out)!r}: {error.strerror}; name another --out.") from error
    text = text_of(summary)
    write_json(out / "summary.json", summary)
    write_text(out / "report.txt", text)
    write_text(out / "report.html", page(summary))
    for name, content in csv_of(summary).items():
        write_text(out / name, content)
    return BenchReport(out, text, summary)
