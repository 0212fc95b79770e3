"""The table of backbones: a line a name for machines, a page in words for readers."""

from __future__ import annotations

import csv
import dataclasses
import io
import re
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

TABLE = "backbones.csv"

METHODS = {
    "vpt": ("vpt", "deep"),
    "vpt shallow": ("vpt", "shallow"),
    "ship": ("ship", "found"),
    "svpt": ("svpt", "default"),
    "lora": ("lora", "default"),
}
"""What is tried on every backbone that opens, as (method, case) of tests/methods/cases.py."""

FAMILIES = {
    "AIMv2": "aimv2",
    "BEiT-3": "beit3",
    "DINOv2": "dinov2",
    "DINOv3": "dinov3",
    "LingBot": "lingbot",
    "EVA-02": "^eva02",
    "EVA": "^eva_",
    "FlexiViT": "^flexivit",
    "InternViT": "intern300m",
    "Perception Encoder": "^vit_pe_",
    "RADIO": "radio",
    "Sapiens 2": "sapiens2",
    "SigLIP and SigLIP 2": "siglip",
    "TIPSv2": "tipsv2",
    "CLIP": "^vit.*_clip_",
    "DeiT III": "^deit3",
    "DeiT": "^deit_",
    "ViTamin: convolutions, then blocks": "^vitamin",
    "ViT behind a convolutional stem": "^vit_.*(_r26|_r50|_r_|_resnet|_mci)",
    "ViT with rotary positions": "^vit_.*_rope_",
    "ViT (AugReg and others)": "^vit_",
    "Swin V2": "^swinv2",
    "Swin": "^swin_",
    "timm's test models": "^test_",
}
"""What of a name says the family, as a regular expression; the first that fits. Names of none go by timm's module."""

IN_THE_WAY = {
    "beit": "relative positions are added inside attention",
    "byoanet": "convolutions, with attention in some blocks",
    "cait": "heads talk to each other, and the class token comes in the last blocks only",
    "coat": "several resolutions beside each other, attention between channels",
    "convit": "attention is gated between content and position",
    "cpubone": "convolutions, with attention in the last stages",
    "crossvit": "two columns of blocks that look at each other",
    "csatv2": "convolutions on a cosine transform, with attention in the last stages",
    "davit": "stages; attention between channels as well as between patches",
    "deepseek_vit": "ordinary blocks, but in classes of its own",
    "edgenext": "convolutions, with attention between channels",
    "efficientformer": "convolutions, with attention in the last stage",
    "efficientformer_v2": "convolutions, with attention in the last stages",
    "efficientvit_mit": "convolutions, with attention that has no softmax",
    "efficientvit_msra": "stages; heads that read what the head before wrote",
    "fastvit": "convolutions, with attention in the last stage of some",
    "gcvit": "stages; windows with queries from the whole image",
    "gemma4_vit": "four norms a block, in classes of its own",
    "hiera": "stages that pool tokens; attention within units",
    "hieradet_sam2": "stages that pool tokens; attention within windows",
    "iformer": "convolutions, with attention in the last stages",
    "levit": "stages; relative positions inside attention, batch norms",
    "lowformer": "convolutions, with attention at a lower resolution",
    "maxxvit": "convolutions, and attention with relative positions, most in windows and grids",
    "metaformer": "pooling or convolutions, with attention in the last stages of some",
    "mobilenetv5": "convolutions, with attention in the last stages",
    "mobilevit": "convolutions, with blocks of attention in between",
    "mvitv2": "stages; attention pools its queries, keys and values",
    "naflexvit": "patches of images of any shape, embedded in a class of its own",
    "nest": "stages; attention within blocks of the image",
    "nextvit": "convolutions and attention by turns",
    "pit": "stages; tokens are pooled in between",
    "pvt_v2": "stages; keys and values are of a coarser grid",
    "qwen3_vit": "ordinary blocks, but in classes of its own",
    "shvit": "convolutions, with attention of one head over a part of the channels",
    "swiftformer": "convolutions, with attention that adds instead of multiplying",
    "swin_transformer": "stages; attention within shifted windows",
    "swin_transformer_v2": "stages; attention within shifted windows",
    "swin_transformer_v2_cr": "stages; attention within shifted windows",
    "tiny_vit": "stages; windows with convolutions in between",
    "tnt": "blocks within each patch beside those over patches",
    "twins": "stages; keys and values are of a coarser grid, windows in between",
    "vision_transformer_relpos": "relative positions are added inside attention",
    "vision_transformer_sam": "attention within windows, with relative positions",
    "visformer": "convolutions, then attention with batch norms",
    "volo": "attention that looks at neighbours, and a class token that comes in the last blocks only",
    "xcit": "attention between channels",
}
"""By timm's module, why a transformer, or a hybrid of one, does not open; where it is more than a kind of block."""

