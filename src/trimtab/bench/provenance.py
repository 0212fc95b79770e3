"""Provenance of a number: versions, source, machine, model."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import math
import platform
from pathlib import Path
from typing import Any


def provenance() -> dict[str, Any]:
    """Collect versions, a digest of trimtab's source, and the GPU, as JSON values."""
    import torch

    versions = {name: importlib.metadata.version(name) for name in ("trimtab", "torch", "timm")}
    return {
        "versions": versions,
        "code": _code(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def computer() -> dict[str, Any]:
    """Describe the machine, without its name."""
    return {
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
        "processor": platform.machine(),
    }


@functools.cache
def _code() -> str:
    """Compute a digest of trimtab's source, which tells whether rows come from the same code."""
    folder = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(file.relative_to(folder).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def finite(value: float | None) -> float | None:
    """Replace a loss that is no JSON number by ``None``."""
    return value if value is not None and math.isfinite(value) else None


def head_parameters(out: Path) -> int:
    """Count the parameters of an adapter's head."""
    from safetensors import safe_open

    with safe_open(out / "adapter_model.safetensors", "pt") as tensors:
        names = [name for name in tensors.keys() if name.startswith("head.")]  # noqa: SIM118
        return sum(math.prod(tensors.get_slice(name).get_shape()) for name in names)


def model_digest(folder: Path) -> str:
    """Return the digest that tells a saved model from another: of the file of its tensors."""
    return hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()[:16]
