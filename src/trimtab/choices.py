"""Checks that every configuration dataclass shares."""

from __future__ import annotations

import dataclasses
import math
import typing
from typing import Any

from trimtab.errors import ConfigError, nearest


def check_choices(config: Any) -> None:
    """Check a dataclass's fields of type ``Literal`` for their words, and its floats for being finite.

    Raises:
        ConfigError: If a field holds another word than its type lists, or an infinite number or none.
    """
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        words = [
            word
            for part in (hints[field.name], *typing.get_args(hints[field.name]))
            if typing.get_origin(part) is typing.Literal
            for word in typing.get_args(part)
        ]
        if words and value is not None and value not in words:
            hint = nearest(str(value), map(str, words), 1)
            raise ConfigError(f"{field.name} is {value!r}.{hint} Choose one of: {', '.join(map(str, words))}.")
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{field.name} is {value}; give a finite number.")
