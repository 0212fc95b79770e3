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
SETTINGS = {"backbone": "trimtab-micro"}
"""Of the runs in ``unfinished...``, killed after their first epoch, and of ``vpt`` and ``adapter``, which are the same
runs undisturbed."""


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


@pytest.mark.parametrize(
    ("folder", "method", "options"),
    # An adapter was AdaptFormer before there were styles, and a run of one goes on as such.
    [("unfinished", "vpt", {"num_prompts": 2}), ("unfinished-adapter", "adapter", {"dim": 1})],
)
def test_a_run_that_was_killed_is_finished(folder: str, method: str, options: dict[str, int], tmp_path: Path) -> None:
    out = Path(shutil.copytree(LANDED / folder, tmp_path / "run"))
    settings = {**SETTINGS, "method": method, "method_options": options}
    said = trimtab.fit("digits", out=out, **settings, epochs=2, limit=60, image_size="32", resume=True)
    assert said.best_epoch in (1, 2)
    undisturbed = load_file(LANDED / method / "adapter_model.safetensors")
    resumed = load_file(out / "adapter_model.safetensors")
    torch.testing.assert_close(resumed, undisturbed, rtol=1e-4, atol=2e-5)


def test_another_style_does_not_go_on_with_a_run_that_was_killed(tmp_path: Path) -> None:
    out = Path(shutil.copytree(LANDED / "unfinished-adapter", tmp_path / "run"))
    options = {"dim": 1, "style": "adapter-plus"}
    settings = {**SETTINGS, "method": "adapter", "method_options": options}
    with pytest.raises(trimtab.TrimtabError, match=r"other settings \(adapter\.dropout was 0\.1, is 0\.0"):
        trimtab.fit("digits", out=out, **settings, epochs=2, limit=60, image_size="32", resume=True)
