from __future__ import annotations

import argparse
import dataclasses
from typing import Annotated, Literal

import pytest

from trimtab.errors import ConfigError, nearest
from trimtab.methods import METHODS
from trimtab.options import _help, read_options
from trimtab.recipe import FitConfig
from trimtab.validation import Range, check_fields


@dataclasses.dataclass(frozen=True)
class Config:
    how: Literal["fast", "slow"] = "fast"
    maybe: Literal["a", "b"] | None = None
    rate: float = 0.5
    count: int | None = None
    flag: bool = False
    text: str = ""
    many: tuple[int, ...] | None = None


@pytest.mark.parametrize(
    "config",
    [
        Config(),
        Config(how="slow", maybe="b"),
        Config(rate=0.0),
        Config(rate=2),
        Config(text=224),  # type: ignore[arg-type]
        Config(count=3, flag=True, text="a", many=(1, 2)),
    ],
)
def test_what_the_types_allow_passes(config: Config) -> None:
    check_fields(config)


def test_another_word_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"how is 'slaw'\. Did you mean 'slow'\? Choose one of: fast, slow"):
        check_fields(Config(how="slaw"))  # type: ignore[arg-type]


def test_another_word_of_an_optional_is_refused() -> None:
    with pytest.raises(ConfigError, match="maybe is 'c'"):
        check_fields(Config(maybe="c"))  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_numbers_must_be_finite(value: float) -> None:
    with pytest.raises(ConfigError, match=r"rate is (inf|nan); give a finite number"):
        check_fields(Config(rate=value))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("count", "5", "count is '5'; give a whole number"),
        ("count", 5.0, r"count is 5\.0; give a whole number"),
        ("count", True, "count is True; give a whole number"),
        ("rate", "0.1", r"rate is '0\.1'; give a number"),
        ("rate", None, "rate is None; give a number"),
        ("rate", False, "rate is False; give a number"),
        ("flag", 1, "flag is 1; give True or False"),
        ("text", 0.5, r"text is 0\.5; give a text"),
        ("text", True, "text is True; give a text"),
        ("how", None, "how is None"),
    ],
)
def test_values_of_another_type_are_refused(name: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_fields(Config(**{name: value}))  # type: ignore[arg-type]


def test_fit_is_checked() -> None:
    with pytest.raises(ConfigError, match="optimizer is 'adam'"):
        FitConfig(backbone="a", optimizer="adam")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="epochs is '5'; give a whole number"):
        FitConfig(backbone="a", epochs="5")  # type: ignore[arg-type]


@pytest.mark.parametrize("method", METHODS)
def test_every_methods_words_are_checked(method: str) -> None:
    config = METHODS[method].Config
    for field in dataclasses.fields(config):
        if "Literal" in str(field.type):
            with pytest.raises(ConfigError, match=field.name):
                config(**{field.name: "nonsense"})


@dataclasses.dataclass(frozen=True)
class Lists:
    """Fields that hold several values."""

    names: tuple[str, ...] | None = None
    places: tuple[int, ...] = (0,)
    words: tuple[Literal["a", "b"], ...] = ()


