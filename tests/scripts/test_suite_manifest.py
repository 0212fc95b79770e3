"""The manifest of a suite's images tells what they show."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from scripts import suite_manifest as manifest


def _suite(folder: Path, kind: str = "png", shade: int = 10) -> Path:
    for part, count in (("train", 5), ("test", 2)):
        for k, label in enumerate(("dark", "light")):
            (folder / "shades" / part / label).mkdir(parents=True)
            for n in range(count):
                colour = (100 * k + 10 * n, shade, 0)
                Image.new("RGB", (6, 4), colour).save(folder / "shades" / part / label / f"{n}.{kind}")
    (folder / "suite.csv").write_text("task,data,group\nshades,shades,all\n", encoding="utf-8")
    return folder / "suite.csv"


def _made(suite: Path) -> dict[str, dict[str, object]]:
    assert manifest.main([str(suite), "--out", str(suite.parent / "m.json")]) == 0
    found: dict[str, dict[str, object]] = json.loads((suite.parent / "m.json").read_text(encoding="utf-8"))
    return found["shades"]["splits"]  # type: ignore[return-value]


def test_counts_and_digests_follow_the_pixels(tmp_path: Path) -> None:
    png = _made(_suite(tmp_path / "a"))
    assert {name: facts["images"] for name, facts in png.items()} == {
        "train": 8,
        "val": 2,
        "train and val": 10,
        "test": 4,
    }
    # Another file format with the same pixels is the same data; other pixels are not.
    assert _made(_suite(tmp_path / "b", kind="bmp"))["test"] == png["test"]
    assert _made(_suite(tmp_path / "c", shade=11))["test"] != png["test"]


def test_a_broken_image_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite = _suite(tmp_path)
    (tmp_path / "shades" / "test" / "dark" / "0.png").write_bytes(b"no image")
    assert manifest.main([str(suite), "--out", str(tmp_path / "m.json")]) == 1
    told = capsys.readouterr()
    assert len((told.out + told.err).strip().splitlines()) == 1
    assert not (tmp_path / "m.json").exists()
