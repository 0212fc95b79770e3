"""A training step: what it asks of the device, and that it never waits for it."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from tests import job, scenes
from trimtab.training.step import TrainingStep

WAITS = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2", "unique_dim"}
"""Operations whose result the CPU needs to go on: float(), bool(), .item(), boolean indexing and the like."""


class Counted(TorchDispatchMode):
    """Operations that reach the device, counted by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.counts[name] += 1
        if name.startswith("index") and any(
            x.dtype == torch.bool for x in pytree.tree_leaves(args) if isinstance(x, Tensor)
        ):
            # A GPU first counts how many there are.
            self.counts["nonzero"] += 1
        return func(*args, **(kwargs or {}))

    @property
    def waits(self) -> int:
        return sum(self.counts[name] for name in WAITS)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    """What all training steps of this test ask for, with the optimiser that a GPU has."""
    mode, take, adamw = Counted(), TrainingStep.take, torch.optim.AdamW

    def watched(self: TrainingStep, *args: Any) -> Tensor:
        with mode:
            return take(self, *args)

    monkeypatch.setattr(TrainingStep, "take", watched)
    monkeypatch.setattr(torch.optim, "AdamW", lambda groups, lr, fused: adamw(groups, lr=lr, fused=True))
    return mode


@pytest.mark.parametrize("read", [float, bool, Tensor.item, lambda x: torch.ones(1)[x > 0]])
def test_waiting_is_counted(read: Any) -> None:
    with Counted() as mode:
        read(torch.ones(1))
    assert mode.waits == 1


@pytest.mark.parametrize("method", job.METHODS)
def test_no_step_waits_for_the_device(method: str, counted: Counted, tmp_path: Path) -> None:
    job.run(method, tmp_path / "a", augment="flip", epochs=1)
    # Three steps were taken, and each ends with one update.
    assert counted.counts["_fused_adamw_"] >= 3
    assert counted.waits == 0


def test_no_step_of_a_segmenter_waits_for_the_device(counted: Counted, tmp_path: Path) -> None:
    job.run("vpt", tmp_path / "a", images=scenes.data(), task="segmentation", probe_epochs=0)
    assert counted.counts["_fused_adamw_"] >= 2
    assert counted.waits == 0
