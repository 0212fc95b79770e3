"""What the lowest versions that pyproject.toml allows do not have: whether it is there, skips, and a stand-in."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import pytest
import timm
from packaging.version import Version
from timm.models import vision_transformer


def has(package: str, version: str) -> bool:
    """Whether the installed version of a package is at least this one."""
    return Version(importlib.metadata.version(package)) >= Version(version)


def need(package: str, version: str) -> None:
    """Skip the test where the installed version of a package is older than this one."""
    if not has(package, version):
        pytest.skip(f"needs {package} {version} or newer")


def _stand_in_for_test_vit() -> None:
    """Give timm before 1.0.8 its later ``test_vit``, in this process."""

    def test_vit(pretrained: bool = False, **options: Any) -> Any:
        sizes = {
            "patch_size": 16,
            "embed_dim": 64,
            "depth": 6,
            "num_heads": 2,
            "mlp_ratio": 3,
            "dynamic_img_size": True,
        }
        return vision_transformer._create_vision_transformer("test_vit", pretrained=pretrained, **{**sizes, **options})

    tagged = {"test_vit.r160_in1k": vision_transformer._cfg(hf_hub_id="timm/", input_size=(3, 160, 160), crop_pct=0.95)}
    vision_transformer.default_cfgs.update(timm.models.generate_default_cfgs(tagged))
    test_vit.__module__ = vision_transformer.__name__
    timm.models.register_model(test_vit)


if not has("timm", "1.0.8"):
    _stand_in_for_test_vit()
