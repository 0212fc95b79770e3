"""How a run computes, where torch has one setting for the whole process: TF32, and deterministic algorithms."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator

import torch

from trimtab.errors import ConfigError
from trimtab.recipe import FitConfig
from trimtab.training.run_folder import RunFolder


def resolve_tf32(config: FitConfig, device: torch.device, folder: RunFolder) -> FitConfig:
    """Return the options with ``tf32`` as it is used: on a GPU in float32, and in a run that goes on as it began."""
    used = config.tf32 and device.type == "cuda" and config.precision == "fp32"
    if used and folder.going_on:
        used = bool(folder.recorded().get("tf32", False))
    return dataclasses.replace(config, tf32=used)


@contextlib.contextmanager
def arithmetic(config: FitConfig) -> Iterator[None]:
    """Compute as the options say inside, and as before afterwards.

    Raises:
        ConfigError: If an operation has no deterministic form and one is asked for.
    """
    with contextlib.ExitStack() as stack:
        if config.tf32:
            stack.enter_context(_tf32())
        if config.deterministic:
            stack.enter_context(_deterministic())
        yield


@contextlib.contextmanager
def _tf32() -> Iterator[None]:
    """Multiply float32 matrices in TF32 inside."""
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:
        # It was set by torch's newer interface, which the older one must not be mixed with: by somebody who chose.
        yield
        return
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    """Use deterministic algorithms alone inside."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    # cuBLAS reads it when it is first used.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        reason = " ".join(str(error).split()).partition(". ")[0]
        raise ConfigError(f"deterministic cannot be had here: {reason}. Leave it out, or train on the CPU.") from error
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark = benchmark
