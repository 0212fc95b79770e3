"""Importing timm without what one backbone does not need.

``import timm`` imports every architecture, its data loaders and all of torchvision; some of these import the compiler
of torch with sympy and triton. Together they take about as long as torch itself, and a command that runs one backbone
uses none of it. Here the ``__init__`` of such a package waits until a name is asked for that needs it; its submodules
are imported from where they are. So a name is never missing and never another one: whoever asks for more waits then.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
import threading
from types import ModuleType
from typing import Any

_LOCK = threading.RLock()
_MODELS = "timm.models"
_WAITING: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "torchvision": (("torchvision", "torchvision.ops", "torchvision.models"), ()),
    "timm.data": (("timm.data",), ("constants", "config")),
    _MODELS: ((_MODELS,), ("_factory", "_registry", "_helpers")),
}
"""By name: packages that are completed together, and submodules whose names stand in the package, too."""


class _Waiting(ModuleType):
    """A package whose ``__init__`` has not run yet."""

    def __getattr__(self, name: str) -> Any:
        group = next(key for key, (packages, _) in _WAITING.items() if self.__name__ in packages)
        for submodule in _WAITING[group][1]:
            found = getattr(importlib.import_module(f"{self.__name__}.{submodule}"), name, _WAITING)
            if found is not _WAITING:
                return found
        _complete(group)
        return getattr(self, name)


def import_sparingly() -> None:
    """Import timm, where it is not imported yet, without what nobody has asked for.

    For processes of our own only: until `know_all_architectures`, timm lists the architectures of those of its modules
    that are imported.
    """
    if "timm" in sys.modules:
        return
    for packages, _ in _WAITING.values():
        if packages[0] not in sys.modules:
            for name in packages:
                _postpone(name)
    timm = importlib.import_module("timm")
    # Python does so when it imports a part after the whole.
    timm.data, timm.models = sys.modules["timm.data"], sys.modules[_MODELS]


def know_all_architectures() -> bool:
    """Have timm import every architecture, if it has not; returns whether there was anything to import."""
    return _complete(_MODELS)


def _postpone(name: str) -> None:
    """Put a package into ``sys.modules`` as an import does, but for running its ``__init__``."""
    parent, _, leaf = name.rpartition(".")
    above = sys.modules.get(parent)
    path = None if above is None else list(above.__path__)
    if parent and above is None:
        whole = importlib.machinery.PathFinder.find_spec(parent)
        path = [] if whole is None else whole.submodule_search_locations
    spec = importlib.machinery.PathFinder.find_spec(name, path)
    if spec is None or spec.loader is None or spec.submodule_search_locations is None:
        return  # whoever needs it will be told by Python
    module = importlib.util.module_from_spec(spec)
    module.__class__ = _Waiting
    sys.modules[name] = module
    if above is not None:
        setattr(above, leaf, module)


def _complete(group: str) -> bool:
    """Run what waits of a group; returns whether anything did."""
    ran = False
    with _LOCK:
        for name in _WAITING[group][0]:
            if isinstance(sys.modules.get(name), _Waiting):
                _run_init(sys.modules[name])
                ran = True
    return ran


def _run_init(module: Any) -> None:
    # First, as parts of the package import the package.
    module.__class__ = ModuleType
    module.__spec__.loader.exec_module(module)
