"""What the lowest versions that pyproject.toml allows do not have: whether it is there, skips, and a stand-in."""

from __future__ import annotations

import importlib.metadata
import types
from collections.abc import Callable
from typing import Any

import pytest
import timm
from packaging.version import Version
from timm.models import resnet, vision_transformer
from torch import nn


def has(package: str, version: str) -> bool:
    """Whether the installed version of a package is at least this one."""
    return Version(importlib.metadata.version(package)) >= Version(version)


def need(package: str, version: str) -> None:
    """Skip the test where the installed version of a package is older than this one."""
    if not has(package, version):
        pytest.skip(f"needs {package} {version} or newer")


opens_folders = pytest.mark.skipif(not has("timm", "1.0.16"), reason="needs timm 1.0.16 or newer, which opens folders")
writes_onnx = pytest.mark.skipif(not has("torch", "2.7"), reason="needs torch 2.7 or newer, which writes it as ONNX")

_SMALL = {"patch_size": 16, "embed_dim": 64, "depth": 6, "num_heads": 2, "mlp_ratio": 3, "dynamic_img_size": True}
_AVERAGE = {"depth": 8, "class_token": False, "reg_tokens": 1, "global_pool": "avg", "init_values": 1e-5}
_MAP = {"embed_dim": 96, "depth": 9, "num_heads": 3, "mlp_ratio": 2, "global_pool": "map", "dynamic_img_size": False}
_TEST_MODELS: dict[str, dict[str, Any]] = {
    "test_vit": _SMALL,
    "test_vit2": _SMALL | _AVERAGE,
    "test_vit3": _SMALL | _AVERAGE | _MAP,
}
"""Models that timm has had for tests since 1.0.10, to be made with these options before."""


def _stand_in(name: str, module: types.ModuleType, make: Callable[..., nn.Module], **sizes: Any) -> None:
    """Make timm know a model, in this process, as if it were one of that module of its own."""

    def entry(pretrained: bool = False, **options: Any) -> nn.Module:
        return make(name, pretrained=pretrained, **{**sizes, **options})

    tagged = {f"{name}.r160_in1k": module._cfg(hf_hub_id="timm/", input_size=(3, 160, 160), crop_pct=0.95)}
    module.default_cfgs.update(timm.models.generate_default_cfgs(tagged))
    entry.__name__, entry.__module__ = name, module.__name__
    timm.models.register_model(entry)


if not has("timm", "1.0.10"):
    for _name, _sizes in _TEST_MODELS.items():
        if not timm.is_model(_name):
            _stand_in(_name, vision_transformer, vision_transformer._create_vision_transformer, **_sizes)
    _stand_in("test_resnet", resnet, resnet._create_resnet, block=resnet.BasicBlock, layers=(1, 1, 1, 1))
