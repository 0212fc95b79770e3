"""The segmentation heads: shapes, sizes as published, and what they look at."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

import trimtab
from tests.families import FAMILIES, images_for, shared_backbone
from tests.heads.small import small_head
from trimtab import validation
from trimtab.backbone import Backbone
from trimtab.backbone.meta import SkipInit
from trimtab.errors import ConfigError
from trimtab.heads import Features, SegmenterConfig, make_segmenter, segmenter
from trimtab.heads.decoders import DECODERS
from trimtab.heads.segmenter import TappedSegmenter, as_grids, default_out_indices
from trimtab.methods import configure
from trimtab.model import build
from trimtab.options import read_options
from trimtab.stream import Stream


def small(head: str, **options: Any) -> SegmenterConfig:
    return small_head(head, 8, **options)


def blank(name: str, size: int) -> Backbone:
    """An architecture of timm's without memory for its numbers."""
    with torch.device("meta"), SkipInit():
        return Backbone(timm.create_model(name, img_size=size, num_classes=0))


@pytest.mark.parametrize("head", DECODERS)
def test_every_pixel_has_logits(backbone: Backbone, head: str) -> None:
    """Also on grids of odd sizes, wide images and stages."""
    model = build(backbone, configure("linear"), 5, small(head)).eval()
    logits = model(images_for(backbone))
    assert logits.shape == (2, 5, *backbone.image_size)
    assert logits.isfinite().all()


def test_setr_pup_has_the_size_that_the_published_totals_imply() -> None:
    """VPT, table 3: 13.18 M tuned with the head alone, 13.43 M with 10 deep prompts.

    mmsegmentation's SETR-PUP for ADE20K has 13,143,640 parameters, 0.04 M (0.3 %) less than is published; one more
    classifier of 256 channels (38,550) would be the difference, and nobody says where it was. With ViT-Large that makes
    317.29 M, which is what DA-VPT publishes for full fine-tuning (317.3 M).
    """
    backbone = blank("vit_large_patch16_224", 512)
    with torch.device("meta"):
        alone = build(backbone, configure("linear"), 150, SegmenterConfig(head="setr-pup"))
        prompted = build(backbone, configure("vpt", {"num_prompts": 10}), 150, SegmenterConfig(head="setr-pup"))
    assert alone.num_trainable() == 13_143_640
    assert abs(alone.num_trainable() - 13.18e6) < 0.04e6
    assert prompted.num_trainable() - alone.num_trainable() == 24 * 10 * 1024  # 0.25 M, as 13.43 - 13.18
    assert alone.num_trainable() + sum(p.numel() for p in backbone.parameters()) == pytest.approx(317.3e6, abs=0.05e6)


def test_setr_pup_by_its_formula(plain: Backbone) -> None:
    head = make_segmenter(SegmenterConfig(head="setr-pup", channels=7), plain, 5)
    width, classifier = 48, 5 * 8

    def upsampling(convolutions: int) -> int:
        return 2 * width + 9 * width * 7 + 9 * 49 * (convolutions - 1) + 14 * convolutions + classifier

    assert sum(p.numel() for p in head.parameters()) == upsampling(4) + 3 * upsampling(2)
    without = make_segmenter(SegmenterConfig(head="setr-pup", channels=7, auxiliary_weight=0.0), plain, 5)
    assert sum(p.numel() for p in without.parameters()) == upsampling(4)


def test_linear_by_its_formula(plain: Backbone) -> None:
    assert sum(p.numel() for p in make_segmenter(SegmenterConfig(), plain, 5).parameters()) == 5 * 49


def test_taps_are_setrs_in_proportion_to_the_depth() -> None:
    assert default_out_indices(blank("vit_large_patch16_224", 224)) == (9, 14, 19, 23)
    assert default_out_indices(blank("vit_tiny_patch16_224", 224)) == (4, 7, 9, 11)
    assert default_out_indices(shared_backbone("depth-1")) == (0, 0, 0, 0)
    assert default_out_indices(shared_backbone("swin")) == (1, 1, 1, 3)


