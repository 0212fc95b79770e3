"""What faults of protocols are worth: the whole run, on small sets and a random ViT-Tiny."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
from benchmarks.studies import BACKBONE
from PIL import Image
from safetensors.torch import save_file

from benchmarks import effects
from tests.benchmarks.pretended import lines_of

ROWS = ["linear", "vpt:num_prompts=2"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A suite of one set, and weights."""
    folder = tmp_path_factory.mktemp("effects")
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for label, level in (("dark", 60), ("light", 180)):
            (folder / "shades" / part / label).mkdir(parents=True)
            for k in range(5):
                pixels = np.clip(rng.normal(level, 60, (24, 24, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / "shades" / part / label / f"{k}.png")
    (folder / "suite.csv").write_text("task,data,group\nshades,shades,all\n", encoding="utf-8")
    (folder / "weights").mkdir()
    save_file(timm.create_model(BACKBONE).state_dict(), folder / "weights" / f"{BACKBONE}.fp16.safetensors")
    return folder


def _command(place: Path, work: Path, *more: str) -> list[str]:
    small = "--seeds 2 --trials 2 --image-size 32 --epochs 2 --probe-epochs 0"
    return [
        str(place / "suite.csv"),
        *small.split(),
        "--methods",
        *ROWS,
        "--shared",
        str(place),
        "--work",
        str(work),
        *more,
    ]


@pytest.mark.slow
def test_effects_are_differences_to_strict_seed_by_seed(place: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    assert effects.main(_command(place, work)) == 0
    trials = lines_of(work / "trials.jsonl")
    epoch, jpeg, wrong, setting = (
        [t for t in trials if t["effect"] == e] for e in ("epoch", "jpeg", "normalisation", "setting")
    )
    assert [len(found) for found in (epoch, jpeg, wrong, setting)] == [len(ROWS) * 2] * 4
    assert all([epoch for epoch, _ in line["test_history"]] == [1, 2] for line in (*epoch, *setting))
    assert not list((work / "models").iterdir())

    assert effects.main(_command(place, work)) == 0
    assert lines_of(work / "trials.jsonl") == trials

    assert effects.main(_command(place, work, "--table", str(tmp_path))) == 0
    table = json.loads((tmp_path / "effects.json").read_text(encoding="utf-8"))
    for row in table["rows"]:
        cell = row["tasks"]["shades"]
        strict = {line["seed"]: line["test_accuracy"] for line in _tests(work / "strict", row["row"])}
        assert {int(seed): value for seed, value in cell["strict"].items()} == strict
        # Training is the same to the bit, so the last epoch is among those that are chosen from.
        assert all(cell["effects"]["setting"][seed] >= cell["effects"]["epoch"][seed] >= 0 for seed in cell["strict"])
        best = max(strict.values())
        assert {int(seed): value for seed, value in cell["effects"]["luck"].items()} == {
            seed: best - value for seed, value in strict.items()
        }
        for name, found in (("jpeg", jpeg), ("normalisation", wrong)):
            other = {t["seed"]: t["test_history"][-1][1] for t in found if t["row"] == row["row"]}
            assert {int(s): v for s, v in cell["effects"][name].items()} == {s: other[s] - strict[s] for s in strict}
    shown = (tmp_path / "effects.md").read_text(encoding="utf-8")
    assert "| linear | wrong normalisation |" in shown
    chosen = {
        line["row"]: line["settings"] for line in lines_of(work / "strict" / "results.jsonl") if "settings" in line
    }
    assert all({"options": t["options"], "fit": t["fit"]} in chosen[t["row"]] for t in (*epoch, *jpeg, *wrong))
    assert all(t["resolved"]["preprocessing"]["mean"] == list(effects.IMAGENET["mean"]) for t in wrong)
    assert all(t["resolved"]["preprocessing"]["mean"] == [0.5, 0.5, 0.5] for t in (*jpeg, *epoch, *setting))


def _tests(folder: Path, row: str) -> list[dict[str, object]]:
    return [line for line in lines_of(folder / "results.jsonl") if (line["kind"], line.get("row")) == ("test", row)]


def test_the_best_reading_of_a_seed_counts() -> None:
    trials = [
        {"seed": 0, "test_history": [[1, 0.5], [2, 0.4]]},
        {"seed": 0, "test_history": [[1, 0.3], [2, 0.6]]},
        {"seed": 1, "test_history": []},
    ]
    assert effects.by_seed(trials) == {0: 0.6, 1: 0.0}


def test_a_table_without_measurements_is_refused(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert effects.main(_command(place, tmp_path / "work", "--table", str(tmp_path))) == 1
    told = capsys.readouterr()
    assert len((told.out + told.err).strip().splitlines()) == 1
    assert not (tmp_path / "effects.md").exists()


def test_copies_are_jpeg_of_quality_75(place: Path, tmp_path: Path) -> None:
    suite = effects.jpeg_suite(effects.open_suite(str(place / "suite.csv")), tmp_path)
    assert suite.read_text(encoding="utf-8") == "task,data,group\nshades,shades,all\n"
    copies = sorted(path.relative_to(tmp_path / "shades") for path in (tmp_path / "shades").rglob("*.jpg"))
    originals = sorted(p.relative_to(place / "shades").with_suffix(".jpg") for p in (place / "shades").rglob("*.png"))
    assert copies == originals
    with Image.open(place / "shades" / "train" / "dark" / "0.png") as image:
        image.save(tmp_path / "by-hand.jpg", "JPEG", quality=75)
    assert (tmp_path / "shades" / "train" / "dark" / "0.jpg").read_bytes() == (tmp_path / "by-hand.jpg").read_bytes()
