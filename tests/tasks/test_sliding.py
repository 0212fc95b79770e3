"""Windows over images of any size, several scales, and turned about."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trimtab.errors import ConfigError
from trimtab.tasks.segmentation.sliding import Views, enlarged, look, slide

WINDOW = (8, 12)


class Model:
    """Logits of two classes that are numbers of the pixel itself; notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Tensor] = []

    def __call__(self, images: Tensor) -> Tensor:
        assert tuple(images.shape[-2:]) == WINDOW
        self.asked.append(images)
        return torch.stack([images[:, 0], -2 * images[:, 0]], 1)


def test_one_window_is_the_single_pass() -> None:
    images, model = torch.randn(2, 3, *WINDOW), Model()
    assert torch.equal(look(model, images, WINDOW, Views()), Model()(images))
    assert len(model.asked) == 1


def test_a_smaller_image_is_seen_whole_and_once() -> None:
    images, model = torch.randn(2, 3, 5, 12), Model()
    assert torch.equal(slide(model, images, WINDOW, 0.5), torch.stack([images[:, 0], -2 * images[:, 0]], 1))
    assert torch.equal(model.asked[0][:, :, :5], images)
    assert (model.asked[0][:, :, 5:] == 0).all()


@pytest.mark.parametrize("size", [(9, 12), (8, 25), (20, 31), (3, 40), (16, 24)])
@pytest.mark.parametrize("stride", [1.0, 2 / 3, 0.25])
def test_windows_agree_with_a_model_that_sees_single_pixels(size: tuple[int, int], stride: float) -> None:
    images = torch.randn(2, 3, *size)
    expected = torch.stack([images[:, 0], -2 * images[:, 0]], 1)
    torch.testing.assert_close(slide(Model(), images, WINDOW, stride), expected)


def test_overlapping_windows_are_averaged() -> None:
    """The windows begin at 0, 6 and 12: a model that only counts gives the mean of those that saw a pixel."""
    count = iter(range(10))

    def counting(images: Tensor) -> Tensor:
        return torch.full((1, 1, *WINDOW), float(next(count)))

    logits = slide(counting, torch.zeros(1, 3, 8, 24), WINDOW, 0.5)[0, 0, 0]
    assert logits.tolist() == [0.0] * 6 + [0.5] * 6 + [1.5] * 6 + [2.0] * 6


def test_views_average_probabilities() -> None:
    images = torch.randn(2, 3, *WINDOW)

    def left(images: Tensor) -> Tensor:
        # A model that is sure of class 0 at the left edge alone.
        logits = torch.zeros(images.shape[0], 2, *WINDOW)
        logits[:, 0, :, 0] = 50.0
        return logits

    probabilities = look(left, images, WINDOW, Views(flip=True)).softmax(1)
    torch.testing.assert_close(probabilities[:, 0, :, 0], torch.full((2, 8), 0.75))
    torch.testing.assert_close(probabilities[:, 0, :, -1], torch.full((2, 8), 0.75))
    torch.testing.assert_close(probabilities[:, 0, :, 5], torch.full((2, 8), 0.5))


def test_scales_see_other_sizes_and_answer_at_the_images_own() -> None:
    images, model = torch.randn(1, 3, *WINDOW), Model()
    logits = look(model, images, WINDOW, Views(scales=(0.5, 1.0, 2.0), stride=1.0))
    assert logits.shape == (1, 2, *WINDOW)
    assert len(model.asked) == 1 + 1 + 4
    smaller = F.interpolate(images, (4, 6), mode="bicubic", antialias=True)
    torch.testing.assert_close(model.asked[0][:, :, :4, :6], smaller)
    torch.testing.assert_close(logits.exp().sum(1), torch.ones(1, *WINDOW))


def test_what_no_view_thinks_possible_stays_finite() -> None:
    def sure(images: Tensor) -> Tensor:
        logits = torch.zeros(images.shape[0], 2, *WINDOW)
        logits[:, 0] = 1e4
        return logits

    assert look(sure, torch.zeros(1, 3, *WINDOW), WINDOW, Views(flip=True)).isfinite().all()


@pytest.mark.parametrize("options", [{"stride": 0.0}, {"stride": 1.1}, {"scales": ()}, {"scales": (1.0, -1.0)}])
def test_what_cannot_work_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        Views(**options)


def test_logits_of_the_size_asked_for_are_left_alone() -> None:
    logits = torch.randn(1, 2, 4, 6)
    assert enlarged(logits, (4, 6)) is logits
    expected = F.interpolate(logits, (9, 13), mode="bilinear", align_corners=False)
    assert torch.equal(enlarged(logits, [9, 13]), expected)
