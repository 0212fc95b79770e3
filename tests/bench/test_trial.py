"""What a trial is known by."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from trimtab.bench.trial import Trial
from trimtab.methods import METHODS, configure
from trimtab.recipe import FitConfig

RECORDED = Path(__file__).parents[2] / "docs" / "comparison" / "local" / "results.jsonl"
"""Written before issue 19."""


def test_a_trial_of_an_earlier_version_is_found_and_not_repeated() -> None:
    lines = [json.loads(line) for line in RECORDED.read_text(encoding="utf-8").splitlines()]
    trials = {line["method"]: line for line in lines if line["kind"] == "trial" and line["part"] == "final"}
    assert trials.keys() == {"linear", "vpt", "ship", "svpt", "lora"}
    names = [field.name for field in dataclasses.fields(Trial)]
    for method, line in trials.items():
        recipe = FitConfig(**line["fit"]).resolve(METHODS[method].recipe).recorded()
        method_config = dataclasses.asdict(configure(method, line["options"]))
        resolved = {**line["resolved"], "recipe": recipe, "method_config": method_config}
        assert Trial(**{name: line[name] for name in names} | {"resolved": resolved}).key == line["key"], method
