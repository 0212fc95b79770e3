"""Frozen timm vision transformers, opened at their block boundaries; the one room that knows timm's insides."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trimtab.backbone.backbone import Backbone, reasons_not_to_open
    from trimtab.backbone.fingerprint import classifier_names

_HOMES = {
    "Backbone": "trimtab.backbone.backbone",
    "classifier_names": "trimtab.backbone.fingerprint",
    "reasons_not_to_open": "trimtab.backbone.backbone",
}

__all__ = ["Backbone", "classifier_names", "reasons_not_to_open"]


def __getattr__(name: str) -> Any:
    """Load a name on first use, so that `trimtab.backbone.sparing` can be there before timm."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value
