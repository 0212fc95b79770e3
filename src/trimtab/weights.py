"""The former place of :mod:`trimtab.backbone.weights`."""

from __future__ import annotations

import warnings
from typing import Any


def __getattr__(name: str) -> Any:
    """Return a name of :mod:`trimtab.backbone.weights`, with a deprecation warning."""
    from trimtab.backbone import weights

    value = getattr(weights, name)
    if not name.startswith("__"):
        warnings.warn(f"trimtab.weights.{name} is now trimtab.backbone.weights.{name}", DeprecationWarning, 2)
    return value
