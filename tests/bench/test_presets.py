"""What is searched: the same care for every method, and the papers' own settings."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from trimtab.bench.presets import (
    Space,
    adapter_plus_space,
    own_space,
    published_name,
    read_published,
    ship_space,
    vfpt_space,
    vpt_space,
)
from trimtab.bench.protocols import PROTOCOLS, Row
from trimtab.bench.search import propose, settings_count
from trimtab.bench.suites import SuiteTask
from trimtab.errors import ConfigError
from trimtab.methods import METHODS, configure

CIFAR = SuiteTask("vtab1k", "cifar100", "natural", "data")
OWN = SuiteTask("mine", "moths", "all", "data")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_as_many_settings_and_all_work(method: str) -> None:
    points = own_space(method).points()
    assert len(points) == 6
    assert len({json.dumps(point) for point in points}) == 6
    for point in points:
        configure(method, point["options"])


def test_fewer_trials_are_learning_rates_first() -> None:
    space = own_space("lora")
    first = [propose(space, "grid", k, [], "x") for k in range(settings_count(space, "grid", 3))]
    assert {point["options"]["rank"] for point in first} == {8}
    assert len({point["fit"]["lr"] for point in first}) == 3


@pytest.mark.parametrize("space", [vpt_space("vpt", {}, "mine", "moths"), ship_space("ship", {}, "moths")])
def test_fewer_trials_of_a_papers_grid_are_learning_rates_first(space: Space) -> None:
    rates = len(space.fit["lr"])
    first = space.points()[:rates]
    assert {point["fit"]["lr"] for point in first} == set(space.fit["lr"])
    assert {point["fit"]["weight_decay"] for point in first} == {space.fit["weight_decay"][0]}
    assert len({json.dumps(point, sort_keys=True) for point in space.points()}) == len(space.points())


def test_options_of_a_row_stay() -> None:
    space = own_space("vpt").without({"num_prompts": 20, "deep": False})
    assert {(p["options"]["num_prompts"], p["options"]["deep"]) for p in space.points()} == {(20, False)}


def test_vpt_searches_as_its_code_does() -> None:
    protocol = PROTOCOLS["paper-vpt"]
    space = protocol.space(Row("vpt", "vpt"), CIFAR)
    assert len(space.points()) == 10 * 4
    setting = protocol.complete(space.points()[0], space)
    assert setting["options"] == {"num_prompts": 10, "prompt_init": "uniform", "head_init": "paper"}
    assert setting["fit"]["batch_size"] == 128
    assert setting["fit"]["preprocess"] == setting["fit"]["recipe"] == "vpt"
    long = vpt_space("vpt", {}, "vtab1k", "dmlab")
    assert protocol.complete(long.points()[0], long)["fit"]["batch_size"] == 64
    assert vpt_space("vpt", {"deep": False}, "vtab1k", "cifar100").points()[0]["options"]["num_prompts"] == 100
    assert vpt_space("svpt", {}, "vtab1k", "svhn").points()[0]["options"] == {
        "num_prompts": 50,
        "prompt_init": "uniform",
    }
    # A set without a published prompt length has all of them searched.
    assert len(vpt_space("vpt", {}, "mine", "moths").points()) == 6 * 10 * 4
    assert len(vpt_space("vpt", {}, "fgvc", "nabirds").points()) == 9 * 4
    assert protocol.seeds_of(None) == (42, 44, 82, 100, 800)
    assert protocol.seeds_of(7) == (42, 44, 82, 100, 800, 801, 802)


def test_vpt_takes_the_smallest_learning_rate_of_equals() -> None:
    trials: list[dict[str, Any]] = [
        {"val_accuracy": 0.8, "fit": {"lr": 5.0}, "failed": None},
        {"val_accuracy": 0.8, "fit": {"lr": 0.5}, "failed": None},
        {"val_accuracy": 0.9, "fit": {"lr": 0.1}, "failed": "diverged"},
        {"val_accuracy": 0.7, "fit": {"lr": 0.05}, "failed": None},
    ]
    assert PROTOCOLS["paper-vpt"].choose(trials)["fit"]["lr"] == 0.5


def test_ship_has_its_logged_settings() -> None:
    protocol = PROTOCOLS["paper-ship"]
    space = protocol.space(Row("ship", "ship"), CIFAR)
    (point,) = space.points()
    assert point == {"options": {"prompt_length": 50, "threshold": 0.93}, "fit": {"lr": 1e-3, "weight_decay": 1e-3}}
    assert len(ship_space("ship", {}, "moths").points()) == 4 * 4 * 6 * 5
    assert protocol.test_epochs(100) == (1, 11, 21, 31, 41, 51, 61, 71, 81, 91, 100)
    assert protocol.setting_on_test
    assert protocol.epoch_on_test
    assert not PROTOCOLS["strict"].setting_on_test
    assert not PROTOCOLS["strict"].epoch_on_test
    assert PROTOCOLS["strict"].test_epochs(100) == ()


def test_vfpt_searches_as_its_code_does() -> None:
    protocol = PROTOCOLS["paper-vfpt"]
    space = protocol.space(Row("vfpt", "vfpt"), CIFAR)
    assert len(space.points()) == 10 * 4
    setting = protocol.complete(space.points()[0], space)
    assert setting["options"] == {"num_prompts": 10, "fourier_share": 0.7, "head_init": "paper"}
    assert setting["fit"]["preprocess"] == setting["fit"]["recipe"] == "vfpt"
    assert "batch_size" not in setting["fit"]
    # No whole number of prompts gives what is printed of these.
    assert len(vfpt_space("vfpt", {}, "vtab1k", "resisc45").points()) == 5 * 10 * 4
    assert len(vfpt_space("vfpt", {}, "fgvc", "stanford_cars").points()) == 9 * 4
    own = vfpt_space("vfpt", {}, "mine", "moths").points()
    assert len(own) == 5 * 5 * 10 * 4
    for row in read_published("vfpt_per_task"):
        for point in vfpt_space("vfpt", {}, "vtab1k", row["dataset"]).points():
            configure("vfpt", point["options"])
    for point in own:
        configure("vfpt", point["options"])


def test_adapter_plus_has_one_setting() -> None:
    protocol = PROTOCOLS["paper-adapter-plus"]
    space = protocol.space(Row("adapter", "adapter"), CIFAR)
    (point,) = space.points()
    fit = {"lr": 1e-3, "recipe": "adapter-plus", "preprocess": "adapter-plus"}
    assert protocol.complete(point, space) == {"options": {"dim": 8}, "fit": fit}
    assert protocol.seeds_of(None) == (18, 45, 25)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (lambda: vfpt_space("vpt", {}, "mine", "moths"), "paper-vfpt is how VFPT was tuned"),
        (lambda: adapter_plus_space("lora", {}), "paper-adapter-plus is how"),
        (lambda: adapter_plus_space("adapter", {"style": "adaptformer"}), "paper-adapter-plus is how"),
    ],
)
def test_papers_know_no_other_method(space: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        space()


def test_adapter_plus_is_not_in_the_published_tables() -> None:
    assert published_name("adapter", {}) is None
    assert published_name("adapter", {"style": "adaptformer"}) == "Adapter-64 (VPT paper)"


def test_random_points_lie_between_the_ends_and_belong_to_their_search() -> None:
    space = own_space("vpt")
    points = [propose(space, "random", k, [], "a") for k in range(40)]
    assert points == [propose(space, "random", k, [], "a") for k in range(40)]
    assert points != [propose(space, "random", k, [], "b") for k in range(40)]
    rates = [point["fit"]["lr"] for point in points]
    assert 6e-4 <= min(rates) < 1e-3
    assert 4e-3 < max(rates) <= 6e-3
    assert {point["options"]["num_prompts"] for point in points} == {10, 50}


def test_tpe_goes_where_it_was_better() -> None:
    pytest.importorskip("optuna")
    space = own_space("linear")
    done: list[tuple[dict[str, Any], float]] = []
    for number in range(24):
        setting = propose(space, "tpe", number, done, "x")
        assert setting == propose(space, "tpe", number, done, "x")
        lr = setting["fit"]["lr"]
        assert 0.9e-4 < lr < 3.1e-2
        done.append((setting, 1.0 if lr < 5e-4 else 0.5))
    late = [setting["fit"]["lr"] < 5e-4 for setting, _ in done[8:]]
    assert sum(late) > len(late) / 2


def test_tpe_takes_rows_whose_options_are_lists() -> None:
    pytest.importorskip("optuna")
    space = own_space("ship").without({"hierarchy": (0, 1)})
    done = [({"options": {"prompt_length": 10, "hierarchy": [0, 1]}, "fit": {"lr": 2e-3}}, 0.5)]
    setting = propose(space, "tpe", 1, done, "x")
    assert setting["options"]["hierarchy"] == (0, 1)
    assert setting["options"]["prompt_length"] in (10, 50)


def test_tpe_chooses_between_lists() -> None:
    pytest.importorskip("optuna")
    space = Space(
        {"lr": (1e-3, 1e-2), "weight_decay": (0.0, 1e-4)}, {"hierarchy": ((0, 1), (0, 2)), "deep": (True, None)}
    )
    done: list[tuple[dict[str, Any], float]] = []
    for number in range(8):
        setting = propose(space, "tpe", number, done, "x")
        assert setting["options"]["hierarchy"] in space.options["hierarchy"]
        assert setting["options"]["deep"] in (True, None)
        assert setting["fit"]["weight_decay"] in (0.0, 1e-4)
        # As the results have it.
        done.append((json.loads(json.dumps(setting)), number / 10))


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; from trimtab import cli\n"
        "try: cli.main(['bench', '--help'])\n"
        "except SystemExit: pass\n"
        'sys.exit(f\'imported: {sorted({"torch", "timm", "optuna", "scipy"} & set(sys.modules))}\' '
        "if {'torch', 'timm', 'optuna', 'scipy'} & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--protocol" in done.stdout
    assert "paper-ship" in done.stdout
