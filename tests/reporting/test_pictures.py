"""The pictures: what they say in words, and that they can be drawn at the edges."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Iterator
from xml.etree import ElementTree as ET

import pytest
import torch

from tests.reporting import made
from tests.reporting.made import HOSTILE, run
from trimtab.methods.base import BlockFigure, PromptSet
from trimtab.reporting import pictures
from trimtab.reporting.figure import Drawing, looks, shown
from trimtab.reporting.runs import read_runs


@pytest.fixture(autouse=True)
def _looks() -> Iterator[None]:
    with looks():
        yield


SVG = "{http://www.w3.org/2000/svg}"


def svg(drawing: Drawing) -> ET.Element:
    return ET.fromstring(base64.b64decode(drawing.uri.partition(",")[2]))


def texts(drawing: Drawing | None) -> list[str]:
    assert drawing is not None
    return ["".join(node.itertext()) for node in svg(drawing).iter(f"{SVG}text")]


def test_curves_of_one_run_and_of_several() -> None:
    one = run("vpt")
    assert {"training", "validation", "epoch", "loss"} <= set(texts(pictures.losses([one])))
    several = pictures.losses([one, run("linear")])
    assert {"vpt", "linear"} <= set(texts(several))
    assert f"vpt {one.history[-1]['train_loss']:.3g}" in several.alt


@pytest.mark.parametrize("count", [1, 2])
def test_a_single_epoch_is_seen(count: int) -> None:
    one = run("vpt")
    short = {**one.described, "metrics": {**one.metrics, "history": one.history[:1]}}
    drawing = pictures.losses([dataclasses.replace(one, described=short, name=str(k)) for k in range(count)])
    colours = {mark.get("style") for mark in svg(drawing).iter(f"{SVG}use") if "var(--s" in mark.get("style", "")}
    # Training and validation have a colour each, and so have the validation losses of runs.
    assert len(colours) == 2


def test_the_kept_epoch_is_told() -> None:
    one = run("vpt")
    curve = pictures.training_curve([one])
    assert curve is not None
    assert f"{100 * one.metrics['val_accuracy']:.1f} %" in curve.alt
    assert "validation accuracy, %" in texts(curve)


def test_what_is_watched_is_the_tasks() -> None:
    (one,) = read_runs([made.segmenter()])
    curve = pictures.training_curve([one])
    assert curve is not None
    assert curve.alt == f"Validation mIoU by epoch. Kept: vpt {100 * one.metrics['val_miou']:.1f} %."
    assert "validation mIoU, %" in texts(curve)


def test_accuracy_against_numbers_has_plain_ticks() -> None:
    drawing = pictures.tradeoff([("a", 1900, 0.5, 0.05), ("b", 240_000, 0.9, 0.01)], "test accuracy")
    assert {"10k", "100k", "a", "b", "test accuracy, %"} <= set(texts(drawing))
    assert "a 1,900 parameters, 50.0 %" in drawing.alt
    unsure = pictures.tradeoff([("a", 1900, 0.5, None), ("b", 240_000, 0.9, None)], "validation mIoU")
    assert unsure.alt.startswith("Validation mIoU against trainable parameters: a 1,900 parameters, 50.0 %")


def affinity_figure(values: torch.Tensor, starts: tuple[int, ...]) -> BlockFigure:
    return BlockFigure("Affinity", "affinity (mean cosine)", "How alike.", values, starts, "hierarchies")


def test_hierarchies_are_told() -> None:
    affinity = torch.tensor([[1.0, 0.9, 0.2], [0.9, 1.0, 0.3], [0.2, 0.3, 1.0]])
    drawing = pictures.between_blocks(affinity_figure(affinity, (0, 2)))
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
    assert texts(pictures.between_blocks(affinity_figure(torch.eye(depth) + 0.5, tuple(range(depth)))))
    drawing = pictures.entries([PromptSet("p", 1, tuple(range(depth)))], depth)
    assert "0" in texts(drawing)
    assert drawing.wide == (depth == 40)
    assert texts(pictures.shares(["p"], [[0.1] * depth], "all"))


def test_shares_are_means_over_the_blocks_that_have_them() -> None:
    drawing = pictures.shares(["p", "q"], [[0.1, 0.3], [None, 0.5]], "patches")
    assert drawing.alt == (
        "Part of the attention of patches that goes to prompts, mean over blocks: p 20.0 %; q 50.0 %."
    )


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


def test_confusion_of_pixels_is_told_in_per_cent_of_the_row() -> None:
    drawing = pictures.confusion(torch.tensor([[75_000, 25_000], [4, 996]]), ["a", "b"], "pixels")
    # A cell of less than half a per cent is empty, and so is one of none.
    assert [text for text in texts(drawing) if text.isdigit()] == ["75", "25", "100"]
    assert drawing.alt == "Confusion matrix of 2 classes: 75996 of 101000 pixels are right."


def test_the_pairs_confused_most_come_first() -> None:
    counts = torch.tensor([[9, 1, 0], [4, 9, 0], [0, 2, 9]])
    assert pictures.confused(counts, 2) == [(1, 0, 4), (2, 1, 2)]
    assert pictures.confused(torch.eye(3, dtype=torch.int64), 2) == []


def test_bars_name_every_class_that_has_one() -> None:
    drawing = pictures.bars(["low", "gone", "high"], [0.25, None, 0.75], 0.5)
    assert drawing.alt == "IoU by class, mean 50.0 %. high 75.0 %; low 25.0 %."
    found = texts(drawing)
    assert {"low", "high", "25.0", "75.0"} <= set(found)
    assert "gone" not in found
    # Each number has paper of its own: the line of the mean does not cross it out.
    papers = [one for one in svg(drawing).iter() if "fill: var(--paper)" in one.get("style", "")]
    assert len(papers) == 2
    assert pictures.bars(["a"], [None], None).alt == "IoU by class, mean not measured. No class is there."


def test_of_many_classes_the_ends_are_shown() -> None:
    labels, values = [f"c{k}" for k in range(60)], [k / 60 for k in range(60)]
    found = set(texts(pictures.bars(labels, values, 0.5)))
    assert {"c59", "c40", "c19", "c0"} <= found
    assert not {"c39", "c20"} & found
    assert "the best and the worst 20 of 60 classes" in found


def test_dots_are_of_every_run_and_class() -> None:
    drawing = pictures.dots(["a", "b", "c"], [("one", [0.2, None, 0.5]), ("two", [0.4, None, None])])
    assert drawing.alt == ("IoU by class. c: one 50.0 %, two not measured; a: one 20.0 %, two 40.0 %.")
    assert {"a", "c", "one", "two"} <= set(texts(drawing))


@pytest.mark.parametrize("draw", ["bars", "dots"])
def test_class_names_stay_text(draw: str) -> None:
    values = [0.5] * len(HOSTILE)
    drawing = pictures.bars(HOSTILE, values, 0.5) if draw == "bars" else pictures.dots(HOSTILE, [(HOSTILE[0], values)])
    assert {shown(name, 18) for name in HOSTILE} <= set(texts(drawing))
