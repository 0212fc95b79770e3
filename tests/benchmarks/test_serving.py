"""The benchmark of a bank: what it times gives answers, and its ratios are what they say."""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import pytest
import torch

from benchmarks import serving


@pytest.fixture
def args() -> argparse.Namespace:
    """Two tasks on the smallest model at four patches."""
    return argparse.Namespace(
        model="tiny", method="vpt", prompts=2, tasks=[2], lora=[2], rank=2, half=False, image_size=32, batch_size=3
    )


def test_every_subject_answers_for_every_image(args: argparse.Namespace, tmp_path: Path) -> None:
    source = random.Random(0)
    found = serving.subjects(args, tmp_path)
    with torch.inference_mode():
        answers = {subject.name: subject.run(subject.draw(source)) for subject in found}
    assert {name: len(answer) for name, answer in answers.items()} == dict.fromkeys(answers, 3)
    assert list(answers) == [
        serving.PLAIN,
        serving.ONE,
        "bank, 2 tasks evenly",
        "bank, 2 tasks by Zipf",
        "bank, 2 tasks of LoRA",
        serving.LOOP.format(2),
    ]
    seconds = serving.measure(found, 2, time.process_time)
    assert all(len(values) == 2 for values in seconds.values())


def test_speed_is_the_median_of_ratios_within_rounds() -> None:
    seconds = {serving.PLAIN: [1.0, 2.0, 9.0], serving.ONE: [2.0, 4.0, 3.0]}
    assert serving.speed(seconds, serving.ONE, serving.PLAIN) == 0.5
    assert f"| {serving.ONE} | 3000.0 | 0.500 | 1.000 |" in serving.table(seconds)


def test_zipf_asks_the_first_task_most() -> None:
    names = serving.drawn(50, 2000, zipf=True)(random.Random(0))
    assert len(names) == 2000
    assert names.count("0") > 5 * names.count("20")
