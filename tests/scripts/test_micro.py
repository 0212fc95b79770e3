"""The parts of the pretraining that turn a finished one into the package's files, on pretended ones."""

from __future__ import annotations

import dataclasses
import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scripts.micro import probe, write
from scripts.micro.card import write_card
from scripts.micro.student import PREPROCESSING, Student, standardise_, trained
from scripts.micro.train import Recipe

from trimtab.backbone.embedded import embedded_model, embedded_weights
from trimtab.backbone.weights import load_backbone

pytestmark = pytest.mark.nightly

CURVE = {
    "class_token_loss": 0.2,
    "patches_loss": 0.3,
    "logits_loss": 1.0,
    "labels_loss": 1.5,
    "held_out_accuracy": 0.125,
}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What training leaves."""
    folder = tmp_path_factory.mktemp("micro")
    torch.manual_seed(3)
    torch.save({"average": Student().state_dict(), "features": 3 + torch.rand(50, 128)}, folder / "student.pt")
    curves = [{"minutes": m, "cpu_minutes": 2 * m, "images": 6300 * m, **CURVE} for m in (1, 2, 5)]
    (folder / "curves.json").write_text(json.dumps({"recipe": dataclasses.asdict(Recipe()), "curves": curves}))
    return folder


def pretended(digest: str) -> list[dict[str, Any]]:
    """Results of a probe, every accuracy another."""
    same = {"train": 1000, "test": 1500, "width": 128, "C": 0.01, "validation": 0.5, "standard_error": 0.012}
    return [
        {"set": name, "features": row, "weights": digest, **same, "accuracy": (10 * i + j) / 100}
        for j, name in enumerate(probe.SETS)
        for i, row in enumerate(probe.ROWS)
    ]


def test_features_are_standardised_and_otherwise_the_same() -> None:
    torch.manual_seed(1)
    backbone, images = Student().backbone.eval(), torch.randn(40, 3, 64, 64)
    before = backbone(images)
    standardise_(backbone, before)
    after = backbone(images)
    torch.testing.assert_close(after, (before - before.mean(0)) / before.std(0), atol=1e-3, rtol=1e-3)


class TestWrite:
    """Into the package."""

    def test_the_file_is_the_averaged_backbone(self, work: Path, tmp_path: Path) -> None:
        backbone = trained(work)
        size = write.write_model(backbone, tmp_path / "it" / "model.safetensors")
        assert size == (tmp_path / "it" / "model.safetensors").stat().st_size <= 6_000_000
        loaded = load_backbone(str(tmp_path / "it"))
        for name, value in backbone.state_dict().items():
            assert torch.equal(value, loaded.model.state_dict()[name])

    def test_the_configuration_is_the_packages(self, work: Path, tmp_path: Path) -> None:
        write.write_model(trained(work), tmp_path / "model.safetensors")
        ours = embedded_weights(write.NAME).with_name("config.json")
        assert (tmp_path / "config.json").read_bytes() == ours.read_bytes()
        assert embedded_model(write.NAME)[1]["pretrained_cfg"].items() >= PREPROCESSING.items()

    def test_what_half_precision_cannot_hold_is_refused(self, work: Path, tmp_path: Path) -> None:
        backbone = trained(work)
        torch.nn.init.constant_(backbone.norm.bias, 1e6)
        with pytest.raises(SystemExit, match="do not fit half precision"):
            write.write_model(backbone, tmp_path / "model.safetensors")
        assert not list(tmp_path.iterdir())


class TestCard:
    """Words and numbers."""

    def test_weights_that_were_not_measured_are_refused(self, work: Path, tmp_path: Path) -> None:
        for found in (None, pretended("of others")):
            if found is not None:
                (work / "probe.json").write_text(json.dumps(found))
            with pytest.raises(SystemExit, match=r"not measured on cifar10, digits, .*run the part 'probe' first"):
                write_card(work, trained(work), tmp_path, tmp_path)
            assert not list(tmp_path.iterdir())

    def test_the_numbers_are_those_measured(self, work: Path, tmp_path: Path) -> None:
        backbone = trained(work)
        (work / "probe.json").write_text(json.dumps(pretended(probe.digest(backbone))))
        write_card(work, backbone, tmp_path, tmp_path)
        page, card = (tmp_path / "trimtab-micro.md").read_text(), (tmp_path / "README.md").read_text()
        for text in (page, card):
            assert "| raw pixels | 128 | 20.0 | 21.0 | 22.0 | 23.0 | 24.0 |" in text
            assert "What it is not for" in text
            assert "{" not in text
        assert "5 minutes of wall time" in page
        assert "10 minutes of CPU time; 31,500 images seen, which is 1.0 passes" in page
        assert "| `labels_weight` | 0.2 |" in page
        numbers = json.loads((tmp_path / "trimtab-micro.json").read_text())
        assert numbers["curves"][-1]["held_out_accuracy"] == 0.125
        assert len(numbers["probe"]) == len(probe.SETS) * len(probe.ROWS)
        assert ET.parse(tmp_path / "trimtab-micro.svg").getroot().tag.endswith("svg")


class TestProbe:
    """The classifier."""

    def split(self, width: int) -> tuple[tuple[Any, Any], probe.Split]:
        rng = np.random.default_rng(0)
        labels = np.arange(160) % 4
        features = rng.normal(size=(160, width))
        features[np.arange(160), labels] += 4
        none = torch.empty(0)
        return (features[:100], features[100:]), probe.Split(none, none, labels[:100], labels[100:])

    @pytest.mark.parametrize("width", [8, 300])
    def test_it_learns_what_there_is_and_nothing_else(self, width: int) -> None:
        features, split = self.split(width)
        measured = probe.measure(features, split)
        assert (measured["train"], measured["test"], measured["width"]) == (100, 60, width)
        assert measured["accuracy"] > (0.9 if width == 8 else 0.5)
        shuffled = split._replace(train_labels=np.random.default_rng(1).permutation(split.train_labels))
        assert probe.measure(features, shuffled)["accuracy"] < 0.5

    def test_turning_the_features_changes_no_answer(self) -> None:
        (train, test), split = self.split(300)
        turned = probe._standardised(train, test)
        assert turned[0].shape == (100, 100)
        scaled = (train - train.mean(0)) / train.std(0), (test - train.mean(0)) / train.std(0)
        expected = probe._fit(scaled[0], split.train_labels, 0.01).predict_proba(scaled[1])
        found = probe._fit(turned[0], split.train_labels, 0.01).predict_proba(turned[1])
        np.testing.assert_allclose(found, expected, atol=1e-3)

    def test_known_rows_are_not_read_again(self, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        known = pretended(probe.digest(trained(work)))
        known = [{**e, "weights": "" if e["features"] == probe.PIXELS else e["weights"]} for e in known]
        (work / "probe.json").write_text(json.dumps(known))
        monkeypatch.setattr(probe, "read_set", lambda *_: pytest.fail("read"))
        assert probe.run(work, Path("none"), rows=(probe.OURS, probe.PIXELS)) == known

    def test_a_set_that_is_not_there_is_named(self) -> None:
        with pytest.raises(SystemExit, match="there is no folder 'none/data/cifar10'"):
            probe.read_set("cifar10", Path("none"))