def test_other_numbers_of_taps_are_spread_evenly() -> None:
    assert default_out_indices(blank("vit_tiny_patch16_224", 224), 2) == (5, 11)
    assert default_out_indices(blank("vit_tiny_patch16_224", 224), 5) == (2, 4, 7, 9, 11)
    assert default_out_indices(shared_backbone("depth-1"), 1) == (0,)
    assert default_out_indices(shared_backbone("swin"), 1) == (3,)
    assert default_out_indices(shared_backbone("swin"), 3) == (1, 1, 3)


@pytest.mark.parametrize("family", ["class-token", "registers", "swin", "swin-v2"])
def test_a_tapped_grid_is_the_patches_of_that_block_in_their_places(family: str) -> None:
    backbone = shared_backbone(family)
    stream = backbone.embed(images_for(backbone))
    before = stream.grid_size
    for i in range(2):  # the second block of a Swin ends its stage
        stream = backbone.block(i, stream)
    grid = backbone.raw_grid(stream)
    assert grid.shape == (2, backbone.widths[1], *before)
    patches = stream.block_output[:, backbone.num_prefix_tokens :]
    assert torch.equal(grid[1, :, 2, 1], patches[1, 2 * before[1] + 1])


@pytest.mark.parametrize("head", DECODERS)
def test_prefix_tokens_and_prompts_never_reach_the_head(head: str) -> None:
    """What is in them does not matter, and how many they are neither."""
    backbone = shared_backbone("registers")
    made = make_segmenter(small(head), backbone, 5).eval()
    width, (h, w) = backbone.width, (5, 3)
    patches = torch.randn(2, h * w, width)

    def read(prefix: torch.Tensor, prompts: int) -> torch.Tensor:
        tokens = torch.cat([prefix, patches], 1)
        stream = Stream(tokens=tokens, prompts=torch.randn(2, prompts, width), grid_size=(h, w))
        logits: torch.Tensor = made(made.read(backbone, [stream] * (len(made.out_indices) + 1)))
        return logits

    prefix = torch.zeros(2, backbone.num_prefix_tokens, width)
    assert torch.equal(read(prefix, 0), read(prefix + 3.0, 4))


def test_the_head_looks_where_it_is_told(plain: Backbone) -> None:
    model = build(plain, configure("linear"), 5, small("setr-pup", taps=(0, 1, 1, 2))).eval()
    read = model.forward_features(images_for(plain))
    assert isinstance(read, tuple)
    assert torch.equal(read[1], read[2])
    assert not torch.equal(read[0], read[1])
    assert torch.equal(read[3], plain.raw_grid(model.run(images_for(plain))))


def test_auxiliary_heads_are_graded_and_not_answered(plain: Backbone) -> None:
    model = build(plain, configure("linear"), 5, small("setr-pup")).eval()
    images = images_for(plain)
    weighted, _ = model.training_logits(images)
    assert [weight for weight, _ in weighted] == [1.0, 0.4, 0.4, 0.4]
    assert all(logits.shape == (2, 5, 32, 32) for _, logits in weighted)
    assert torch.equal(weighted[0].logits, model(images))


def test_an_attached_segmenter_learns_by_heart() -> None:
    """Classes are brightness, by which patches differ; a head that saw them in other places could not."""
    model = trimtab.attach(
        FAMILIES["class-token"].model(), "vpt", 2, head=SegmenterConfig(), num_prompts=2, prompt_init="uniform"
    )
    masks = torch.randint(0, 2, (8, 4, 4)).repeat_interleave(8, 1).repeat_interleave(8, 2)
    images = (masks[:, None] * 2.0 - 1).expand(-1, 3, -1, -1) + 0.3 * torch.randn(8, 3, 32, 32)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.03)
    for _ in range(40):
        optimizer.zero_grad()
        logits, extra = model.train().outputs(images)
        (nn.functional.cross_entropy(logits, masks) + extra).backward()
        optimizer.step()
    # The first half of each patch's pixels is decided by its neighbours too; centres are not.
    wrong = (model.eval()(images).argmax(1) != masks)[:, 4::8, 4::8]
    assert wrong.float().mean() < 0.1