@pytest.mark.parametrize(
    "options", [{}, {"names": ("a", "b")}, {"names": None}, {"places": (0, 3)}, {"places": [1]}, {"words": ("b", "a")}]
)
def test_lists_that_fit(options: dict[str, object]) -> None:
    check_fields(Lists(**options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": "qkv"}, "names is 'qkv'; give a tuple, each entry a text"),
        ({"names": (b"a",)}, "each entry a text"),
        ({"places": 3}, "places is 3; give a tuple, each entry a whole number"),
        ({"places": (0, 1.5)}, "each entry a whole number"),
        ({"places": (True,)}, "each entry a whole number"),
        ({"words": ("a", "c")}, "give a tuple, each entry one of a, b"),
        ({"words": "a"}, "words is 'a'; give a tuple, each entry one of a, b"),
    ],
)
def test_lists_that_do_not_fit(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_fields(Lists(**options))  # type: ignore[arg-type]


# --- ranges ---------------------------------------------------------------------------------------

Share = Annotated[float, Range(least=0, below=1)]


@dataclasses.dataclass(frozen=True)
class Bounded:
    """Fields with ranges."""

    share: Share = 0.5
    count: Annotated[int | None, Range(above=0)] = None
    rank: Annotated[int, Range(least=1, way_out="use at least 1, or nothing at all")] = 1
    scales: Annotated[tuple[float, ...], Range(above=0, most=2)] = (1.0,)
    weight: Annotated[float, Range(least=0)] = 0.0


@pytest.mark.parametrize("options", [{}, {"share": 0}, {"count": 1}, {"scales": ()}, {"scales": (2, 0.1)}])
def test_values_inside_their_range_pass(options: dict[str, object]) -> None:
    check_fields(Bounded(**options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 1.0}, r"share is 1\.0; use 0 up to, not including, 1\."),
        ({"share": -0.1}, r"share is -0\.1; use 0 up to, not including, 1\."),
        ({"count": 0}, r"count is 0; it must be above 0\."),
        ({"rank": 0}, r"rank is 0; use at least 1, or nothing at all\."),
        ({"scales": (1.0, 0.0)}, r"scales is \(1\.0, 0\.0\); use above 0 and at most 2\."),
        ({"scales": (2.5,)}, r"scales is \(2\.5,\); use above 0 and at most 2\."),
        ({"weight": -1.0}, r"weight is -1\.0; it must not be negative\."),
        ({"scales": (float("nan"),)}, "give a finite number"),
    ],
)
def test_values_outside_their_range_are_told_with_a_way_out(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_fields(Bounded(**options))  # type: ignore[arg-type]


def test_the_command_line_reads_the_same_ranges() -> None:
    found = {option.name: option for option in read_options(f"{__name__}:Bounded")}
    assert found["share"].range == Range(least=0, below=1)
    assert (found["count"].range, found["count"].optional) == (Range(above=0), True)
    assert (found["scales"].range, found["scales"].many) == (Range(above=0, most=2), True)
    with pytest.raises(argparse.ArgumentTypeError, match=r"^0 is out of range; use at least 1, or nothing at all\.$"):
        found["rank"].parse("0")
    with pytest.raises(argparse.ArgumentTypeError, match=r"^3 is out of range"):
        found["scales"].parse("1,3")
    assert "(0 up to, not including, 1; default: 0.5)" in _help(found["share"])
    assert _help(found["count"]).strip() == "(above 0)"


@dataclasses.dataclass(frozen=True)
class Inheriting(Bounded):
    """The ranges of another class."""


def test_ranges_are_inherited() -> None:
    with pytest.raises(ConfigError, match="share is 2"):
        check_fields(Inheriting(share=2))


def test_annotations_that_are_no_texts_are_read_too() -> None:
    fields = [("count", Annotated[int | None, Range(above=0)], 1), ("how", Literal["a", "b"], "a")]
    made = dataclasses.make_dataclass("Made", fields, namespace={"__module__": __name__})
    check_fields(made(count=None))
    with pytest.raises(ConfigError, match="count is 0; it must be above 0"):
        check_fields(made(count=0))
    with pytest.raises(ConfigError, match="how is 'c'"):
        check_fields(made(how="c"))


def test_one_bound_is_put_into_words() -> None:
    assert [str(Range(most=5)), str(Range(below=5))] == ["at most 5", "below 5"]
    assert Range(most=5).sentence() == "use at most 5"


@pytest.mark.parametrize(("name", "hint"), [("frist", " Did you mean 'first'?"), ("flowers", ""), ("nope", "")])
def test_only_what_is_alike_is_offered(name: str, hint: str) -> None:
    assert nearest(name, ["first", "mine"]) == hint
