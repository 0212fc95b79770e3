"""The files of a prepared task."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.bench.task_folder import (
    COLUMNS,
    PreparedImage,
    read_manifest,
    read_seen,
    seen_line,
    splits_text,
    variant_of,
)
from trimtab.bench.task_table import TASKS
from trimtab.data import open_training
from trimtab.errors import DataError

text = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\x00"), min_size=1, max_size=8)
seen = st.builds(
    PreparedImage, st.sampled_from(["train", "val", "test"]), st.integers(0, 99), text, st.just(""), text, text, text
)


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(seen, unique_by=lambda one: one.key, max_size=6), cut=st.integers(0, 200))
def test_lines_are_read_as_they_were_written_and_half_ones_left_out(
    tmp_path_factory: pytest.TempPathFactory, rows: list[PreparedImage], cut: int
) -> None:
    folder = tmp_path_factory.mktemp("seen")
    lines = [",".join(COLUMNS) + "\n", *map(seen_line, rows)]
    whole = "".join(lines)
    (folder / "pixels.csv").write_text(whole, encoding="utf-8", newline="")
    order = ["train", "val", "test"]
    expected = sorted(rows, key=lambda one: (order.index(one.split), one.place))
    assert read_seen(folder) == expected
    (folder / "pixels.csv").write_text(whole + lines[-1][: cut % len(lines[-1])], encoding="utf-8", newline="")
    assert read_seen(folder) == expected


def test_every_class_name_passes_through_the_csv(tmp_path: Path) -> None:
    labels = ['with, comma "and" quotes', "ünïcode"]
    listed = [PreparedImage("train", k, f"{k}.png", "", label, "PNG", "") for k, label in enumerate(labels)]
    for one in listed:
        (tmp_path / one.path).write_bytes(b"")
    (tmp_path / "splits.csv").write_text(splits_text(listed), encoding="utf-8")
    assert open_training(tmp_path / "splits.csv", val_fraction=0).train.classes == tuple(sorted(labels))


@pytest.mark.parametrize(
    ("suite", "task", "formats", "copy", "variant"),
    [
        ("vtab1k", "cifar100", ["PNG"], False, "lossless"),
        ("vtab1k", "cifar100", ["JPEG", "PNG"], False, "jpeg"),
        ("vtab1k", "cifar100", ["WEBP"], False, "jpeg"),
        ("vtab1k", "sun397", ["PNG"], True, "lossless"),
        ("vtab1k", "sun397", ["JPEG"], False, "original"),
        ("vtab1k", "sun397", ["JPEG"], True, "jpeg"),
        ("fgvc", "nabirds", ["JPEG"], False, "original"),
        ("ade20k", "ade20k", ["JPEG"], False, "original"),
    ],
)
def test_variants(suite: str, task: str, formats: list[str], copy: bool, variant: str) -> None:
    assert variant_of(TASKS[suite][task], formats, copy=copy) == variant


def test_a_folder_without_manifest_is_unfinished(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no manifest\.json, so it is not prepared, or not to the end"):
        read_manifest(tmp_path)