def test_dpts_dropout_draws_nothing(plain: Backbone) -> None:
    model = build(plain, configure("linear"), 5, small("dpt")).train()
    state = torch.get_rng_state()
    model.outputs(images_for(plain))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "setr"}, r"head is 'setr'. Did you mean 'setr-pup'"),
        ({"head": "setr-pup", "channels": 0}, "channels is 0"),
        ({"head": "linear", "channels": 5}, "channels is 5, and the head 'linear' has none"),
        ({"head": "linear", "taps": (0, 1, 2, 3)}, "taps is"),
        ({"head": "dpt", "taps": (0, 2, 1, 3)}, "four blocks in rising order"),
        ({"head": "dpt", "taps": (0, 1, 3)}, "four blocks"),
        ({"head": "dpt", "taps": (-1, 0, 1, 3)}, "blocks are counted from 0"),
        ({"auxiliary_weight": -1.0}, "auxiliary_weight is -1.0"),
    ],
)
def test_what_cannot_work_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SegmenterConfig(**options)


def test_taps_beyond_the_depth_are_refused(plain: Backbone) -> None:
    with pytest.raises(ConfigError, match=r"taps is \(0, 1, 2, 3\) and .* has 3 blocks"):
        make_segmenter(small("dpt", taps=(0, 1, 2, 3)), plain, 5)


def test_without_its_package_dpt_is_refused_in_one_line(plain: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "segmentation_models_pytorch.decoders.dpt.decoder", None)
    with pytest.raises(ConfigError, match=r"install trimtab\[segmentation\]"):
        make_segmenter(SegmenterConfig(head="dpt"), plain, 5)


class Pair(TappedSegmenter):
    """A head on two blocks, as somebody may add it."""

    has_channels = False
    num_taps = 2

    def __init__(self, config: SegmenterConfig, backbone: Backbone, num_classes: int) -> None:
        super().__init__(config, backbone, num_classes)
        self.layers = nn.ModuleList(nn.Conv2d(backbone.widths[i], num_classes, 1) for i in self.tapped)

    def predict(self, features: Features) -> torch.Tensor:
        return sum(layer(grid) for layer, grid in zip(self.layers, as_grids(features), strict=True))


def test_a_head_is_a_class_and_a_line(plain: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name is a choice, and how many blocks it looks at is its own to say."""
    validation._types_of.cache_clear()
    monkeypatch.setattr(segmenter, "DECODERS", {**DECODERS, "pair": f"{__name__}:Pair"})
    try:
        assert make_segmenter(SegmenterConfig(head="pair"), plain, 5).out_indices == (1, 2)
        model = build(plain, configure("linear"), 5, SegmenterConfig(head="pair", taps=(0, 2)))
        assert model(images_for(plain)).shape == (2, 5, *plain.image_size)
        with pytest.raises(ConfigError, match="list 2 blocks in rising order, counted from 0"):
            SegmenterConfig(head="pair", taps=(0, 1, 2))
        with pytest.raises(ConfigError, match="channels is 6, and the head 'pair' has none"):
            SegmenterConfig(head="pair", channels=6)
        with pytest.raises(ConfigError, match=r"head is 'x'\. Choose one of: linear, setr-pup, dpt, pair\.$"):
            SegmenterConfig(head="x")
    finally:
        validation._types_of.cache_clear()


def test_the_command_line_reads_the_heads_where_they_are_registered() -> None:
    (option,) = [one for one in read_options("trimtab.heads.segmenter:SegmenterConfig") if one.name == "head"]
    assert option.choices == tuple(DECODERS)
    assert (option.type, option.default) == (str, "linear")
    with pytest.raises(ConfigError, match=r"^head is 'x'\. Choose one of: linear, setr-pup, dpt\.$"):
        SegmenterConfig(head="x")
