"""What to compute in: float32, or bfloat16 where the device has matrix units for it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, TypeAlias, cast, get_args

import torch

from trimtab.errors import ConfigError

Precision: TypeAlias = Literal["fp32", "bf16"]
"""float32; or bfloat16, with float32 where that is needed."""
VARIABLE = "TRIMTAB_PRECISION"
"""Says in the environment whether there are matrix units (bf16) or not (fp32), whatever the device has."""


def resolve_precision(asked: str, device: torch.device | str, *, trained: str | None = None) -> Precision:
    """Return the precision that ``"auto"`` stands for on a device: bfloat16 where it has matrix units for that.

    Args:
        asked: ``"auto"``, or a precision.
        device: Where to compute.
        trained: What an adapter was trained in; one that was trained in float32 stays in it.

    Raises:
        ConfigError: If what is asked for, or is in the environment, is no precision.
    """
    if asked != "auto":
        return checked(asked, "precision", "auto")
    units = os.environ.get(VARIABLE)
    low = has_matrix_units(torch.device(device)) if not units else checked(units, VARIABLE) == "bf16"
    return "bf16" if low and trained in (None, "bf16") else "fp32"


def checked(value: object, what: str, *others: str) -> Precision:
    """Return a precision.

    Args:
        value: What should be one.
        what: Its name in an error.
        others: What else could have stood there.

    Raises:
        ConfigError: If it is none.
    """
    if value not in get_args(Precision):
        raise ConfigError(f"{what} is {value!r}; use one of {', '.join((*others, *get_args(Precision)))}.")
    return cast("Precision", value)


def has_matrix_units(device: torch.device) -> bool:
    """Return whether a device multiplies matrices of bfloat16 in units of their own: CUDA from 8.0, CPUs with AMX."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and _has_amx()


def _has_amx() -> bool:
    # By the processor's own word, and not by torch's private functions, which change from version to version.
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not on Linux, without which torch does not use AMX either
        return False
    return "amx_bf16" in flags.split()
