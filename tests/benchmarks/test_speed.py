"""What is timed is what it is called: the subjects agree with each other, and their counts are right."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.subjects import Setting, make
from benchmarks.turns import prepared

from benchmarks import speed


def _setting(head: str = "classifier") -> Setting:
    return Setting("tiny", 3, 32, 2, "fp32", "cpu", False, head)


def test_concatenated_and_context_prompts_are_one_model() -> None:
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    subjects = [make(name, _setting()).eval() for name in ("concatenated", "vpt", "folded vpt")]
    with torch.inference_mode():
        logits = [subject(images) for subject in subjects]
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits[2], logits[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head", ["classifier", "linear"])
def test_folding_takes_operations_away(head: str) -> None:
    subjects = ("plain", "vpt", "folded vpt")
    flops = {name: prepared("forward", name, _setting(head))[1]["flops"] for name in subjects}
    assert flops["folded vpt"] < flops["vpt"]
    # All tokens of the last block are needed where every pixel has a class.
    assert (flops["folded vpt"] < flops["plain"]) == (head == "classifier")


@pytest.mark.nightly
def test_subjects_are_timed_in_turn_and_their_processes_end() -> None:
    records = speed.measure("training", ["concatenated", "vpt"], _setting(), rounds=2, draws=2)
    assert [r["subject"] for r in records] == ["concatenated", "vpt"]
    assert all(r["seconds"] > 0 and r["flops"] > 0 and r["saved_bytes"] > 0 and r["faults"] >= 0 for r in records)
    assert records[0]["speed_to_reference"] == 1.0
    assert records[1]["trainable"] == records[0]["trainable"]
    assert "| vpt |" in speed.table(records)
    assert not multiprocessing.active_children()


@pytest.mark.nightly
def test_a_subject_whose_process_fails_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="times nothing known ended"):
        speed.measure("forward", ["nothing known", "plain"], _setting(), rounds=1)
    said = capfd.readouterr().err
    assert "KeyError" in said
    assert said.count("Traceback") == 1


def test_records_are_kept_and_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(kind: str, subjects: list[str], setting: Setting, rounds: int, draws: int) -> Any:
        return {s: ({"flops": 10, "trainable": 1, "faults": 0}, [1.0] * rounds * draws) for s in subjects}

    monkeypatch.setattr(speed, "in_turn", timed)
    # It looks for two seconds whether others are busy.
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    command = "--models tiny --prompts 2 --images 32 --batch-size 2 --rounds 2 --kinds forward --allow-busy"
    words = [*command.split(), "--subjects", "vpt", "--out", str(tmp_path)]
    for more in ([], [], ["--head", "linear"]):
        assert speed.main([*words, *more]) == 0
    found = json.loads((tmp_path / "speed.json").read_text(encoding="utf-8"))
    assert [(r["subject"], r["head"]) for r in found] == [
        ("plain", "classifier"),
        ("vpt", "classifier"),
        ("plain", "linear"),
        ("vpt", "linear"),
    ]
