"""What every method must keep to, on every family of backbones.

A method in METHODS needs its configurations in ``cases.py``; nothing else has to be written to be tested here.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.families import FAMILIES, images_for, shared_backbone
from tests.methods.cases import CASES, CLASSES, REFUSED, Refusal, all_cases, main_cases, tuned
from trimtab.errors import ConfigError
from trimtab.methods import METHODS
from trimtab.methods.base import Method
from trimtab.methods.linear import LinearConfig
from trimtab.model import TunedModel, build
from trimtab.noise import Noise

# torch.compile and torch.export take seconds each: all configurations with one family, and the first
# configuration of each method that changes what blocks do with the families that differ most.
TRACED = [(*case, "class-token") for case in all_cases()] + [
    (method, name, family)
    for method, name in main_cases()
    for family in ("registers-average", "map-pool", "rope-mixed", "swin")
    if METHODS[method].touches_blocks
]


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=all_cases(), ids="-".join)
def case(request: pytest.FixtureRequest) -> tuple[str, str]:
    method, name = request.param
    return method, name


@pytest.fixture
def model(case: tuple[str, str], family: str) -> TunedModel:
    """A prepared model in eval mode."""
    if not CASES[case[0]][case[1]].supports(shared_backbone(family)):
        pytest.skip("what it refuses is tested below")
    return tuned(*case, family)


@pytest.fixture
def untraced() -> Iterator[None]:
    """What one test compiled must not count towards the next one's limit of recompilations."""
    yield
    torch.compiler.reset()


def step_loss(model: TunedModel, images: Tensor, noise: Noise | None = None) -> Tensor:
    """The loss of one training step, every image of another class."""
    outputs = model.train().outputs(images, noise=noise)
    return F.cross_entropy(outputs.logits, torch.arange(images.shape[0]) % CLASSES) + outputs.loss


def own_parameters(model: TunedModel) -> dict[str, nn.Parameter]:
    return {name: value for name, value in model.named_parameters() if not name.startswith("backbone.")}


def test_every_method_has_cases() -> None:
    for method in METHODS:
        assert CASES.get(method), f"add configurations of the method {method!r} to CASES in methods/cases.py"
        assert method in REFUSED, f"add what {method!r} must refuse to REFUSED in methods/cases.py, or []"


@pytest.mark.parametrize("method", METHODS)
def test_name_config_and_place_agree(method: str) -> None:
    cls = METHODS[method]
    assert cls.name == method
    assert cls.Config.__name__ == f"{cls.__name__}Config"
    assert cls.Config.__module__ == cls.__module__


@pytest.mark.parametrize("method", METHODS)
def test_default_config_can_be_made(method: str) -> None:
    METHODS[method].Config()


def test_shapes(model: TunedModel) -> None:
    images = images_for(model.backbone, count=3)
    logits, loss = model.train().outputs(images)
    assert logits.shape == (3, CLASSES)
    assert loss.shape == ()
    assert torch.isfinite(logits).all()
    assert torch.isfinite(loss)


def test_tokens_keep_their_shape(model: TunedModel) -> None:
    images = images_for(model.backbone, count=3)
    assert model.run(images).tokens.shape == build(model.backbone, LinearConfig(), 2).run(images).tokens.shape


def test_gradient_reaches_every_own_parameter(model: TunedModel, case: tuple[str, str]) -> None:
    step_loss(model, images_for(model.backbone, count=4)).backward()
    for name, parameter in own_parameters(model).items():
        assert parameter.grad is not None, name
        # Every row: a prompt of the first block as well as one of the last.
        rows = torch.atleast_2d(parameter.grad).abs().amax(-1) > 0
        rectified = CASES[case[0]][case[1]].rectified or "cpb_mlp" in name
        assert rows.any() if rectified else rows.all(), name


def test_gradient_reaches_no_backbone_parameter(model: TunedModel) -> None:
    step_loss(model, images_for(model.backbone, count=4)).backward()
    assert all(p.grad is None and not p.requires_grad for p in model.backbone.parameters())


