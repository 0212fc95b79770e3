"""The trained backbone into the package: half precision, with what timm needs to build it, and its card."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from scripts.micro.card import write_card
from scripts.micro.student import ARCHITECTURE, ARGUMENTS, PREPROCESSING, trained
from trimtab.backbone.embedded import embedded_weights
from trimtab.storage.files import write_bytes, write_json

NAME = "trimtab-micro"
DOCS = Path(__file__).parents[2] / "docs"


def write_all(work: Path) -> None:
    """Weights, configuration, card, and the page in docs; nothing if one of them cannot be."""
    file, backbone = embedded_weights(NAME), trained(work)
    write_card(work, backbone, file.parent, DOCS)
    print(f"{file}: {write_model(backbone, file)} bytes")


def write_model(backbone: nn.Module, file: Path) -> int:
    """Weights and configuration in the form in which timm saves a model.

    Returns:
        Bytes of the weights' file.
    """
    tensors: dict[str, Tensor] = {name: value.half().contiguous() for name, value in backbone.state_dict().items()}
    if not all(torch.isfinite(value).all() for value in tensors.values()):
        raise SystemExit("micro: the weights do not fit half precision; nothing is written.")
    raw = save(tensors, {"format": "pt"})
    file.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(file, raw)
    config = {
        "architecture": ARCHITECTURE,
        "num_classes": 0,
        "num_features": ARGUMENTS["embed_dim"],
        "model_args": ARGUMENTS,
        "pretrained_cfg": {"architecture": ARCHITECTURE, "tag": "", "num_classes": 0, **PREPROCESSING},
    }
    write_json(file.with_name("config.json"), config)
    return len(raw)
