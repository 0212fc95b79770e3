"""TF32 and deterministic algorithms: set for a run, recorded, and as before afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests import job
from trimtab.errors import ConfigError
from trimtab.recipe import FitConfig
from trimtab.training.arithmetic import arithmetic, resolve_tf32


class Folder:
    """A run's folder: a new one, or one that was begun with these settings."""

    def __init__(self, begun: dict[str, Any] | None = None) -> None:
        self.going_on, self.begun = begun is not None, begun

    def recorded(self) -> dict[str, Any]:
        return self.begun or {}


@pytest.mark.parametrize(
    ("device", "options", "begun", "used"),
    [
        ("cuda", {}, None, True),
        ("cuda", {"tf32": False}, None, False),
        ("cuda", {"precision": "bf16"}, None, False),
        ("cpu", {}, None, False),
        ("cuda", {}, {"tf32": True}, True),
        # Of a version that did not know it.
        ("cuda", {}, {}, False),
    ],
)
def test_tf32_is_for_float32_on_a_gpu(device: str, options: Any, begun: dict[str, Any] | None, used: bool) -> None:
    config = FitConfig("x", **{"precision": "fp32", **options})
    folder: Any = Folder(begun)
    assert resolve_tf32(config, torch.device(device), folder).tf32 is used


@pytest.mark.parametrize("used", [True, False])
def test_tf32_ends_with_the_run(used: bool) -> None:
    before = torch.get_float32_matmul_precision()
    with arithmetic(FitConfig("x", tf32=used)):
        assert torch.get_float32_matmul_precision() == ("high" if used else before)
    assert torch.get_float32_matmul_precision() == before


def test_deterministic_algorithms_end_with_the_run() -> None:
    with arithmetic(FitConfig("x", tf32=False, deterministic=True)):
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()


def test_what_has_no_deterministic_form_is_refused_in_a_line() -> None:
    with (
        pytest.raises(ConfigError, match=r"^deterministic cannot be had here: put_ .*\. Leave it out, or train on the"),
        arithmetic(FitConfig("x", tf32=False, deterministic=True)),
    ):
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))
    assert not torch.are_deterministic_algorithms_enabled()


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="size"), arithmetic(FitConfig("x", tf32=False, deterministic=True)):
        torch.zeros(3) + torch.zeros(2)


def test_a_deterministic_run_says_so_and_is_the_same_on_a_cpu(tmp_path: Path) -> None:
    asked = job.run("vpt", tmp_path / "a", deterministic=True)
    assert job.bits(asked) == job.bits(job.finished("vpt"))
    identity = job.read_json(asked / "config.json")["identity"]
    assert identity["deterministic"] is True
    # Neither is there where it changes nothing: runs of earlier versions go on.
    assert "tf32" not in identity
    assert "deterministic" not in job.read_json(job.finished("vpt") / "config.json")["identity"]
