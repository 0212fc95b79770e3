"""Checks that every configuration dataclass shares."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from typing import Any

from trimtab.errors import ConfigError, nearest

_KINDS = {bool: "True or False", int: "a whole number", float: "a number", str: "a text"}


def check_fields(config: Any) -> None:
    """Check the fields of a dataclass: words of a ``Literal``, numbers, texts, and floats for being finite.

    Raises:
        ConfigError: If a field holds a value of another type, another word than its type lists, or an
            infinite number or none.
    """
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        _check(field.name, getattr(config, field.name), hints[field.name])


def _check(name: str, value: Any, hint: Any) -> None:
    parts = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if value is None and type(None) in parts:
        return
    words = [word for part in parts if typing.get_origin(part) is typing.Literal for word in typing.get_args(part)]
    kinds = [part for part in parts if part in _KINDS]
    lists = [part for part in parts if typing.get_origin(part) is tuple]
    if lists and not words and not kinds:
        _check_list(name, value, typing.get_args(lists[0])[0])
    fits = value in words or any(_is(value, kind) for kind in kinds)
    if words and not fits:
        near = nearest(str(value), map(str, words), 1)
        raise ConfigError(f"{name} is {value!r}.{near} Choose one of: {', '.join(map(str, words))}.")
    if kinds and not fits:
        raise ConfigError(f"{name} is {value!r}; give {' or '.join(_KINDS[kind] for kind in kinds)}.")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{name} is {value}; give a finite number.")


def _check_list(name: str, value: Any, kind: Any) -> None:
    # A text is a sequence of its letters, which nobody means.
    words = typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()
    if not isinstance(value, (tuple, list)) or not all(e in words if words else _is(e, kind) for e in value):
        what = f"one of {', '.join(words)}" if words else _KINDS[kind]
        raise ConfigError(f"{name} is {value!r}; give a tuple, each entry {what}.")


def _is(value: object, kind: type) -> bool:
    if kind is not bool and isinstance(value, bool):
        return False
    # A whole number will do for any number, and for a text such as a size.
    return isinstance(value, (kind, int) if kind in (float, str) else kind)
