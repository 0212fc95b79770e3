"""Getting a backbone: timm's name, a weights file or timm's own download, and an image size."""

from __future__ import annotations

import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import timm
import timm.models
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from trimtab.backbone import Backbone, classifier_names, reasons_not_to_open
from trimtab.errors import BackboneError, nearest

_HUB_PREFIXES = ("hf-hub:", "hf_hub:", "local-dir:")
_SUFFIXES = (".safetensors", ".npz", ".pth", ".pt", ".bin")


def load_backbone(
    name: str,
    *,
    weights: str | Path | None = None,
    image_size: tuple[int, int] | None = None,
    device: torch.device | str = "cpu",
) -> Backbone:
    """A frozen backbone with pretrained weights.

    Args:
        name: A timm model name, with or without a pretrained tag (``"vit_base_patch16_224.augreg_in21k"``).
        weights: A safetensors file, or a pth or npz file as timm reads them; by default timm's own download.
        image_size: (height, width) in pixels; by default the model's own.
        device: Where to put it.

    Raises:
        BackboneError: If the name is unknown, the weights do not fit, or the model cannot be opened.
    """
    model = _create(name, pretrained=False)
    reasons = reasons_not_to_open(model)
    if not reasons:
        if weights is None:
            model = _create(name, pretrained=True)
        else:
            _load(model, name, Path(weights))
    backbone = Backbone(model, name)
    if image_size is not None:
        backbone.set_image_size(*image_size)
    return backbone.to(device)


def _create(name: str, *, pretrained: bool) -> nn.Module:
    architecture, _, tag = name.partition(".")
    if not name.startswith(_HUB_PREFIXES):
        if not timm.is_model(architecture):
            hint = nearest(architecture, timm.list_models())
            raise BackboneError(
                f"timm {timm.__version__} has no model {architecture!r}.{hint} "
                "Every name is listed by timm.list_models()."
            )
        tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
        if tag and tag not in tags:
            raise BackboneError(
                f"{architecture!r} has no pretrained tag {tag!r}.{nearest(tag, tags)} "
                f"It has: {', '.join(tags) or 'none'}."
            )
    try:
        model: nn.Module = timm.create_model(name, pretrained=pretrained)
    except Exception as error:  # timm and the hub raise whatever their layers raise
        reason = " ".join(str(error).split())[:200]
        raise BackboneError(
            f"The weights of {name!r} could not be fetched by timm ({type(error).__name__}: {reason}). "
            "Check the network, or name a local file with --weights FILE."
            if pretrained
            else f"timm could not build {name!r} ({type(error).__name__}: {reason})."
        ) from error
    return model


def _load(model: Any, name: str, path: Path) -> None:
    """Put a weights file into ``model``; the classifier's weights may be missing or of another size."""
    if not path.is_file():
        raise BackboneError(f"There is no weights file {str(path)!r}; check --weights.")
    if path.suffix not in _SUFFIXES:
        raise BackboneError(f"Weights file {path.name!r} ends in {path.suffix!r}; use one of {', '.join(_SUFFIXES)}.")
    try:
        if path.suffix == ".npz":
            _check_npz(path)
            model.load_pretrained(str(path))
            return
        state = timm.models.load_state_dict(str(path), weights_only=True)
        convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
        state = convert(state, model) if convert else state
        missing, unexpected = _fit(model, state)
    except (
        SafetensorError,
        RuntimeError,
        KeyError,
        ValueError,
        AttributeError,
        TypeError,
        IndexError,
        EOFError,
        OSError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
    ) as error:
        reason = " ".join(str(error).split())[:200]
        raise BackboneError(
            f"Weights file {path.name!r} cannot be read into {name!r} ({type(error).__name__}: {reason}). "
            "It may be truncated, belong to another model, or hold pickled code, which is never run."
        ) from error
    if missing or unexpected:
        raise BackboneError(
            f"Weights file {path.name!r} is not of {name!r}: {len(missing)} tensors missing "
            f"({', '.join(missing[:3]) or '-'}), {len(unexpected)} unknown ({', '.join(unexpected[:3]) or '-'}). "
            "Name the model that the file was saved from."
        )


def _check_npz(path: Path) -> None:
    """Read every array once: timm and numpy leave a file open that is truncated or holds pickled code."""
    zipfile.ZipFile(path).close()
    with np.load(path, allow_pickle=False) as arrays:
        for name in arrays.files:
            _ = arrays[name]


def _fit(model: nn.Module, state: dict[str, Tensor]) -> tuple[list[str], list[str]]:
    """Load all but the classifier; returns the names that are missing and those that are unknown."""
    skip = tuple(f"{name}." for name in classifier_names(model))
    body = {name: value for name, value in state.items() if not name.startswith(skip)}
    result = model.load_state_dict(body, strict=False)
    missing = [name for name in result.missing_keys if not name.startswith(skip)]
    return missing, list(result.unexpected_keys)