NO_TRANSFORMERS = frozenset({
    "byobnet", "convmixer", "convnext", "cspnet", "cspnext", "densenet", "dla", "dpn", "efficientnet", "efficientvim",
    "fasternet", "focalnet", "ghostnet", "hardcorenas", "hgnet", "hrnet", "inception_next", "inception_resnet_v2",
    "inception_v3", "inception_v4", "lcnetv2", "mambaout", "mlp_mixer", "mobilenetv3", "nasnet", "nfnet", "pnasnet",
    "rdnet", "regnet", "repghost", "repvit", "res2net", "resnest", "resnet", "resnetv2", "rexnet", "selecsls", "senet",
    "sequencer", "sknet", "starnet", "tresnet", "vgg", "vovnet", "xception", "xception_aligned",
})  # fmt: skip
"""timm's modules of convolutional and other networks, a few with attention here or there."""


@dataclasses.dataclass(frozen=True)
class Row:
    """What came of one name."""

    name: str
    module: str
    """timm's file."""
    kind: str
    """The model's class."""
    outcome: str
    """works, fails, refused, does not fit, or not built."""
    reason: str = ""
    prefix_tokens: str = ""
    patch: str = ""
    pooled: str = ""
    resized: str = ""
    """Timm's logits at another image size: works, or refused or fails and why."""
    steps: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """A training step of each of METHODS: works, or refused or fails and why."""

    @property
    def family(self) -> str:
        """How readers call it."""
        return next((label for label, pattern in FAMILIES.items() if re.search(pattern, self.name)), self.module)


