"""Loss and metrics of segmentation, against counting by hand and torchmetrics' own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from trimtab.data import VOID
from trimtab.errors import ConfigError
from trimtab.heads import WeightedLogits
from trimtab.recipe import Recipe
from trimtab.tasks import make_task
from trimtab.tasks.segmentation import Segmentation, SegmentationMetrics, scores_of, segmentation_loss

CLASSES = 5


def random_set(count: int = 6, size: tuple[int, int] = (7, 9)) -> tuple[Tensor, Tensor]:
    """Logits and masks; a fifth of the pixels is void, and class 3 is neither there nor predicted."""
    logits = torch.randn(count, CLASSES, *size)
    logits[:, 3] = -99.0
    masks = torch.randint(0, CLASSES, (count, *size))
    masks[masks == 3] = 0
    masks[torch.rand(count, *size) < 0.2] = VOID
    return logits, masks.to(torch.uint8)


def counted(logits: Tensor, masks: Tensor) -> tuple[list[float | None], float]:
    """Intersection over union of each class and the share of right pixels, pixel by pixel."""
    hits, unions = [0] * CLASSES, [0] * CLASSES
    right = total = 0
    for guess, true in zip(logits.argmax(1).flatten().tolist(), masks.flatten().tolist(), strict=True):
        if true == VOID:
            continue
        total += 1
        right += guess == true
        for k in range(CLASSES):
            hits[k] += guess == k and true == k
            unions[k] += k in (guess, true)
    return [hit / union if union else None for hit, union in zip(hits, unions, strict=True)], right / total


def tallied(logits: Tensor, masks: Tensor, batch: int = 2) -> SegmentationMetrics:
    metric = SegmentationMetrics(CLASSES)
    for first in range(0, len(masks), batch):
        metric.update(logits[first : first + batch], masks[first : first + batch])
    return metric


@pytest.mark.parametrize("batch", [1, 2, 6])
def test_metrics_are_a_count_over_the_whole_set(batch: int) -> None:
    logits, masks = random_set()
    metrics = tallied(logits, masks, batch).compute(6)
    iou, accuracy = counted(logits, masks)
    assert metrics["iou"] == [None if value is None else pytest.approx(value) for value in iou]
    known = [value for value in iou if value is not None]
    assert metrics["miou"] == pytest.approx(sum(known) / len(known))
    assert metrics["pixel_accuracy"] == pytest.approx(accuracy)
    assert metrics["loss"] == pytest.approx(float(F.cross_entropy(logits, masks.long(), ignore_index=VOID)))


def test_metrics_are_torchmetrics_own() -> None:
    logits, masks = random_set()
    metrics = tallied(logits, masks).compute(6)
    jaccard = MulticlassJaccardIndex(CLASSES, ignore_index=VOID)
    accuracy = MulticlassAccuracy(CLASSES, average="micro", ignore_index=VOID)
    assert metrics["miou"] == pytest.approx(float(jaccard(logits, masks.long())))
    assert metrics["pixel_accuracy"] == pytest.approx(float(accuracy(logits, masks.long())))


def test_a_set_is_not_the_mean_of_its_images() -> None:
    """One image wholly right and one wholly wrong of a class that is rare: the whole set says otherwise."""
    masks = torch.tensor([[[0, 0, 0, 1]], [[1, 1, 0, 0]]])
    logits = F.one_hot(torch.tensor([[[0, 0, 0, 1]], [[0, 0, 1, 1]]]), CLASSES).movedim(-1, 1).float()
    metric = tallied(logits, masks)
    assert [image["miou"] for image in metric.images] == [1.0, 0.0]
    assert metric.compute(2)["miou"] == pytest.approx((3 / 7 + 1 / 5) / 2)


def test_images_without_a_class_count_nothing() -> None:
    metric = tallied(torch.randn(2, CLASSES, 3, 3), torch.full((2, 3, 3), VOID))
    assert metric.compute(2) == {
        "miou": None,
        "pixel_accuracy": None,
        "mean_class_accuracy": None,
        "iou": [None] * CLASSES,
        "loss": None,
    }
    assert metric.images == [{"miou": None, "pixel_accuracy": None}] * 2


def test_a_class_that_is_only_predicted_counts_against() -> None:
    matrix = torch.tensor([[3, 1, 0], [0, 0, 0], [0, 0, 0]])
    assert scores_of(matrix)["iou"] == [0.75, 0.0, None]
    assert scores_of(matrix)["mean_class_accuracy"] == 0.75


def test_logits_are_enlarged_to_the_masks() -> None:
    logits = torch.randn(1, CLASSES, 4, 6)
    masks = F.interpolate(logits, (8, 12), mode="bilinear", align_corners=False).argmax(1)
    assert tallied(logits, masks).compute(1)["pixel_accuracy"] == 1.0


def test_parts_of_processes_come_together() -> None:
    logits, masks = random_set(4)
    whole, half, rest = tallied(logits, masks), tallied(logits[:3], masks[:3]), tallied(logits[3:], masks[3:])
    others = iter([rest.matrix[None], rest.loss[None]])
    metrics = half.compute(4, lambda mine: torch.cat([mine, next(others)]))
    assert {k: v for k, v in metrics.items() if k != "loss"} == {
        k: v for k, v in whole.compute(4).items() if k != "loss"
    }
    assert metrics["loss"] == pytest.approx(whole.compute(4)["loss"])


def test_a_loss_is_the_sum_of_its_images_losses() -> None:
    logits, masks = random_set()
    parts = [segmentation_loss(logits[k : k + 1], masks[k : k + 1]) for k in range(6)]
    torch.testing.assert_close(segmentation_loss(logits, masks), torch.stack(parts).sum())


def test_void_pixels_have_no_loss_and_no_gradient() -> None:
    logits, masks = random_set()
    logits.requires_grad_()
    segmentation_loss(logits, masks).backward()
    assert (logits.grad.movedim(1, -1)[masks == VOID] == 0).all()
    assert (logits.grad.movedim(1, -1)[masks != VOID] != 0).any(-1).all()
    assert segmentation_loss(logits, torch.full_like(masks, VOID)) == 0


def test_auxiliary_losses_have_their_weight() -> None:
    logits, masks = random_set()
    task = Segmentation.from_options({})
    weighted = [WeightedLogits(1.0, logits), WeightedLogits(0.4, 2 * logits)]
    expected = segmentation_loss(logits, masks) + 0.4 * segmentation_loss(2 * logits, masks)
    torch.testing.assert_close(task.loss(weighted, masks), expected)


def test_batches_are_smaller_than_a_classifiers() -> None:
    assert make_task("segmentation").recipe(Recipe()).batch_size == 16
    assert make_task("segmentation").recipe(Recipe(batch_size=4)).batch_size == 4
    assert make_task("classification").recipe(Recipe()) == Recipe()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("segmentaton", {}, "no task 'segmentaton'. Did you mean 'segmentation'"),
        ("segmentation", {"haed": "dpt"}, "no option 'haed'. Did you mean 'head'"),
        ("segmentation", {"ignore_label": -1}, "ignore_label is -1"),
        ("segmentation", {"resize": "crop"}, "resize is 'crop'"),
        ("classification", {"head": "dpt"}, "The task 'classification' has no option 'head'"),
    ],
)
def test_what_cannot_work_is_refused(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_task(name, options)


def test_what_is_saved_makes_the_same_task() -> None:
    from trimtab.data.masks import codes_of_values
    from trimtab.tasks import saved_task

    task = Segmentation(
        Segmentation.from_options({"head": "setr-pup", "channels": 5, "taps": (0, 1, 2, 2)}).config,
        codes_of_values([0, 3, 7], [255]),
    )
    import json

    again = saved_task("segmentation", json.loads(json.dumps(task.saved(None))))
    assert isinstance(again, Segmentation)
    assert (again.head, again.codes) == (task.head, task.codes)
