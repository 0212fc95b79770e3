"""Batches of images with masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.scenes import data, scene, write

from trimtab.data import VOID, MaskSet, MaskStore, SegmentationTransform, open_segmentation_data
from trimtab.errors import DataError


def opened(path: Path, *, whole: bool = False, cache: int = 10**8, size: tuple[int, int] = (32, 32)) -> MaskStore:
    images = open_segmentation_data(path, val_fraction=0.0).train
    assert isinstance(images, MaskSet)
    prepare = SegmentationTransform(image_size=size, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    return MaskStore(images, prepare, cache_bytes=cache, whole=whole)


def test_windows_come_as_batches() -> None:
    batches = list(opened(data()).batches([[0, 1, 2], [3, 4]], lambda index: index))
    assert [tuple(images.shape) for images, _ in batches] == [(3, 3, 32, 32), (2, 3, 32, 32)]
    assert [tuple(masks.shape) for _, masks in batches] == [(3, 32, 32), (2, 32, 32)]


def test_whole_images_come_by_size_with_the_files_own_masks() -> None:
    """Sizes take turns in the data, so that no two neighbours are alike; order is kept."""
    batches = list(opened(data(), whole=True).batches([[0, 2, 1], [3]]))
    assert [tuple(images.shape) for images, _ in batches] == [(2, 3, 38, 32), (1, 3, 32, 42), (1, 3, 32, 42)]
    assert [tuple(masks.shape) for _, masks in batches] == [(2, 52, 44), (1, 40, 52), (1, 40, 52)]
    expected = torch.from_numpy(scene(3, (52, 44))[1])
    assert torch.equal(batches[0][1][1], expected)


@pytest.mark.parametrize("cache", [0, 10**8, 20_000])
def test_the_cache_changes_nothing(cache: int) -> None:
    store, other = opened(data(), cache=cache), opened(data())
    store.fill()
    assert store.cached_bytes <= cache
    for (a, b), (c, d) in zip(
        store.batches([[0, 1], [5, 3]], lambda i: i + 7),
        other.batches([[0, 1], [5, 3]], lambda i: i + 7),
        strict=True,
    ):
        assert torch.equal(a, c)
        assert torch.equal(b, d)


def test_void_stays_void() -> None:
    store = opened(data(), whole=True)
    _, masks = next(iter(store.batches([[0]])))
    assert (masks[0, :2] == VOID).all()
    assert set(masks.unique().tolist()) <= {0, 1, 2, VOID}


def fault(store: MaskStore) -> str:
    with pytest.raises(DataError) as caught:
        store.fill()
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_mask_of_another_size_is_told(tmp_path: Path) -> None:
    write(tmp_path, [("train", 3)])
    Image.fromarray(np.zeros((40, 50), dtype=np.uint8)).save(tmp_path / "masks" / "train" / "002.png")
    store = opened(tmp_path)
    told = fault(store)
    assert "1 of 3 train images cannot be read" in told
    assert "002.jpg (mask 002.png: it is 40x50 and its image 40x52 (height x width))" in told


def test_a_value_that_no_class_has_is_told(tmp_path: Path) -> None:
    write(tmp_path, [("train", 3)])
    (tmp_path / "palette.csv").write_text("name,value\na,0\nb,1\n")
    assert "mask 001.png: it has the value 2, which no class has" in fault(opened(tmp_path))


def test_a_broken_mask_is_told(tmp_path: Path) -> None:
    write(tmp_path, [("train", 3)])
    store = opened(tmp_path)
    (tmp_path / "masks" / "train" / "003.png").write_bytes(b"")
    assert "mask 003.png: it is empty or not an image" in fault(store)


def test_palette_images_are_read_by_their_numbers(tmp_path: Path) -> None:
    def indexed(mask: np.ndarray, path: Path) -> None:  # type: ignore[type-arg]
        image = Image.fromarray(mask).convert("L")
        picture = Image.frombytes("P", image.size, image.tobytes())
        picture.putpalette([9] * 768)
        picture.save(path)

    write(tmp_path, [("train", 1)], save=indexed)
    _, masks = next(iter(opened(tmp_path, whole=True).batches([[0]])))
    assert torch.equal(masks[0], torch.from_numpy(scene(1)[1]))
