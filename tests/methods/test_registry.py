from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest

from trimtab import methods
from trimtab.errors import ConfigError
from trimtab.methods import METHODS, _Methods, configure, method_of, paper_preprocessing, paper_recipe
from trimtab.recipe import Recipe


@pytest.mark.parametrize("name", METHODS)
def test_a_configuration_leads_back_to_its_method(name: str) -> None:
    assert method_of(configure(name)) is METHODS[name]


def test_a_configuration_is_taken_as_it_is() -> None:
    config = configure("vpt", {"num_prompts": 3})
    assert config.num_prompts == 3
    assert configure(config) is config


def test_options_beside_a_configuration_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_prompts cannot be given beside a configuration"):
        configure(configure("vpt"), {"num_prompts": 3})


def test_an_unknown_option_offers_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"has no option 'num_prompt'\. Did you mean 'num_prompts'"):
        configure("vpt", {"num_prompt": 3})


def test_an_unknown_method_offers_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"There is no method 'shipp'\. Did you mean 'ship'"):
        METHODS["shipp"]


def test_a_foreign_configuration_is_refused() -> None:
    with pytest.raises(ConfigError, match="dict is no method's configuration"):
        method_of({})


def test_an_unknown_recipe_offers_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"There is no recipe 'vptt'\. Did you mean 'vpt'"):
        paper_recipe("vptt")


def test_configurations_are_names_of_the_package() -> None:
    assert methods.VPTConfig is METHODS["vpt"].Config
    with pytest.raises(AttributeError):
        _ = methods.NobodysConfig


class Point:
    def __init__(self, name: str, value: str) -> None:
        self.name, self.value = name, value


class Theirs:
    """Another package's method, as far as the registry looks at it."""

    name = "theirs"
    paper_recipes: ClassVar = {"theirs": Recipe(lr=7.0)}
    paper_preprocessing: ClassVar[dict[str, Any]] = {}

    class Config:
        pass


def registered(monkeypatch: pytest.MonkeyPatch, **places: str) -> _Methods:
    points = [Point(name, place) for name, place in places.items()]
    monkeypatch.setattr(methods, "entry_points", lambda group: points)
    monkeypatch.setattr(methods, "METHODS", registry := _Methods())
    return registry


def test_another_packages_method_is_found_and_replaces_none(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = registered(monkeypatch, theirs=f"{__name__}:Theirs", vpt="trimtab.methods.linear:Linear")
    assert list(registry) == [*METHODS, "theirs"]
    assert registry["theirs"].__name__ == "Theirs"
    assert registry["vpt"].__name__ == "VPT"
    assert method_of(Theirs.Config()) is registry["theirs"]
    assert paper_recipe("theirs").lr == 7.0


BROKEN = {
    "no_such_package:Theirs": r"'theirs' of no_such_package:Theirs cannot be imported \(No module named",
    "trimtab.methods.linear:Nobody": r"'theirs' of trimtab\.methods\.linear:Nobody cannot be imported \(.*Nobody",
    "trimtab.methods.linear:Linear": r"'theirs' of trimtab\.methods\.linear:Linear calls itself 'linear'",
}


@pytest.mark.parametrize("place", BROKEN)
def test_a_broken_package_is_told_and_spoils_nothing_else(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    registry = registered(monkeypatch, theirs=place)
    with pytest.raises(ConfigError, match=BROKEN[place]):
        registry["theirs"]
    assert method_of(configure("vpt")).__name__ == "VPT"
    assert paper_recipe("vpt").lr > 0
    assert "vpt" in paper_preprocessing()
    with pytest.raises(AttributeError):
        _ = methods.NobodysConfig


def test_a_package_that_fails_is_imported_for_its_own_methods_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    touched = tmp_path / "imported"
    module = f"from pathlib import Path\nPath({str(touched)!r}).touch()\nraise RuntimeError('no license')\n"
    (tmp_path / "package_that_fails.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    registry = registered(monkeypatch, theirs="package_that_fails:Theirs")
    assert method_of(methods.VPTConfig()).__name__ == "VPT"
    assert not touched.exists()
    # What has to look at all methods goes on without this one.
    assert paper_recipe("vpt").lr > 0
    assert touched.exists()
    with pytest.raises(ConfigError, match=r"'theirs' of package_that_fails:Theirs cannot be imported \(no license\)"):
        registry["theirs"]
