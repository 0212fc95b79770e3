from __future__ import annotations

import pytest

from trimtab import methods
from trimtab.errors import ConfigError
from trimtab.methods import METHODS, configure, method_of, paper_recipe


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


def test_another_packages_method_is_found_and_replaces_none(monkeypatch: pytest.MonkeyPatch) -> None:
    class Point:
        def __init__(self, name: str, value: str) -> None:
            self.name, self.value = name, value

    points = [Point("theirs", "trimtab.methods.linear:Linear"), Point("vpt", "trimtab.methods.linear:Linear")]
    monkeypatch.setattr(methods, "entry_points", lambda group: points)
    registry = methods._Methods()
    assert list(registry) == ["theirs", "vpt", "linear", "ship"]
    assert registry["theirs"].__name__ == "Linear"
    assert registry["vpt"].__name__ == "VPT"
