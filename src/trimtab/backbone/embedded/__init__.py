"""Backbones that are in the package: no download, no network.

Each has a folder beside this file, in the form in which timm saves a model: ``config.json``, ``model.safetensors``
(half precision) and a model card. ``scripts/micro`` is what made them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

EMBEDDED = ("trimtab-micro",)
"""Their names; the first is what is tuned when none is named."""


def embedded_weights(name: str) -> Path:
    """The weights' file of one of :data:`EMBEDDED`."""
    return Path(__file__).with_name(name) / "model.safetensors"


def embedded_model(name: str) -> tuple[str, dict[str, Any]]:
    """Return timm's architecture of one of :data:`EMBEDDED`, and options for ``create_model``."""
    # Not timm's `local-dir:`, which came with 1.0.16.
    config = json.loads(embedded_weights(name).with_name("config.json").read_text(encoding="utf-8"))
    return config["architecture"], {**config["model_args"], "pretrained_cfg": config["pretrained_cfg"]}
