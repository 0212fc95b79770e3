"""What ``auto`` stands for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trimtab.errors import ConfigError
from trimtab.ops import precision
from trimtab.ops.precision import VARIABLE, has_matrix_units, resolve_precision


@pytest.fixture(params=[True, False])
def units(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the device has matrix units."""
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setattr(precision, "has_matrix_units", lambda device: request.param)
    return bool(request.param)


def test_auto_goes_by_the_device(units: bool) -> None:
    assert resolve_precision("auto", "cpu") == ("bf16" if units else "fp32")


def test_an_adapter_of_float32_stays_in_float32(units: bool) -> None:
    assert resolve_precision("auto", "cpu", trained="fp32") == "fp32"
    assert resolve_precision("auto", "cpu", trained="bf16") == ("bf16" if units else "fp32")


@pytest.mark.usefixtures("units")
@pytest.mark.parametrize("asked", ["fp32", "bf16"])
def test_what_is_asked_for_is_taken(asked: str) -> None:
    assert resolve_precision(asked, "cpu", trained="fp32") == asked


@pytest.mark.usefixtures("units")
@pytest.mark.parametrize("said", ["fp32", "bf16"])
def test_the_environment_speaks_for_the_device(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, said)
    assert resolve_precision("auto", "cpu") == said
    assert resolve_precision("auto", "cpu", trained="fp32") == "fp32"


def test_other_words_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="precision is 'half'; use one of auto, fp32, bf16"):
        resolve_precision("half", "cpu")
    monkeypatch.setenv(VARIABLE, "yes")
    with pytest.raises(ConfigError, match="TRIMTAB_PRECISION is 'yes'; use one of fp32, bf16"):
        resolve_precision("auto", "cpu")


@pytest.mark.parametrize(("flags", "found"), [("avx2 amx_bf16 amx_tile", True), ("avx2 avx512_bf16", False)])
def test_a_cpu_says_what_it_has(flags: str, found: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda path, **_: f"flags : fpu {flags}\n")
    assert has_matrix_units(torch.device("cpu")) is found


def test_a_system_without_such_a_file_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(path: Path, **_: str) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    assert not has_matrix_units(torch.device("cpu"))


@pytest.mark.parametrize(("capability", "found"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_a_gpu_has_them_from_8_0(capability: tuple[int, int], found: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert has_matrix_units(torch.device("cuda")) is found
