"""What all tasks answer."""

from __future__ import annotations

import pytest

from trimtab.tasks import TASKS, make_task


@pytest.mark.parametrize("name", TASKS)
def test_what_pages_show_is_measured_and_the_watched_comes_first(name: str) -> None:
    task = make_task(name)
    assert next(iter(task.metric_labels)) == task.monitor
    assert set(task.metric_labels) <= set(task.logged_metrics)


def test_only_a_mean_over_images_has_a_standard_error() -> None:
    assert make_task("classification").standard_error(0.5, 100) == pytest.approx(0.05)
    assert make_task("classification").standard_error(1.0, 100) == 0
    assert make_task("segmentation").standard_error(0.5, 100) is None
