"""Which images are drawn."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from benchmarks.splits import apportion, draw_split, write_test

from tests.benchmarks.pretended import make_set


def images(path: Path) -> list[tuple[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return [(row["path"], row["label"]) for row in csv.DictReader(file)]


def test_a_split_is_disjoint_stratified_and_its_seeds_own(tmp_path: Path) -> None:
    make_set(tmp_path / "data", "cifar10")
    data = tmp_path / "data" / "cifar10"
    drawn = [draw_split(data, tmp_path / "s", seed=seed, train_images=8, val_images=6) for seed in (0, 1, 0)]
    train, val = images(drawn[0].train), images(drawn[0].val)
    assert (len(set(train)), len(set(val)), len(set(train) & set(val))) == (8, 6, 0)
    assert {label for _, label in train} == {"ant", "bee", "cat"}
    assert images(drawn[1].train) != train
    assert drawn[0].digest == drawn[2].digest != drawn[1].digest


def test_the_test_images_are_the_same_for_everybody(tmp_path: Path) -> None:
    make_set(tmp_path / "data", "cifar10")
    digests = {write_test(tmp_path / "data" / "cifar10", tmp_path / f"{k}.csv", 9) for k in range(2)}
    assert len(digests) == 1
    assert images(tmp_path / "0.csv") == images(tmp_path / "1.csv")
    write_test(tmp_path / "data" / "cifar10", tmp_path / "all.csv", 500)
    assert len(images(tmp_path / "all.csv")) == 18


def test_apportion() -> None:
    assert apportion([90, 9, 1], 10, least=1) == [8, 1, 1]
    assert apportion([50, 30, 20], 10, least=0) == [5, 3, 2]
    assert apportion([4, 0], 3, least=0) == [3, 0]
    with pytest.raises(ValueError, match="at least 1 of each"):
        apportion([5, 5, 5], 2, least=1)
