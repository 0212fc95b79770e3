"""What is timed: the plain backbone, concatenated prompts, context prompts, folded models."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trimtab import SegmenterConfig, attach
from trimtab.model import TunedModel
from trimtab.training.memory import kept_activations

CLASSES = 10
SHARED = 10
"""SHIP's shared prompts, which come on top of those of its hierarchies (and attribute prompts in two blocks)."""
LIKE_SHIP = "vpt, ship's prompts"
"""VPT-deep with as many prompts in every block as SHIP has."""
PEFT = "peft lora"
"""LoRA of the peft library on timm's model, its classifier trained along: what people pick instead."""
MODELS = {
    "tiny": "vit_tiny_patch16_224",
    "small": "vit_small_patch16_224",
    "base": "vit_base_patch16_224",
    "large": "vit_large_patch16_224",
}


class Concatenated(nn.Module):
    """VPT-deep as it is usually written: prompts are tokens of the sequence, dropped after every block.

    Kept as the oracle: on the same prompts it gives the same logits.

    Args:
        model: A timm ``VisionTransformer`` that pools its class token; frozen here.
        prompts: (depth, P, D), trained.
        head: The classifier, trained.
    """

    def __init__(self, model: Any, prompts: Tensor, head: nn.Module) -> None:
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        self.prompts = nn.Parameter(prompts.detach().clone())
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, height, width) to logits (B, C)."""
        model = self.model
        x = model.norm_pre(model._pos_embed(model.patch_embed(images)))
        tokens = x.shape[1]
        for block, prompts in zip(model.blocks, self.prompts, strict=True):
            x = block(torch.cat([x, prompts.expand(x.shape[0], -1, -1)], 1))[:, :tokens]
        logits: Tensor = self.head(model.norm(x)[:, 0])
        return logits


@dataclasses.dataclass(frozen=True)
class Setting:
    """One line of the table without its subject.

    ``dtype`` is ``"fp32"``; ``"autocast"``, float32 weights under autocast to bfloat16; or ``"bf16"``, frozen weights
    that are stored in bfloat16 where the subject can (the others then run under autocast).
    """

    model: str
    prompts: int
    image_size: int
    batch_size: int
    dtype: str
    device: str
    compiled: bool
    head: str = "classifier"
    """Or a segmentation head; plain is then the backbone with that head, and nothing is concatenated."""


def method_options(method: str, prompts: int) -> dict[str, Any]:
    """A method with so many prompts a block; LoRA has none, and gets its default rank."""
    options: Mapping[str, dict[str, Any]] = {
        "vpt": {"num_prompts": prompts, "dropout": 0.0, "prompt_init": "uniform"},
        "svpt": {"num_prompts": prompts, "dropout": 0.0, "prompt_init": "uniform"},
        # Six hierarchies and the official sets besides, as in the issue.
        "ship": {"prompt_length": prompts, "hierarchy": (0, 2, 4, 6, 8, 11)},
        "lora": {},
    }
    return options[method]


def split_dtype(subject: str, setting: Setting) -> tuple[str, Setting]:
    """Return the subject and its setting, of ``"subject @ dtype"`` or a subject alone."""
    name, _, dtype = subject.partition(" @ ")
    return name, dataclasses.replace(setting, dtype=dtype or setting.dtype)


def make(subject: str, setting: Setting) -> nn.Module:
    """The module of a subject: ``plain``, ``concatenated``, ``peft lora``, or a method, perhaps ``folded``."""
    module = _in_float32(subject, setting)
    if setting.dtype != "bf16":
        return module
    if isinstance(module, TunedModel):
        return module.with_precision("bf16")
    return module.bfloat16() if subject == "plain" else module


def _in_float32(subject: str, setting: Setting) -> nn.Module:
    torch.manual_seed(0)
    size: Any = setting.image_size
    plain = timm.create_model(MODELS[setting.model], num_classes=CLASSES, img_size=size).to(setting.device).eval()
    segmenter: Any = None if setting.head == "classifier" else SegmenterConfig(head=setting.head)
    if subject == "plain" and segmenter is not None:
        return attach(plain, "linear", CLASSES, head=segmenter)
    if subject == "plain":
        return plain.requires_grad_(False)
    if subject == "concatenated":
        tuned = attach(plain, "vpt", CLASSES, **method_options("vpt", setting.prompts))
        return Concatenated(plain, tuned.method.get_parameter("prompts.stages.0"), tuned.head).to(setting.device)
    if subject == PEFT:
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=8, lora_alpha=8, target_modules=["qkv"], modules_to_save=["head"])
        return get_peft_model(plain, config)
    if subject == LIKE_SHIP:
        return attach(plain, "vpt", CLASSES, **method_options("vpt", setting.prompts + SHARED)).to(setting.device)
    folded, _, method = subject.rpartition(" ")
    options = method_options(method, setting.prompts)
    model = attach(plain, method, CLASSES, head=segmenter, **options).to(setting.device)
    if method == "ship":
        _give_prototypes(model)
    return model.fold() if folded else model


def _give_prototypes(model: TunedModel) -> None:
    """Prototypes of the usual number and size; which ones they are costs nothing."""
    method: Any = model.method
    with torch.no_grad():
        method._group(method.config.hierarchy)
        method.prototypes.normal_()


def forward(module: nn.Module, images: Tensor, dtype: str) -> Callable[[], Any]:
    """One batch of inference."""
    module.eval().requires_grad_(False)
    images = images.to(_type_of(module))

    def run() -> Any:
        with torch.inference_mode(), _autocast(module, images.device, dtype):
            return module(images)

    return run


def training_step(module: nn.Module, images: Tensor, dtype: str, *, compiled: bool = False) -> Callable[[], Any]:
    """One step: forward, backward, AdamW."""
    module.train()
    run_model = module.outputs if isinstance(module, TunedModel) else module
    run_model = torch.compile(run_model) if compiled else run_model
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True if images.is_cuda else None)
    labels = torch.arange(images.shape[0], device=images.device) % CLASSES

    def run() -> Any:
        optimizer.zero_grad(set_to_none=True)
        with _autocast(module, images.device, dtype):
            if isinstance(module, TunedModel):
                logits, extra = run_model(images)
            else:
                logits, extra = run_model(images), torch.zeros((), device=images.device)
            loss = F.cross_entropy(logits.float(), labels) + extra
        loss.backward()
        optimizer.step()
        return loss

    return run


def _type_of(module: nn.Module) -> torch.dtype:
    """Type of the images that a module takes: a tuned model casts them itself."""
    return torch.float32 if isinstance(module, TunedModel) else next(module.parameters()).dtype


def _autocast(module: nn.Module, device: torch.device, dtype: str) -> Any:
    stored = module.precision == "bf16" if isinstance(module, TunedModel) else _type_of(module) == torch.bfloat16
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype != "fp32" and not stored)


def saved_bytes(step: Callable[[], Any], module: nn.Module) -> int:
    """Bytes of the activations that a training step keeps for its backward pass, each storage once."""
    with kept_activations(module) as kept:
        step()
    return kept.bytes
