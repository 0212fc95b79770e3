"""What an earlier version saved goes on working: ``tests/landed`` was written by commit 347432d."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import trimtab
from trimtab.data import BUILT_IN
from trimtab.tasks.classification import Predictor

LANDED = Path(__file__).parent / "landed"
EXPECTED = json.loads((LANDED / "expected.json").read_text(encoding="utf-8"))
SETTINGS = {"method": "vpt", "method_options": {"num_prompts": 2}, "backbone": "trimtab-micro"}
"""Of the run in ``unfinished``, killed after its first epoch, and of ``vpt``, which is the same run undisturbed."""


@pytest.mark.parametrize("name", EXPECTED)
def test_an_adapter_predicts_what_it_did(name: str) -> None:
    predictor = trimtab.load(LANDED / name, device="cpu")
    first = EXPECTED[name]["images"][0].rpartition("/")[0].rpartition("/")
    pictures = BUILT_IN[first[0]].images(first[2])[: len(EXPECTED[name]["images"])]
    read = [predictor.preprocess.read(picture) for picture in pictures]
    if isinstance(predictor, Predictor):
        logits = predictor.logits(predictor.preprocess.finish(read))
    else:
        whole = torch.stack([predictor.preprocess.whole(image) for image in read])
        logits = predictor.logits(whole)[:, :, ::16, ::16]
    # To rounding: other processors add in another order.
    expected = torch.tensor(EXPECTED[name]["logits"])
    torch.testing.assert_close(logits.flatten(1), expected, rtol=1e-4, atol=2e-5)


def test_a_run_that_was_killed_is_finished(tmp_path: Path) -> None:
    out = Path(shutil.copytree(LANDED / "unfinished", tmp_path / "run"))
    said = trimtab.fit("digits", out=out, **SETTINGS, epochs=2, limit=60, image_size="32", resume=True)
    assert said.best_epoch in (1, 2)
    undisturbed = load_file(LANDED / "vpt" / "adapter_model.safetensors")
    resumed = load_file(out / "adapter_model.safetensors")
    torch.testing.assert_close(resumed, undisturbed, rtol=1e-4, atol=2e-5)
