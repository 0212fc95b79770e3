"""Visual prompt tuning: steer a frozen vision transformer to your images with a file of a few hundred kilobytes.

The public names are loaded on first use, so that ``import trimtab`` and ``trimtab --help`` stay fast.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from trimtab.errors import (
    BackboneError,
    CheckpointError,
    ConfigError,
    DataError,
    TrainingError,
    TrimtabError,
)

if TYPE_CHECKING:
    from trimtab.evaluate import Predictor, evaluate, load
    from trimtab.fit import FitResult, fit
    from trimtab.heads import SegmenterConfig
    from trimtab.methods import METHODS
    from trimtab.model import attach
    from trimtab.progress import Progress, TerminalProgress
    from trimtab.recipe import FitConfig
    from trimtab.report import Report, report
    from trimtab.segment import MaskPredictor
    from trimtab.sliding import Views

__version__ = "0.1.0.dev0"

_HOMES = {
    "FitConfig": "trimtab.recipe",
    "FitResult": "trimtab.fit",
    "METHODS": "trimtab.methods",
    "MaskPredictor": "trimtab.segment",
    "Predictor": "trimtab.evaluate",
    "Progress": "trimtab.progress",
    "Report": "trimtab.report",
    "SegmenterConfig": "trimtab.heads",
    "TerminalProgress": "trimtab.progress",
    "Views": "trimtab.sliding",
    "attach": "trimtab.model",
    "evaluate": "trimtab.evaluate",
    "fit": "trimtab.fit",
    "load": "trimtab.evaluate",
    "report": "trimtab.report",
}

__all__ = [
    "METHODS",
    "BackboneError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "FitConfig",
    "FitResult",
    "MaskPredictor",
    "Predictor",
    "Progress",
    "Report",
    "SegmenterConfig",
    "TerminalProgress",
    "TrainingError",
    "TrimtabError",
    "Views",
    "__version__",
    "attach",
    "evaluate",
    "fit",
    "load",
    "report",
]


def __getattr__(name: str) -> Any:
    """The public name ``name``; configs of methods come from ``trimtab.methods``, which knows them."""
    home = _HOMES.get(name) or ("trimtab.methods" if name.endswith("Config") else None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps ``trimtab.fit`` the function: importing the file of the same name would rebind it."""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and _HOMES.get(name) == value.__name__:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