def test_backbone_is_bit_identical_after_a_step(model: TunedModel) -> None:
    before = copy.deepcopy(model.backbone.state_dict())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    step_loss(model, images_for(model.backbone, count=4)).backward()
    optimizer.step()
    torch.testing.assert_close(model.backbone.state_dict(), before, rtol=0, atol=0)


def test_method_does_not_keep_the_backbone(model: TunedModel) -> None:
    backbone = {id(module) for module in model.backbone.modules()}
    assert not backbone & {id(module) for module in model.method.modules()}
    assert not backbone & {id(value) for value in vars(model.method).values()}


def test_parameter_formula(model: TunedModel, case: tuple[str, str]) -> None:
    head = CLASSES * (model.backbone.num_features + 1)
    expected = CASES[case[0]][case[1]].parameters(model.method.config, model.backbone)
    assert model.num_trainable() == expected + head


def test_saved_and_rebuilt_model_gives_the_same_bits(model: TunedModel, tmp_path: Path) -> None:
    images = images_for(model.backbone)
    expected = model(images)
    save_file({k: v.contiguous() for k, v in model.adapter_state_dict().items()}, tmp_path / "adapter.safetensors")
    torch.manual_seed(99)
    rebuilt = build(model.backbone, model.method.config, CLASSES).eval()
    rebuilt.load_adapter_state_dict(load_file(tmp_path / "adapter.safetensors"))
    assert torch.equal(rebuilt(images), expected)


def test_saved_tensors_are_the_methods_and_the_heads(model: TunedModel) -> None:
    assert {name.partition(".")[0] for name in model.adapter_state_dict()} <= {"method", "head"}
    assert own_parameters(model).keys() <= model.adapter_state_dict().keys()


def test_an_image_alone_is_the_image_in_a_batch(model: TunedModel) -> None:
    images = images_for(model.backbone, count=3)
    alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(alone, model(images), atol=1e-5, rtol=1e-5)


def test_features_change_iff_the_method_touches_blocks(model: TunedModel) -> None:
    images = images_for(model.backbone)
    plain = model.backbone.model.forward_head(model.backbone.model.forward_features(images), pre_logits=True)
    same = torch.allclose(model.backbone.pool(model.run(images)), plain, atol=1e-5)
    assert same is not model.method.touches_blocks


def test_micro_batches_draw_what_the_whole_batch_draws(model: TunedModel) -> None:
    images = images_for(model.backbone, count=4)
    model.train()
    whole = model.outputs(images, noise=Noise(7, first=0, total=4))
    parts = [model.outputs(images[k : k + 2], noise=Noise(7, first=k, total=4)) for k in (0, 2)]
    torch.testing.assert_close(torch.cat([p.logits for p in parts]), whole.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close((parts[0].loss + parts[1].loss) / 2, whole.loss, atol=1e-6, rtol=1e-5)


def test_folded_is_unfolded(model: TunedModel) -> None:
    images = images_for(model.backbone, count=3)
    expected = model(images)
    model.train()
    folded = model.fold()
    # A snapshot: neither changes the other.
    assert model.method.training
    assert not folded.method.training
    assert folded.method.name == model.method.name
    with torch.no_grad():
        for value in own_parameters(model).values():
            value.add_(1.0)
    torch.testing.assert_close(folded(images), expected, atol=1e-5, rtol=1e-5)


def test_evaluation_draws_nothing(model: TunedModel) -> None:
    images = images_for(model.backbone)
    first, state = model(images), torch.get_rng_state()
    assert torch.equal(model(images), first)
    assert torch.equal(torch.get_rng_state(), state)


def test_same_seed_makes_the_same_method(case: tuple[str, str]) -> None:
    shared_backbone("class-token")  # making it draws numbers too, but only for the test that comes first
    torch.manual_seed(5)
    first = tuned(*case, "class-token").adapter_state_dict()
    torch.manual_seed(5)
    second = tuned(*case, "class-token").adapter_state_dict()
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_bf16_error_is_near_the_plain_backbones(model: TunedModel) -> None:
    images = images_for(model.backbone, count=4)
    plain = build(model.backbone, METHODS["linear"].Config(), CLASSES).eval()
    plain.head.load_state_dict(model.head.state_dict())
    errors = []
    for network in (model, plain):
        exact = network(images)
        with torch.autocast("cpu", torch.bfloat16):
            errors.append((network(images).float() - exact).pow(2).mean().sqrt() / exact.std())
    assert errors[0] <= 2 * errors[1] + 0.01


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize(("method", "name", "family"), TRACED)
def test_inference_compiles_whole(method: str, name: str, family: str) -> None:
    model = tuned(method, name, family)
    images = images_for(model.backbone)
    compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=False)
    torch.testing.assert_close(compiled(images), model(images))


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize(("method", "name"), all_cases())
def test_training_compiles_whole(method: str, name: str) -> None:
    model = tuned(method, name, "class-token").train()
    images = images_for(model.backbone)
    compiled = torch.compile(model.outputs, fullgraph=True, backend="eager", dynamic=False)
    torch.manual_seed(1)
    expected = model.outputs(images)
    torch.manual_seed(1)
    torch.testing.assert_close(tuple(compiled(images)), tuple(expected))


