"""Where decoded images lie, and how they come to the device."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests import job, scenes
from trimtab.data import ImageStore, MaskStore, Preprocess, open_segmentation_data, open_training, to_device
from trimtab.data.segmentation_transform import SegmentationTransform
from trimtab.training.inputs import DEVICE_SHARE, FeatureBatches, place

META = torch.device("meta")
GREY = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
BYTES = 3 * 32 * 32


def _store(part: str = "train", cache_bytes: int = 10**9) -> ImageStore:
    preprocess = Preprocess(image_size=(32, 32), resize="squash", augment="flip", **GREY)
    images = getattr(open_training(job.data(), val_fraction=0.2, seed=0), part)
    store = ImageStore(images, preprocess, cache_bytes=cache_bytes)
    store.fill()
    return store


def test_images_that_fit_are_moved_and_made_into_batches_there() -> None:
    train, val = _store(), _store("val")
    room = int((train.cached_bytes + val.cached_bytes) / DEVICE_SHARE)
    assert (
        place([train, val], META, room)
        == "Decoded images are kept on the GPU: 0.00 GB of 0.00 GB that they may take there."
    )
    for store in (train, val):
        assert store.batch([0, 2, 1], seeds=[1, 2, 3])[0].device == META
        # The next run of the process finds them there, however full the device is by now.
        assert store.move_to(META, 0)


def test_images_that_do_not_fit_stay() -> None:
    train, val = _store(), _store("val")
    told = place([train, val], META, int(train.cached_bytes / DEVICE_SHARE))
    assert told.startswith("9 images are copied to the GPU whenever they are used")
    assert train.batch([0])[0].device == META
    assert val.batch([0])[0].device.type == "cpu"


def test_images_that_are_not_all_kept_stay() -> None:
    store = _store(cache_bytes=5 * BYTES)
    assert store.cached == 5
    assert not store.move_to(META, 10**9)
    assert store.batch([0])[0].device.type == "cpu"


def test_images_with_masks_stay() -> None:
    training = open_segmentation_data(scenes.data(), val_fraction=0.2, seed=0)
    store = MaskStore(training.train, SegmentationTransform(image_size=(32, 32), **GREY), cache_bytes=10**9)
    store.fill()
    assert not store.move_to(META, 10**9)


def test_moving_changes_no_pixel() -> None:
    still, moved = _store(), _store()
    assert moved.move_to(torch.device("cpu"), moved.cached_bytes)
    for one, other in zip(still.batch([3, 1], seeds=[1, 2]), moved.batch([3, 1], seeds=[1, 2]), strict=True):
        assert torch.equal(one, other)


def test_a_copy_to_a_gpu_is_pinned_and_not_waited_for() -> None:
    class Values:
        is_cuda = False

        def __init__(self, *made: Any) -> None:
            self.made = made

        def pin_memory(self) -> Values:
            return Values("pinned")

        def to(self, device: torch.device, non_blocking: bool = False) -> Values:
            return Values(*self.made, device.type, non_blocking)

    copied: Any = to_device(Values(), torch.device("cuda"))  # type: ignore[arg-type]
    assert copied.made == ("pinned", "cuda", True)
    here = torch.ones(2)
    assert to_device(here, torch.device("cpu")) is here


@pytest.mark.parametrize("grids", [False, True])
def test_features_are_given_by_position(grids: bool) -> None:
    values, labels = torch.arange(12.0).view(4, 3), torch.arange(4)
    batches = FeatureBatches((values, 2 * values) if grids else values, labels).batches([[2, 0], [3]])
    (first, targets), (second, _) = batches
    expected = values[[2, 0]]
    assert targets.tolist() == [2, 0]
    if grids:
        assert torch.equal(first[1], 2 * expected)
        assert torch.equal(second[0], values[[3]])
    else:
        assert torch.equal(first, expected)  # type: ignore[arg-type]
