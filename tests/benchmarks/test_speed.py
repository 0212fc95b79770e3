"""What is timed is what it is called: the subjects agree with each other, and their counts are right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from benchmarks.subjects import Setting, make

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
    records = speed.measure("forward", ["plain", "vpt", "folded vpt"], _setting(head), rounds=2)
    flops = {record["subject"]: record["flops"] for record in records}
    assert flops["folded vpt"] < flops["vpt"]
    # All tokens of the last block are needed where every pixel has a class.
    assert (flops["folded vpt"] < flops["plain"]) == (head == "classifier")
    assert "| folded vpt |" in speed.table(records)


def test_records_are_kept_and_replaced(tmp_path: Path) -> None:
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
