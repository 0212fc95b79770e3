"""What is run: the rows of the comparison and of the studies, as data.

A row whose method or options the installed trimtab does not have is skipped with a note, so rows may be ahead of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

BACKBONE = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
SETS = ("caltech101", "dtd10", "cifar10", "brain_mri")
TRIALS = 4
"""Trials that tuning spends on every row of the comparison and every set."""


@dataclass(frozen=True)
class TunedRow:
    """A row of the comparison: tuned on validation images, then read on test images once a seed."""

    name: str
    method: str
    options: Mapping[str, Any]
    lrs: tuple[float, ...]
    """Candidate learning rates (AdamW), tried with ``options``."""
    other: Mapping[str, Any] = field(default_factory=dict)
    """The method's other size: options that replace some of ``options``, tried at the best learning rate."""
    epochs: int | None = None
    """Epochs in place of the budget's."""

    def __post_init__(self) -> None:
        """Make sure that all rows have the same care.

        Raises:
            ValueError: If the row would have more or fewer trials than the others.
        """
        trials = len(set(self.lrs)) + bool(self.other)
        if trials != TRIALS:
            raise ValueError(f"The row {self.name!r} has {trials} trials; every row has {TRIALS}.")


@dataclass(frozen=True)
class FixedRow:
    """A row of a study: nothing is chosen, and the test images are not read."""

    name: str
    method: str
    options: Mapping[str, Any]
    lr_from: str
    """The row of the comparison whose chosen learning rate on the same set is used."""
    panel: str | None = None
    """The option that the row varies, for a picture of curves."""
    epochs: int | None = None
    """Epochs in place of the budget's."""


Row: TypeAlias = "TunedRow | FixedRow"


@dataclass(frozen=True)
class Study:
    """Rows that are shown together."""

    name: str
    title: str
    rows: tuple[Row, ...]
    seeds: int
    """How many, if the command does not say."""
    baseline: str | None = None
    """The row that the others are compared with, in studies of fixed rows."""

    @property
    def tuned(self) -> bool:
        """Whether this is the comparison."""
        return all(isinstance(row, TunedRow) for row in self.rows)


_SMALL = (6e-4, 2e-3, 6e-3)
"""Candidate learning rates of prompts."""
_VECTORS = (3e-4, 1e-3, 3e-3, 1e-2)
"""Candidate learning rates of scales and biases."""
_MODULES = (3e-4, 1e-3, 4e-3)
"""Candidate learning rates of low-rank updates and adapters."""
_HEAD = (3e-4, 1e-3, 3e-3, 1e-2)
"""Candidate learning rates of the head alone."""
_SHIP: dict[str, Any] = {"prompt_length": 10, "prototypes": 100}
"""SHIP for ViT-Tiny and few images; everything else is its default."""

# The reading that validation accuracy chose (LOG.md, 2026-11-25); SVPT's defaults.
_CHOSEN: dict[str, Any] = {"gate": 0.1, "form": "additive", "added": "normalised"}

COMPARISON = (
    # As many epochs as the head has that every other row starts from, at a learning rate of its own.
    TunedRow("linear", "linear", {}, _HEAD, epochs=50),
    TunedRow("vpt", "vpt", {"num_prompts": 10}, _SMALL, {"num_prompts": 5}),
    TunedRow(
        "vpt, uniform start",
        "vpt",
        {"num_prompts": 10, "prompt_init": "uniform"},
        _SMALL,
        {"num_prompts": 5},
    ),
    TunedRow("ship", "ship", _SHIP, _SMALL, {"prompt_length": 30}),
    TunedRow("svpt", "svpt", {"num_prompts": 10, **_CHOSEN}, _SMALL, {"num_prompts": 5}),
    TunedRow("lora", "lora", {"rank": 8}, _MODULES, {"rank": 2}),
    TunedRow("adapter", "adapter", {"dim": 64}, _MODULES, {"dim": 16}),
    TunedRow("bias", "bias", {}, _VECTORS),
    TunedRow("ssf", "ssf", {}, _VECTORS),
    TunedRow("full", "full", {}, (1e-5, 3e-5, 1e-4, 3e-4)),
    TunedRow(
        "e2vpt", "e2vpt", {"num_prompts": 5, "num_key_values": 5}, _SMALL, {"num_prompts": 3, "num_key_values": 2}
    ),
)


