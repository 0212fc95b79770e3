"""The tables of docs/comparison are made again by the commands that are printed there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from trimtab.bench.results import Record
from trimtab.bench.summary import label, summarise
from trimtab.bench.text import chosen, parameters, share, text_of

ROOT = Path(__file__).parents[1]
README = (ROOT / "docs" / "comparison" / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^trimtab bench report (.*)$", README.replace("\\\n", " "), re.MULTILINE)


def words_of(command: str) -> tuple[list[str], list[str], Path]:
    """Folders, baselines, and where to."""
    words = shlex.split(command.removesuffix(" --overwrite"))
    before, out = words[: words.index("--out")], words[-1]
    at = before.index("--baseline") if "--baseline" in before else len(before)
    return before[:at], before[at + 1 :], ROOT / out


def summary_of(study: str) -> Record:
    (command,) = (command for command in COMMANDS if f"--out docs/comparison/{study} " in command)
    folders, baselines, _ = words_of(command)
    return summarise(folders, baselines)


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: words_of(command)[2].name)
def test_recorded_results_give_the_tables(command: str) -> None:
    folders, baselines, out = words_of(command)
    assert text_of(summarise(folders, baselines)) == (out / "report.txt").read_text(encoding="utf-8")


def test_every_folder_has_its_command() -> None:
    folders = {file.parent.name for file in (ROOT / "docs" / "comparison").glob("*/report.txt")}
    assert folders == {words_of(command)[2].name for command in COMMANDS}
    assert len(folders) == 7


def tables() -> dict[str, list[list[str]]]:
    """The tables of the page, by the first row's last column."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", README, re.MULTILINE):
        found.append([[cell.strip(" *") for cell in line.strip("|\n").split("|")] for line in block.splitlines()])
    return {table[0][-1]: table[2:] for table in found}


def test_the_table_of_the_local_suite() -> None:
    summary = summary_of("local")
    pairs = {(pair["row"], pair["against"]): pair for pair in summary["comparisons"]}
    rows = tables()["parameters"]
    assert len(rows) == len(summary["rows"]) == 5
    linear = summary["rows"][0]
    for line, row in zip(rows, summary["rows"], strict=True):
        assert line[1:5] == [share(row["tasks"][name]) for name in ("caltech101", "cifar10", "dtd10", "brain_mri")]
        assert line[5] == share(row["mean_of_tasks"])
        assert line[7] == parameters(row)
        if row is not linear:
            pair = pairs[label(linear), label(row)]
            assert line[6] == share({"mean": -pair["mean"], "half": pair["half"]}, sign=True)


def test_the_table_of_faults() -> None:
    summary = summary_of("effects")
    strict = {row["name"]: row for row in summary["rows"] if row["folder"] == "docs/comparison/local"}

    def fault(folder: str, name: str) -> str:
        (row,) = [row for row in summary["rows"] if (row["folder"], row["name"]) == (f"docs/comparison/{folder}", name)]
        (pair,) = [pair for pair in summary["comparisons"] if pair["row"] == label(row)]
        assert pair["against"] == label(strict[name])
        return share(pair, sign=True)

    lines = {line[0].split(",")[0]: line[1:] for line in tables()["VPT-deep"]}
    assert len(lines) == 7
    text = text_of(summary)
    for column, name in enumerate(("linear:epochs=50", "vpt")):
        told = {words: values[column] for words, values in lines.items()}
        assert told["strict"] == share(strict[name]["mean_of_tasks"])
        assert told["ImageNet's mean and standard deviation in place of the weights' own 0.5"] == fault(
            "effects/normalisation", name
        )
        assert told["the epoch chosen on test images"] == fault("effects/epoch", name)
        assert told["all images stored again as JPEG of quality 75"] == fault("effects/jpeg", name)
        spread = [
            line.split() for line in text.splitlines() if line.startswith(label(strict[name])) and " seed" in line
        ]
        assert told["the best of three seeds"] == spread[0][-1]
        deviations = [line.split() for line in text.splitlines() if line.startswith(label(strict[name]))]
        assert told["standard deviation over seeds (of one set)"] == next(
            words[-1] for words in deviations if "deviation" in words
        )
    assert lines["the epoch and the learning rate (of three) chosen on test images"][1] == fault(
        "effects/setting", "vpt"
    )


def test_what_the_text_says_in_numbers() -> None:
    methods = {(p["row"].split(" [")[0], p["against"].split(" [")[0]): p for p in summary_of("methods")["comparisons"]}
    assert share(methods["svpt", "vpt"], sign=True) == "-1.0 ± 2.4"
    above = {row for (row, other), pair in methods.items() if other == "linear" and pair["mean"] > pair["half"]}
    assert above == {"vpt", "svpt", "e2vpt", "full"}
    camvid = summary_of("camvid")
    gains = [f"{100 * pair['mean']:.1f}" for pair in camvid["comparisons"]]
    assert gains == ["3.6", "1.0", "3.2", "5.5", "7.5"]
    assert [chosen(row["tasks"]["camvid"]) for row in camvid["rows"]][2] == "lr 0.01, an end of the grid"
    iou = {row["name"]: row["tasks"]["camvid"]["metrics"]["test IOU by class"]["pavement"] for row in camvid["rows"]}
    assert round(100 * (iou["VPT-deep"] - iou["head only"])) == 13
    scales = {row["name"]: row["mean_of_tasks"]["mean"] for row in summary_of("ship-sensitivity")["rows"]}
    best = scales["attention_scale 0.1"]
    assert [round(100 * (best - scales[f"attention_scale {value}"])) for value in (0.3, 0.5)] == [9, 17]
