"""Numbers as they stand in a page."""

from __future__ import annotations

from trimtab.reporting.words import duration, percent, size, written


def test_numbers_in_words() -> None:
    assert percent(0.9, 0.03) == "90.0 % ± 3.0"
    assert percent(0.9) == "90.0 %"
    assert (percent(None), percent(float("nan"))) == ("not measured", "not measured")
    assert written([True, 0.1, "a", ()]) == "yes, 0.1, a, none"
    assert (duration(5.04), duration(75), duration(None)) == ("5.0 s", "1:15", "?")
    assert (size(1500), size(2_500_000), size(None)) == ("2 kB", "2.5 MB", "?")