def _reading(name: str, **options: Any) -> FixedRow:
    # One step away from METHODS.md's proposal, which was the default when the readings were tried.
    return FixedRow(name, "svpt", {"num_prompts": 10, "form": "convex", "added": "prompts", **options}, "vpt")


# Gates start low: the first round (LOG.md, 2026-11-21) showed what half of a neighbour's prompt costs at the start.
_LOW: dict[str, Any] = {"gate": 0.1}

READINGS = (
    FixedRow("VPT-deep", "vpt", {"num_prompts": 10}, "vpt"),
    _reading("fixed connection", connection="fixed", enhancement=False, **_LOW),
    _reading("dynamic connection", enhancement=False, **_LOW),
    _reading("dynamic connection, enhancement", **_LOW),
    _reading("enhancement alone", connection="none"),
    _reading("normalised prompts added", added="normalised", **_LOW),
    _reading("normalised prompts added from 0.3", added="normalised", strength=0.3, **_LOW),
    _reading("gate from prompts", gate_from="prompts", **_LOW),
    _reading("gate from a constant", gate_from="constant", **_LOW),
    _reading("gate a channel", gate_shape="channel", **_LOW),
    _reading("gate a scalar", gate_shape="scalar", **_LOW),
    _reading("source: output", source="output", **_LOW),
    _reading("form: additive", form="additive", **_LOW),
    _reading("20 salient patches", salient=20, **_LOW),
    _reading("paired", pairing="paired", **_LOW),
    _reading("form: additive, normalised prompts added", form="additive", added="normalised", **_LOW),
)


def _part(name: str, **options: Any) -> FixedRow:
    return FixedRow(name, "ship", {**_SHIP, **options}, "ship")


_HIERARCHY: dict[str, Any] = {"shared_length": 0, "attribute_sets": 0, "matching_weight": 0.0, "attention": "plain"}
_SHARED = {**_HIERARCHY, "shared_length": 10}
_ATTRIBUTE = {**_SHARED, "attribute_sets": 2}
_MATCHING = {**_ATTRIBUTE, "matching_weight": 0.5}

PARTS = (
    # As SHIP's other rows in everything else: how prompts start, drop-path, no prompt dropout.
    _part("VPT-deep (every block its own)", **_HIERARCHY, threshold=1.0),
    _part("+ hierarchy", **_HIERARCHY),
    _part("+ shared prompts", **_SHARED),
    _part("+ attribute prompts", **_ATTRIBUTE),
    _part("+ matching loss", **_MATCHING),
    _part("+ decoupled attention (SHIP)"),
)

_VARIED: dict[str, tuple[float, ...]] = {
    "prototypes": (10, 50, 100, 200),
    "threshold": (0.8, 0.9, 0.95, 1.0),
    "attention_scale": (0.05, 0.1, 0.3, 0.5),
    "matching_weight": (0.0, 0.1, 0.5, 1.0),
}
SENSITIVITY = tuple(
    FixedRow(f"{option} {value}", "ship", {**_SHIP, option: value}, "ship", panel=option)
    for option, values in _VARIED.items()
    for value in values
)

STUDIES = {
    study.name: study
    for study in (
        Study("methods", "Methods", COMPARISON, seeds=3),
        Study("svpt", "Readings of SVPT", READINGS, seeds=3, baseline="VPT-deep"),
        Study("ship-parts", "Parts of SHIP", PARTS, seeds=3, baseline="VPT-deep (every block its own)"),
        Study("ship-sensitivity", "Sensitivity of SHIP", SENSITIVITY, seeds=1),
    )
}
