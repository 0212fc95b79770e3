"""A report on runs: pictures, and the page that holds them."""

from __future__ import annotations

from trimtab.reporting.write import Report, report

__all__ = ["Report", "report"]
