"""What is counted is what a model really does."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests import job
from trimtab import checkpoint
from trimtab.cli.commands import main
from trimtab.inference.cost import cost


def operations(model: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> int:
    # torch 2.6 does not count what is done in a CPU's fused attention.
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(images)
    return int(counter.get_total_flops())


@pytest.mark.parametrize("method", job.METHODS)
def test_operations_are_those_of_the_model(method: str) -> None:
    counted = cost(job.finished(method))
    model = checkpoint.restore(checkpoint.read(job.finished(method)))
    trained = model.num_trainable()
    images, found = torch.randn(1, 3, *model.backbone.image_size), []
    for one in (model.requires_grad_(False), model.fold()):
        found.append(operations(one, images))
    assert [counted["flops"]["tuned"], counted["flops"]["folded"]] == found
    assert counted["flops"]["folded"] <= counted["flops"]["tuned"]
    assert counted["parameters"]["trained"] == trained
    assert counted["parameters"]["backbone"] == sum(v.numel() for v in model.backbone.named_weights().values())
    assert counted["bytes"]["backbone"] == 4 * counted["parameters"]["backbone"]
    assert counted["bytes"]["trained"] >= 4 * trained


def test_the_plain_backbone_is_timms() -> None:
    backbone = checkpoint.restore(checkpoint.read(job.finished("vpt"))).backbone
    done = operations(backbone.model.forward_features, torch.randn(1, 3, *backbone.image_size))
    assert cost(job.finished("vpt"))["flops"]["plain"] == done


def test_inspect_shows_it_if_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(job.finished("vpt")), "--json"]) == 0
    assert "cost" not in json.loads(capsys.readouterr().out)
    assert main(["inspect", str(job.finished("vpt")), "--cost", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cost"] == cost(job.finished("vpt"))