@pytest.mark.parametrize(("method", "name", "family"), TRACED)
def test_exports_with_any_batch_size(method: str, name: str, family: str) -> None:
    model = tuned(method, name, family)
    batch = {"images": {0: torch.export.Dim("batch")}}
    program = torch.export.export(model, (images_for(model.backbone),), dynamic_shapes=batch)
    images = images_for(model.backbone, count=5)
    torch.testing.assert_close(program.module()(images), model(images), atol=1e-5, rtol=1e-5)


def test_overfits_16_images(case: tuple[str, str]) -> None:
    model = tuned(*case, "class-token")
    model.method.initialise_head(model.head.linear)
    images, labels = images_for(model.backbone, count=16), torch.arange(16) % CLASSES
    lr = CASES[case[0]][case[1]].overfit_lr
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=lr)
    for _ in range(50):
        optimizer.zero_grad()
        logits, extra = model.train().outputs(images)
        (F.cross_entropy(logits, labels) + extra).backward()
        optimizer.step()
    assert (model.eval()(images).argmax(1) == labels).all()


def test_declared_supported_is_supported(case: tuple[str, str], family: str) -> None:
    backbone = shared_backbone(family)
    reasons = METHODS[case[0]].unsupported(CASES[case[0]][case[1]].config(backbone), backbone)
    # That it then works is what all the other tests show.
    assert (not reasons) is CASES[case[0]][case[1]].supports(backbone)


@pytest.mark.parametrize(
    ("method", "refusal"), [(method, refusal) for method, cases in REFUSED.items() for refusal in cases]
)
class TestRefused:
    """What a method says it cannot do, it cannot do."""

    def test_reason_is_in_the_error(self, method: str, refusal: Refusal) -> None:
        with pytest.raises(ConfigError, match=refusal.reason):
            METHODS[method](refusal.config, shared_backbone(refusal.family))

    def test_without_the_refusal_it_fails(self, method: str, refusal: Refusal, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(METHODS[method], "unsupported", classmethod(lambda *_: []))
        backbone = shared_backbone(refusal.family)
        images = images_for(backbone, count=4)
        with pytest.raises((IndexError, RuntimeError, AssertionError)):
            self._trains(METHODS[method], refusal.config, images, refusal.family)

    def _trains(self, cls: type[Method[Any]], config: Any, images: Tensor, family: str) -> None:
        model = build(shared_backbone(family), config, CLASSES)
        model.prepare([images])
        step_loss(model, images).backward()
        assert all(p.grad is not None for p in own_parameters(model).values())
