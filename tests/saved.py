"""Models saved as timm saves them for the Hugging Face hub: in a folder, or where the hub's client keeps its files."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import huggingface_hub.constants
import huggingface_hub.utils._http
import pytest
import timm
from timm.models._hub import save_for_hf
from torch import nn

from tests.families import scramble
from tests.versions import has

NAME = "test_vit"
OWN: Mapping[str, Any] = MappingProxyType(
    {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "crop_pct": 0.8, "interpolation": "bilinear"}
)
"""Preprocessing that no model of timm's has."""
_COMMIT = "0123456789abcdef0123456789abcdef01234567"


def save(folder: Path, *, safe: bool = True, **options: Any) -> nn.Module:
    """Save a random model with preprocessing of its own; the weights as safetensors, or pickled."""
    model = scramble(timm.create_model(NAME, pretrained_cfg_overlay=dict(OWN), **options), seed=6).eval()
    save_for_hf(model, folder, safe_serialization=safe)
    return model


def offline(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the hub's client from the network and give it another cache, empty."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    if not has("huggingface_hub", "1.0"):
        # A session stays as it was made, with a network or without: this test's are its own.
        client, name = huggingface_hub.utils._http, "_get_session_from_cache"
        monkeypatch.setattr(client, name, functools.lru_cache(getattr(client, name).__wrapped__))
    return cache


def cached(cache: Path, repository: str = "me/mine", revision: str = "main") -> Path:
    """Where the client would have put the files of a repository."""
    home = cache / f"models--{repository.replace('/', '--')}"
    (home / "refs").mkdir(parents=True, exist_ok=True)
    (home / "refs" / revision).write_text(_COMMIT)
    return home / "snapshots" / _COMMIT
