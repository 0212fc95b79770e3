"""Means, intervals and paired comparisons."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from trimtab.bench.results import Record


def difference(ours: Sequence[float], theirs: Sequence[float]) -> Record:
    """Compute the mean paired difference over seeds with its interval."""
    if not ours or len(ours) != len(theirs):
        return interval([])
    return interval([a - b for a, b in zip(ours, theirs, strict=True)])


def interval(values: Sequence[float]) -> Record:
    """Compute the mean and half the width of its 95 % t interval; ``None`` where there are too few values."""
    if not values:
        return {"mean": None, "half": None}
    count = len(values)
    half = t_value(count) * statistics.stdev(values) / math.sqrt(count) if count > 1 else None
    return {"mean": statistics.fmean(values), "half": half}


def t_value(count: int) -> float:
    """Return the 97.5 % quantile of t for a mean of ``count`` values."""
    from scipy.stats import t

    return float(t.ppf(0.975, count - 1))


def paired_test(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Compute the two-sided p of the paired t-test; ``None`` with fewer than two pairs, 1 if all are equal."""
    from scipy.stats import ttest_rel

    if len(ours) != len(theirs) or len(ours) < 2:
        return None
    gaps = [a - b for a, b in zip(ours, theirs, strict=True)]
    if max(gaps) - min(gaps) < 1e-12:
        # Differences without spread have no t; equal models are equal.
        return 1.0 if abs(gaps[0]) < 1e-12 else 0.0
    return float(ttest_rel(ours, theirs).pvalue)


def signed_rank_test(ours: Sequence[float], theirs: Sequence[float], least: int = 6) -> float | None:
    """Compute the two-sided exact p of Wilcoxon's signed-rank test over tasks.

    ``None`` with fewer than ``least`` tasks that differ: of five, no outcome is below 0.05.

    References:
        | Statistical Comparisons of Classifiers over Multiple Data Sets (Demsar, 2006), section 3.1.3
        | https://www.jmlr.org/papers/v7/demsar06a.html
    """
    from scipy.stats import wilcoxon

    gaps = [round(a - b, 12) for a, b in zip(ours, theirs, strict=True)]
    gaps = [gap for gap in gaps if gap]
    return float(wilcoxon(gaps).pvalue) if len(gaps) >= least else None


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Correct p values by Holm's step-down procedure; missing ones stay missing and do not count."""
    order = sorted((value, k) for k, value in enumerate(values) if value is not None)
    corrected: list[float | None] = [None] * len(values)
    largest = 0.0
    for rank, (value, k) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * value))
        corrected[k] = largest
    return corrected
