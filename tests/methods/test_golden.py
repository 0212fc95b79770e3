"""Values of the official models on random weights (see golden/README.md beside the repository)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from trimtab.backbone import Backbone
from trimtab.methods.adapter import Adapter, AdapterConfig
from trimtab.methods.ship import SHIP, SHIPConfig, greedy_hierarchy
from trimtab.methods.vfpt import VFPT, VFPTConfig
from trimtab.methods.vpt import VPT, VPTConfig
from trimtab.model import TunedModel, build

GOLDEN = Path(__file__).parents[2] / ".." / "shared" / "golden"
NETWORKS = (
    *("vpt_deep", "vpt_shallow", "vfpt_deep", "vfpt_shallow", "adapter_plus", "adapter_plus_narrow"),
    *("ship_sparse_hierarchy", "ship_every_block"),
)
TOLERANCE = {"atol": 1e-5, "rtol": 0.0}

pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason="no golden tensors beside the repository")


def adapter_key(name: str) -> str:
    """The golden name of an adapter's parameter: ``down.3.weight`` is ``adapter/3/down.weight``."""
    part, block, *leaf = name.split(".")
    return f"adapter/{block}/" + ("scale" if part == "scales" else f"{part}.{leaf[0]}")


class Golden:
    """One golden network, our model with its parameters, and one training step of it."""

    def __init__(self, name: str) -> None:
        with np.load(GOLDEN / f"{name}.npz") as file:
            self.arrays = {key: torch.from_numpy(np.asarray(file[key])) for key in file.files}
        network = timm.create_model("vit_base_patch16_224", embed_dim=48, num_heads=3, mlp_ratio=2, num_classes=7)
        network.load_state_dict(self.under("backbone/"))
        self.model: TunedModel = build(Backbone(network), self.config(), 7)
        self.model.head.linear.load_state_dict({name: self[f"backbone/head.{name}"] for name in ("weight", "bias")})
        with torch.no_grad():
            for key, parameter in self.parameters():
                parameter.copy_(self[key])
            if isinstance(self.model.method, SHIP):
                self.model.method.prototypes.copy_(self["prototypes"])

    def __getitem__(self, key: str) -> Tensor:
        return self.arrays[key]

    def under(self, prefix: str) -> dict[str, Tensor]:
        return {key[len(prefix) :]: v for key, v in self.arrays.items() if key.startswith(prefix)}

    def config(self) -> Any:
        if "bottleneck" in self.arrays:
            return AdapterConfig(dim=int(self["bottleneck"]), drop_path=0.0, backbone_drop_path=0.0)
        if "fourier_share" in self.arrays:
            sets, share = self.under("prompts/"), float(self["fourier_share"])
            return VFPTConfig(num_prompts=len(sets["0"]), deep=len(sets) > 1, fourier_share=share)
        if "hierarchy_starts" not in self.arrays:
            sets = self.under("prompts/")
            return VPTConfig(num_prompts=len(sets["0"]), deep=len(sets) > 1, dropout=0.0)
        return SHIPConfig(
            prompt_length=len(self["sip/0"]),
            hierarchy=tuple(self["hierarchy_starts"].tolist()),
            prototypes=len(self["prototypes"]),
            drop_path=0.0,
        )

    def parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Golden keys and what holds their values here; writing to a view writes to the parameter."""
        method = self.model.method
        if isinstance(method, (VPT, VFPT)):
            yield from ((f"prompts/{i}", prompts) for i, prompts in enumerate(method.prompts))
            return
        if isinstance(method, Adapter):
            for name, value in method.named_parameters():
                yield adapter_key(name), value
            return
        yield from ((f"sip/{m}", prompts) for m, prompts in enumerate(method.independent))
        yield from (("ssp", method.shared[0]), ("attribute", method.attribute))

    @cached_property
    def step(self) -> dict[str, Tensor]:
        """Logits, losses and gradients of one training step."""
        self.model.train()
        outputs = self.model.outputs(self["image"].float())
        cross_entropy = F.cross_entropy(outputs.logits, self["target"])
        loss = cross_entropy + outputs.loss
        trained = dict(self.model.named_parameters())
        trained = {name: value for name, value in trained.items() if value.requires_grad}
        gradients = dict(zip(trained, torch.autograd.grad(loss, list(trained.values())), strict=True))
        values = {"logits": outputs.logits.detach(), "loss": loss.detach()}
        values |= {"cross_entropy": cross_entropy.detach(), "extra": outputs.loss.detach()}
        for name in ("weight", "bias"):
            values[f"grad/head.{name}"] = gradients[f"head.linear.{name}"]
        if isinstance(self.model.method, Adapter):
            for name, _ in self.model.method.named_parameters():
                values[f"grad/{adapter_key(name)}"] = gradients[f"method.{name}"]
        elif isinstance(self.model.method, (VPT, VFPT)):
            for i, rows in enumerate(gradients["method.prompts.stages.0"]):
                values[f"grad/prompts/{i}"] = rows
        else:
            values["grad/ssp"] = gradients["method.shared.0"]
            values["grad/attribute"] = gradients["method.attribute"]
            for m in range(len(self.model.method.independent)):
                values[f"grad/sip/{m}"] = gradients[f"method.independent.{m}"]
        return values

    @cached_property
    def trace(self) -> list[tuple[int, Tensor]]:
        """Of every block in evaluation: tokens and prompts that enter it, class tokens that leave it."""
        model, seen = self.model.eval(), []
        with torch.no_grad():
            stream = model.backbone.embed(self["image"].float())
            for i in range(model.backbone.depth):
                tokens = stream.tokens.shape[1]
                if isinstance(model.method, SHIP):
                    tokens += sum(p.shape[1] for p in model.method._entering(i, stream))
                stream = model.method.step(i, model.backbone, stream)
                seen.append((tokens, stream.tokens[:, 0]))
        return seen


@pytest.fixture(scope="module", params=NETWORKS)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


@pytest.fixture(scope="module", params=[name for name in NETWORKS if name.startswith("ship")])
def golden_ship(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


def test_logits_in_training(golden: Golden) -> None:
    torch.testing.assert_close(golden.step["logits"], golden["logits"], **TOLERANCE)


def test_logits_in_evaluation(golden: Golden) -> None:
    with torch.no_grad():
        logits = golden.model.eval()(golden["image"].float())
    torch.testing.assert_close(logits, golden["logits"], **TOLERANCE)


def test_loss(golden: Golden) -> None:
    torch.testing.assert_close(golden.step["loss"], golden["loss"].float(), **TOLERANCE)


def test_every_gradient(golden: Golden) -> None:
    expected = {key: value for key, value in golden.arrays.items() if key.startswith("grad/")}
    ours = {key: value for key, value in golden.step.items() if key.startswith("grad/")}
    torch.testing.assert_close(ours, expected, **TOLERANCE)


def test_matching_loss(golden_ship: Golden) -> None:
    expected = 0.5 * golden_ship["matching_loss"].float()
    torch.testing.assert_close(golden_ship.step["extra"], expected, **TOLERANCE)


def test_cross_entropy(golden_ship: Golden) -> None:
    expected = golden_ship["cross_entropy"].float()
    torch.testing.assert_close(golden_ship.step["cross_entropy"], expected, **TOLERANCE)


@pytest.mark.parametrize("name", [name for name in NETWORKS if not name.startswith("vpt")])
def test_class_token_after_every_block(name: str) -> None:
    golden = Golden(name)
    ours = torch.stack([cls for _, cls in golden.trace])
    torch.testing.assert_close(ours, golden["block_cls"], **TOLERANCE)


@pytest.mark.parametrize("name", ["vfpt_deep", "vfpt_shallow"])
def test_fourier_prompts_as_they_enter(name: str) -> None:
    golden = Golden(name)
    method = golden.model.method.eval()
    assert isinstance(method, VFPT)
    assert method.config.num_fourier == int(golden["fourier_tokens"])
    for block, expected in golden.under("entering/").items():
        torch.testing.assert_close(method.fed(int(block)).detach(), expected, **TOLERANCE)


@pytest.mark.parametrize("name", ["vfpt_deep", "vfpt_shallow"])
def test_fourier_prompts_fold_into_plain_ones(name: str) -> None:
    golden = Golden(name)
    fed = golden.under("entering/")
    config = VPTConfig(num_prompts=len(fed["0"]), deep=len(fed) > 1, dropout=0.0)
    plain = build(golden.model.backbone, config, 7).eval()
    plain.head.load_state_dict(golden.model.head.state_dict())
    folded, images = golden.model.eval().fold(), golden["image"].float()
    with torch.no_grad():
        for i, prompts in enumerate(plain.method.prompts):
            prompts.copy_(fed[str(i)])
        torch.testing.assert_close(folded(images), plain(images), atol=1e-6, rtol=0)


def test_tokens_per_block(golden_ship: Golden) -> None:
    assert [tokens for tokens, _ in golden_ship.trace] == golden_ship["tokens_per_block"].tolist()


def _affinity_tasks() -> list[str]:
    path = GOLDEN / "ship_affinity.npz"
    if not path.is_file():
        return []
    with np.load(path) as file:
        return sorted(key.removesuffix("/affinity") for key in file.files if key.endswith("/affinity"))


@pytest.mark.parametrize("task", _affinity_tasks())
def test_official_affinity_gives_the_official_hierarchy(task: str) -> None:
    with np.load(GOLDEN / "ship_affinity.npz") as file:
        affinity = torch.from_numpy(file[f"{task}/affinity"])
        threshold, starts = float(file[f"{task}/threshold"]), tuple(file[f"{task}/starts"].tolist())
    assert greedy_hierarchy(affinity, threshold) == starts


def test_there_are_19_affinity_matrices() -> None:
    assert len(_affinity_tasks()) == 19