def table(rows: Iterable[Row]) -> str:
    """CSV, a line a name."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    plain = [field.name for field in dataclasses.fields(Row) if field.name != "steps"]
    writer.writerow(["class" if name == "kind" else name for name in plain] + list(METHODS))
    for row in rows:
        writer.writerow([*(getattr(row, name) for name in plain), *(row.steps.get(label, "") for label in METHODS)])
    return text.getvalue()


def read_table(path: Path) -> dict[str, dict[str, str]]:
    """The lines of a table by name, each its cells by the header; empty if there is none."""
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        return {line["name"]: line for line in csv.DictReader(file)}


def lost(row: Row, before: Mapping[str, str]) -> dict[str, str]:
    """What worked in a line of the table and no longer does, with what is said of it now."""
    if row.outcome != "works" and before.get("outcome") == "works":
        return {"outcome": f"{row.outcome}: {row.reason}"}
    now = {"outcome": row.outcome, "resized": row.resized, **row.steps}
    return {what: now.get(what, "") for what, told in before.items() if told == "works" and now.get(what) != "works"}


def page(rows: Sequence[Row], timm_version: str) -> str:
    """The same in words, grouped, as Markdown."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        found["other" if row.outcome == "refused" and row.module in NO_TRANSFORMERS else row.outcome].append(row)
    closed = len(rows) - len(found["works"]) - len(found["fails"])
    counted = (
        f"timm {timm_version} lists {len(rows)} names. **{len(found['works'])} open and work**, {len(found['fails'])} "
        f"open and fail, {closed} do not open."
    )
    parts = [
        "# Backbones\n\n<!-- Written by `make test-all`; what it says in words is in scripts/backbones_page.py. -->",
        textwrap.fill(f"{counted} {_HOW}", 120, break_on_hyphens=False),
        f"## What works\n\n{textwrap.fill(_MEANING, 120, break_on_hyphens=False)}",
        _working(found["works"]),
        _limits(found["works"]),
        _each("Opens and fails", found["fails"]),
        _each("Not tried: does not fit", found["does not fit"]),
        _each("Not built by timm", found["not built"]),
        f"## Transformers, and hybrids of them, that do not open\n\n{_refused(found['refused'], rows)}",
        f"## Other networks\n\n{_others(found['other'])}",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


_HOW = (
    f"Every name by itself: [{TABLE}]({TABLE}). `make test-all` tries them all and writes both; "
    "`python scripts/every_backbone.py NAME` tries one."
)
_MEANING = (
    "*Works* means: with random weights, two blocks deep and narrow where the architecture lets one choose, the blocks "
    "run one by one give timm's own logits to 1e-5, at two image sizes, and a training step of "
    f"{', '.join(f'`{label}`' for label in METHODS)} each gives finite losses, and gradients for all that is "
    "trained. It says nothing about accuracy."
)


def _working(rows: Sequence[Row]) -> str:
    families: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        families[row.family].append(row)
    lines = []
    for label in [*FAMILIES, *sorted(families.keys() - FAMILIES.keys())]:
        if found := families.get(label):
            example = min(found, key=lambda row: (len(row.name), row.name))
            lines.append([
                label,
                str(len(found)),
                f"`{example.name}`",
                _values(row.prefix_tokens for row in found),
                _values(_square(row.patch) for row in found),
                _values(row.pooled for row in found),
            ])  # fmt: skip
    header = ["family", "names", "such as", "tokens before the patches", "patch, pixels", "pooling reads"]
    return _markdown(header, lines)


def _limits(rows: Iterable[Row]) -> str:
    refusals = Counter(
        (label, row.family, told.partition(": ")[2].replace(repr(row.name), "it"))
        for row in rows
        for label, told in {**row.steps, "another image size": row.resized}.items()
        if told.startswith("refused")
    )
    lines = [[label, family, str(count), why] for (label, family, why), count in refusals.items()]
    if not lines:
        return ""
    return "What some of these refuse:\n\n" + _markdown(["what", "family", "names", "why"], lines)


def _each(title: str, rows: Iterable[Row]) -> str:
    lines = [[f"`{row.name}`", row.reason] for row in rows]
    return f"## {title}\n\n{_markdown(['name', 'why'], lines)}" if lines else ""


def _refused(rows: Sequence[Row], every: Iterable[Row]) -> str:
    opened = {row.module for row in every if row.outcome != "refused"}
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        # Where others of the module open, the error's own reason is the one that tells them apart.
        why = row.reason if row.module in opened else IN_THE_WAY.get(row.module, row.reason)
        groups[row.module, why].append(row)
    lines = [[module, *_names(found), why] for (module, why), found in sorted(groups.items())]
    header = ["timm's module", "names", "such as", "what is in the way"]
    before = f"{len(rows)} names. Opening one raises an error that names the class, or the kind of block."
    return f"{before}\n\n{_markdown(header, lines)}"


def _others(rows: Sequence[Row]) -> str:
    counts = Counter(row.module for row in rows)
    named = ", ".join(f"{module} {count}" for module, count in sorted(counts.items()))
    text = f"{len(rows)} names are of convolutional and other networks, by timm's module: {named}."
    return textwrap.fill(text, 120, break_on_hyphens=False)


def _names(rows: Sequence[Row]) -> tuple[str, str]:
    return str(len(rows)), f"`{min((row.name for row in rows), key=lambda name: (len(name), name))}`"


def _square(patch: str) -> str:
    height, _, width = patch.partition("x")
    return height if height == width else patch


def _values(values: Iterable[str]) -> str:
    return ", ".join(sorted(set(values), key=lambda value: (len(value), value)))


def _markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    cells = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in cells)
