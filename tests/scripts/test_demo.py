"""`make demo`, made small: that it runs to its end, says what it promises, and may be run again."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scripts import demo

SMALL = {"epochs": 1, "limit": 16, "batch_size": 4, "probe_epochs": 2}


@pytest.fixture(autouse=True)
def _small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "HOME", tmp_path / "demo")
    monkeypatch.setattr(demo, "METHODS", ("linear", "vpt"))
    monkeypatch.setattr(demo, "LINEAR", SMALL)
    monkeypatch.setattr(demo, "SHORT", SMALL)
    # A quarter of the test images takes as long.
    monkeypatch.setattr(demo, "SPLIT", "val")
    monkeypatch.chdir(tmp_path)


@pytest.mark.nightly
def test_the_demo_runs_to_its_end_and_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    demo.main()
    said = capsys.readouterr().out
    for task in demo.TASKS:
        assert f"{task}/test/0000: " in said
        folder = tmp_path / "demo" / task.replace("/", "-")
        assert sorted(path.name for path in folder.iterdir()) == ["linear", "vpt"]
    lines = [line.split() for line in said.splitlines() if line.strip().startswith("│")]
    assert [line[1] for line in lines] == ["linear", "vpt"] * 2
    assert "demo/report.html" in said
    served = said[said.index("Both by one server") :]
    assert len(re.findall(r"^  (sprites-middle|digits): .+ \(\d+%\), (right|it is .+)$", served, re.MULTILINE)) == 6
    assert "trimtab serve demo" in served
    assert "trimtab fit MY_IMAGES --method vpt --out runs/mine" in said
    page = (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
    assert page.count("sprites/middle") > 1
    # Again, where everything is there already.
    monkeypatch.setattr(demo, "METHODS", ("linear",))
    monkeypatch.setattr(demo, "TASKS", {"digits": "handwritten digits"})
    demo.main()
    assert "sprites/middle" not in (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
