"""The pictures: what they say in words, and that they can be drawn at the edges."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from xml.etree import ElementTree as ET

import pytest
import torch

from tests.report.made import HOSTILE, run
from trimtab.methods.base import Hierarchy, PromptSet
from trimtab.report import pictures
from trimtab.report.drawing import Drawing, looks, shown


@pytest.fixture(autouse=True)
def _looks() -> Iterator[None]:
    with looks():
        yield


def texts(drawing: Drawing | None) -> list[str]:
    assert drawing is not None
    root = ET.fromstring(base64.b64decode(drawing.uri.partition(",")[2]))
    return ["".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")]


def test_curves_of_one_run_and_of_several() -> None:
    one = run("vpt")
    assert {"training", "validation", "epoch", "loss"} <= set(texts(pictures.losses([one])))
    several = pictures.losses([one, run("linear")])
    assert {"vpt", "linear"} <= set(texts(several))
    assert f"vpt {one.history[-1]['train_loss']:.3g}" in several.alt


def test_the_kept_epoch_is_told() -> None:
    one = run("vpt")
    curve = pictures.accuracies([one])
    assert curve is not None
    assert f"{100 * one.metrics['val_accuracy']:.1f} %" in curve.alt


def test_accuracy_against_numbers_has_plain_ticks() -> None:
    drawing = pictures.tradeoff([("a", 1900, 0.5, 0.05), ("b", 240_000, 0.9, 0.01)], "test accuracy")
    assert {"10k", "100k", "a", "b", "test accuracy, %"} <= set(texts(drawing))
    assert "a 1,900 numbers, 50.0 %" in drawing.alt


def test_hierarchies_are_told() -> None:
    affinity = torch.tensor([[1.0, 0.9, 0.2], [0.9, 1.0, 0.3], [0.2, 0.3, 1.0]])
    drawing = pictures.affinity(Hierarchy(affinity, (0, 2)))
    assert drawing.alt == "Affinity between blocks, 0.20 to 1. 2 hierarchies, of blocks 0 to 1, 2."


def test_where_prompts_enter_is_told() -> None:
    sets = [PromptSet("first", 4, (0,), (1, 2, 3)), PromptSet("all", 2, (0, 1, 3))]
    drawing = pictures.entries(sets, 4)
    assert drawing.alt == (
        "Where prompts enter: first, 4 prompts, put in at block 0, carried on to 1 to 3; "
        "all, 2 prompts, put in at block 0, 1, 3."
    )
    assert {"first (4)", "all (2)"} <= set(texts(drawing))


@pytest.mark.parametrize("depth", [1, 12, 40])
def test_any_depth_can_be_drawn(depth: int) -> None:
    assert texts(pictures.affinity(Hierarchy(torch.eye(depth) + 0.5, tuple(range(depth)))))
    drawing = pictures.entries([PromptSet("p", 1, tuple(range(depth)))], depth)
    assert "0" in texts(drawing)
    assert drawing.wide == (depth == 40)
    assert texts(pictures.shares(["p"], [[0.1] * depth]))


def test_shares_are_means_over_the_blocks_that_have_them() -> None:
    drawing = pictures.shares(["p", "q"], [[0.1, 0.3], [None, 0.5]])
    assert drawing.alt.endswith("mean over blocks: p 20.0 %; q 50.0 %.")


def test_confusion_counts_and_names_every_class() -> None:
    counts = torch.diag(torch.arange(1, len(HOSTILE) + 1))
    counts[0, 1] = 77
    drawing = pictures.confusion(counts, HOSTILE)
    found = texts(drawing)
    assert "77" in found
    for name in HOSTILE:
        assert found.count(shown(name, 14)) == 2
    assert drawing.alt == "Confusion matrix of 8 classes: 36 of 113 images are right."


def test_classes_without_images_have_an_empty_row() -> None:
    assert texts(pictures.confusion(torch.tensor([[0, 0], [1, 2]]), ["a", "b"])).count("0") == 0
