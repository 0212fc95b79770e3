"""A report on runs: pictures, and the page that holds them."""

from __future__ import annotations

from trimtab.report.write import Report, report

__all__ = ["Report", "report"]
