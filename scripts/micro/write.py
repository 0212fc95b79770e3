"""The trained backbone into the package: half precision, with what timm needs to build it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from scripts.micro.images import SIDE
from scripts.micro.student import ARCHITECTURE, ARGUMENTS, Student
from trimtab.files import write_bytes, write_json

NAME = "trimtab-micro"
ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "trimtab" / "embedded" / NAME
PREPROCESSING = {
    "input_size": [3, SIDE, SIDE],
    "interpolation": "bicubic",
    "crop_pct": 1.0,
    "crop_mode": "center",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
}
"""How the student saw its images; what is not square loses its ends."""


def trained(work: Path) -> nn.Module:
    """The averaged backbone of the training in ``work``, rounded to half precision as it is stored."""
    student = Student()
    student.load_state_dict(torch.load(work / "student.pt", weights_only=True)["average"])
    return student.backbone.half().float().eval()


def untrained() -> nn.Module:
    """The backbone as training begins with it."""
    torch.manual_seed(0)
    return Student().backbone.half().float().eval()


def write_model(backbone: nn.Module, folder: Path = PACKAGE) -> int:
    """Weights and configuration in the form in which timm saves a model.

    Returns:
        Bytes of the weights' file.
    """
    tensors: dict[str, Tensor] = {name: value.half().contiguous() for name, value in backbone.state_dict().items()}
    if not all(torch.isfinite(value).all() for value in tensors.values()):
        raise SystemExit("micro: the weights do not fit half precision; nothing is written.")
    raw = save(tensors, {"format": "pt"})
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / "model.safetensors", raw)
    config = {
        "architecture": ARCHITECTURE,
        "num_classes": 0,
        "num_features": ARGUMENTS["embed_dim"],
        "model_args": ARGUMENTS,
        "pretrained_cfg": {"architecture": ARCHITECTURE, "tag": "", "num_classes": 0, **PREPROCESSING},
    }
    write_json(folder / "config.json", json.loads(json.dumps(config)))
    return len(raw)
