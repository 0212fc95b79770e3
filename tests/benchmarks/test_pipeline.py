"""Photos are made and both ways of decoding them are run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import pipeline
from tests import job


def test_compares_ways_of_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for label, name in enumerate(job.CLASSES):
        for number in range(2):
            job.draw(tmp_path / "images" / name / f"{number}.jpg", label, number)
    monkeypatch.setattr(pipeline, "DIFFERENT", 6)
    words = [str(tmp_path / "images"), "--backbone", job.BACKBONE, "--weights", str(job.weights()), "--photos", "9"]
    words += ["--photo-size", "260", "200", "--image-size", "32", "--method", "linear", "--epochs", "2"]
    assert pipeline.main([*words, "--out", str(tmp_path / "out.json")]) == 0
    rows = json.loads((tmp_path / "out.json").read_text())["photos"]
    assert [(row["scaled_decoding"], row["images"]) for row in rows] == [(False, 9), (True, 9)]
    assert all(row[f"{name}_cpu_seconds"] > 0 for row in rows for name in ("fit", "predict"))


def test_photos_have_the_size_and_the_class_of_their_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for label, name in enumerate(job.CLASSES):
        job.draw(tmp_path / "images" / name / "a.jpg", label, 0)
    monkeypatch.setattr(pipeline, "DIFFERENT", 3)
    pipeline.write_photos(tmp_path / "images", tmp_path / "photos", 5, (260, 200))
    photos = sorted((tmp_path / "photos").rglob("*.jpg"))
    assert [photo.parent.name for photo in photos] == ["blue", "blue", "green", "green", "red"]
    for photo in photos:
        with Image.open(photo) as image:
            assert image.size == (260, 200)
