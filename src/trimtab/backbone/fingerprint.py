"""Telling pretrained weights apart."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


def classifier_names(model: nn.Module) -> tuple[str, ...]:
    """Names of timm's own classifier layers, which trimtab neither uses nor fingerprints."""
    names = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or "head"
    return tuple(names) if isinstance(names, (list, tuple)) else (names,)


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over names, shapes and float32 values of all weights but the classifier's."""
    digest = hashlib.sha256()
    skip = tuple(f"{name}." for name in classifier_names(model))
    for name, value in sorted(model.state_dict().items()):
        if not name.startswith(skip):
            digest.update(f"{name}{tuple(value.shape)}".encode())
            digest.update(value.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()
