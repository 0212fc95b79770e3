"""Numbers, tables and pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks.pictures import x_of
from benchmarks.studies import STUDIES
from benchmarks.summary import summarise

from benchmarks import tables
from tests.benchmarks.pretended import lines_of, whole_benchmark
from trimtab.bench.statistics import difference, interval, t_value


def test_intervals_are_students() -> None:
    assert t_value(3) == pytest.approx(4.303, abs=5e-4)
    assert interval([0.70, 0.72, 0.74]) == {"mean": pytest.approx(0.72), "half": pytest.approx(0.04968, abs=1e-4)}
    assert interval([0.7]) == {"mean": 0.7, "half": None}
    # The same difference at every seed is certain, however far the seeds lie apart.
    assert difference([0.5, 0.7, 0.9], [0.4, 0.6, 0.8]) == {
        "mean": pytest.approx(0.1),
        "half": pytest.approx(0.0, abs=1e-9),
    }
    assert difference([0.5], [0.4, 0.6])["mean"] is None


def test_everything_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole_benchmark(tmp_path)
    out = tmp_path / "out"
    assert tables.main(["--work", str(tmp_path), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    for study in STUDIES.values():
        shown = json.loads((out / f"{study.name}.json").read_text(encoding="utf-8"))
        assert [row["name"] for row in shown["rows"]] == [row.name for row in study.rows]
        assert all(row["name"] in printed for row in shown["rows"])
        assert (out / f"{study.name}.svg").stat().st_size > 5_000
    assert "t = 4.303" in printed


def test_the_table_says_what_the_lines_say(tmp_path: Path) -> None:
    results = whole_benchmark(tmp_path)
    summary = summarise(STUDIES["methods"], results)
    assert summary is not None
    row = next(row for row in summary["rows"] if row["name"] == "vpt")
    read = [line for line in lines_of(tmp_path / "trials.jsonl") if line["kind"] == "test" and line["row"] == "vpt"]
    assert row["mean"] == pytest.approx(sum(line["test_accuracy"] for line in read) / 6)
    assert "vpt" not in row["against"]
    base = next(row for row in summary["rows"] if row["name"] == "linear")
    assert row["against"]["linear"]["mean"] == pytest.approx(row["mean"] - base["mean"])
    assert row["choices"]["cifar10"]["tried"][3]["options"] == {"num_prompts": 5}


def test_a_row_that_lacks_a_set_has_no_mean(tmp_path: Path) -> None:
    results = whole_benchmark(tmp_path)
    tests = results.records["test"]
    results.records["test"] = [line for line in tests if (line["row"], line["set"]) != ("vpt", "dtd10")]
    summary = summarise(STUDIES["methods"], results)
    assert summary is not None
    row = next(row for row in summary["rows"] if row["name"] == "vpt")
    assert row["mean"] is None
    assert "| vpt |" in tables.markdown(summary)


def test_the_threshold_is_shown_by_its_hierarchies() -> None:
    row = {"panel": "threshold", "value": 0.9, "sets": {"a": {"seeds": [{"method_config": {"hierarchy": [0, 1, 5]}}]}}}
    assert x_of(row, "a") == 3
    assert x_of({**row, "panel": "prototypes", "value": 50}, "a") == 50
