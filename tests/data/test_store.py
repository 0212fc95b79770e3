from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from trimtab.data import ImageSet, ImageStore, Preprocess, open_training
from trimtab.errors import ConfigError, DataError

EVERYTHING = 1 << 30
IMAGE_BYTES = 3 * 8 * 8
PLAN = [[0, 3], [1, 1, 6], [4], [7, 2, 5]]


def preprocess(**changes: Any) -> Preprocess:
    values = {"image_size": (8, 8), "resize": "squash", "mean": (0.5,) * 3, "std": (0.5,) * 3, **changes}
    return Preprocess(**values)


@pytest.fixture
def images(tmp_path: Path, class_folders: Callable[..., Path]) -> ImageSet:
    return open_training(class_folders(tmp_path, {"a": 4, "b": 4}), val_fraction=0).train


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every file that is read, as it is."""
    done: list[Path] = []
    original = Preprocess.read

    def read(self: Preprocess, path: Path) -> torch.Tensor:
        done.append(path)
        return original(self, path)

    monkeypatch.setattr(Preprocess, "read", read)
    return done


def test_batch(images: ImageSet) -> None:
    store = ImageStore(images, preprocess(), cache_bytes=EVERYTHING)
    pixels, labels = store.batch([6, 0, 6])
    assert (pixels.shape, pixels.dtype) == ((3, 3, 8, 8), torch.uint8)
    assert (labels.tolist(), labels.dtype) == ([1, 0, 1], torch.int64)
    assert torch.equal(pixels[0], preprocess().read(images.paths[6]))
    assert torch.equal(pixels[1], preprocess().read(images.paths[0]))
    assert torch.equal(pixels[2], pixels[0])


def test_fill_decodes_each_image_once(images: ImageSet, reads: list[Path]) -> None:
    store = ImageStore(images, preprocess(), cache_bytes=EVERYTHING)
    assert (store.cached, store.cached_bytes) == (0, 0)
    steps: list[int] = []
    store.fill(steps.append)
    assert steps == [1] * 8
    assert (store.cached, store.cached_bytes) == (8, 8 * IMAGE_BYTES)
    list(store.batches(PLAN))
    store.fill()
    assert sorted(reads) == sorted(images.paths)


def test_batches_keep_what_they_decode(images: ImageSet, reads: list[Path]) -> None:
    store = ImageStore(images, preprocess(), cache_bytes=EVERYTHING)
    list(store.batches([[0, 1, 2], [3, 4, 5], [6, 7]]))
    list(store.batches(PLAN))
    assert store.cached == len(reads) == 8


def test_the_bound_holds(images: ImageSet, reads: list[Path]) -> None:
    store = ImageStore(images, preprocess(), cache_bytes=3 * IMAGE_BYTES + 1)
    store.fill()
    store.fill()
    list(store.batches(PLAN))
    assert (store.cached, store.cached_bytes) == (3, 3 * IMAGE_BYTES)
    assert set(reads) == set(images.paths)


@pytest.mark.parametrize("augment", ["none", "flip", "crop", "crop-flip"])
def test_the_bytes_are_the_same_cached_or_not(images: ImageSet, augment: str) -> None:
    settings = preprocess(resize="shorter", crop_pct=0.8, augment=augment)

    def seeds_of(index: int) -> int:
        return 1000 + index

    def run(cache_bytes: int, threads: int, filled: bool) -> list[tuple[torch.Tensor, torch.Tensor]]:
        store = ImageStore(images, settings, cache_bytes=cache_bytes, threads=threads)
        if filled:
            store.fill()
        return list(store.batches(PLAN, seeds_of))

    expected = run(EVERYTHING, 1, True)
    one_by_one = ImageStore(images, settings, cache_bytes=0, threads=1)
    for (pixels, labels), indices in zip(expected, PLAN, strict=True):
        alone, same = one_by_one.batch(indices, seeds=[seeds_of(index) for index in indices])
        assert torch.equal(alone, pixels)
        assert torch.equal(same, labels)
    for cache_bytes in (0, 700, EVERYTHING):
        for threads in (1, 3):
            for filled in (False, True):
                for found, wanted in zip(run(cache_bytes, threads, filled), expected, strict=True):
                    assert torch.equal(found[0], wanted[0])
                    assert torch.equal(found[1], wanted[1])


def test_the_next_batch_is_decoded_while_one_is_used(images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ImageStore(images, preprocess(), cache_bytes=0)
    started = {index: threading.Event() for index in range(4)}
    original = ImageStore.batch

    def batch(self: ImageStore, indices: Sequence[int], **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
        started[indices[0]].set()
        return original(self, indices, **options)

    monkeypatch.setattr(ImageStore, "batch", batch)
    for position, _ in enumerate(store.batches([[0], [1], [2], [3]])):
        if position < 3:
            assert started[position + 1].wait(10)
        if position < 2:
            assert not started[position + 2].is_set()


def test_leaving_batches_early_leaves_no_thread(images: ImageSet) -> None:
    before = threading.active_count()
    batches = ImageStore(images, preprocess(), cache_bytes=0).batches(PLAN)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


@pytest.fixture
def broken(images: ImageSet) -> list[Path]:
    chosen = [images.paths[index] for index in (1, 2, 5, 6)]
    for path in chosen[:3]:
        path.write_bytes(b"not an image")
    chosen[3].write_bytes(chosen[3].read_bytes()[:60])
    return chosen


@pytest.mark.parametrize("cache_bytes", [0, EVERYTHING])
def test_broken_images_are_reported_together(images: ImageSet, broken: list[Path], cache_bytes: int) -> None:
    steps: list[int] = []
    with pytest.raises(DataError) as caught:
        ImageStore(images, preprocess(), cache_bytes=cache_bytes).fill(steps.append)
    message = str(caught.value)
    assert message.startswith("4 of 8 train images cannot be read: ")
    assert message.endswith(", and 1 more; replace or remove them.")
    assert [str(path) in message for path in broken] == [True, True, True, False]
    assert "(it is empty or not an image)" in message
    assert "\n" not in message
    assert len(steps) == 8


def test_a_broken_image_in_a_batch(images: ImageSet, broken: list[Path]) -> None:
    store = ImageStore(images, preprocess(), cache_bytes=EVERYTHING)
    with pytest.raises(DataError, match=broken[0].name):
        store.batch([0, 1])
    batches = store.batches([[0], [1], [2]])
    next(batches)
    with pytest.raises(DataError, match=broken[0].name):
        next(batches)


def test_fill_stops_at_an_interrupt(images: ImageSet, reads: list[Path]) -> None:
    def interrupt(count: int) -> None:
        raise KeyboardInterrupt

    many = images.select([0, 1] * 500)
    with pytest.raises(KeyboardInterrupt):
        ImageStore(many, preprocess(), cache_bytes=0, threads=1).fill(interrupt)
    assert len(reads) < len(many)


def test_an_empty_set(images: ImageSet) -> None:
    store = ImageStore(images.select([], "val"), preprocess(), cache_bytes=0)
    store.fill()
    assert list(store.batches([])) == []


@pytest.mark.parametrize("options", [{"cache_bytes": -1}, {"cache_bytes": 0, "threads": 0}])
def test_options_out_of_range(images: ImageSet, options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"cache_bytes is .* and threads is"):
        ImageStore(images, preprocess(), **options)
