"""Search spaces of the methods, ours and the papers'. With methods/ the only file that names methods."""

from __future__ import annotations

import csv
import functools
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trimtab.bench.results import Record
from trimtab.errors import ConfigError

PUBLISHED = Path(__file__).parent / "published_tables"


@dataclass(frozen=True)
class Space:
    """A search space: values of options, best guess first, and fixed options of the training."""

    fit: Mapping[str, tuple[Any, ...]]
    """Of the training."""
    options: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Of the method."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Options of the training that stay."""

    def without(self, options: Mapping[str, Any]) -> Space:
        """Return the space with some of the method's options fixed."""
        rest = {name: values for name, values in self.options.items() if name not in options}
        return Space(self.fit, rest | {name: (value,) for name, value in options.items()}, self.fixed)

    def points(self) -> list[Record]:
        """List all points of the grid: learning rates first, at the first value of everything else."""
        # What comes last in a product changes first.
        order = sorted(self.fit, key=lambda name: name == "lr")
        return [
            {"options": dict(zip(self.options, own, strict=True)), "fit": dict(zip(order, chosen, strict=True))}
            for own in itertools.product(*self.options.values())
            for chosen in itertools.product(*(self.fit[name] for name in order))
        ]


# Every method has six settings to try: the same care for all.
_PROMPTS = (2e-3, 6e-4, 6e-3)
_MODULES = (1e-3, 3e-4, 4e-3)
_VECTORS = (1e-3, 3e-3, 3e-4, 1e-2, 1e-4, 3e-2)
_SPACES = {
    "linear": Space({"lr": (3e-3, 1e-3, 1e-2, 3e-4, 3e-2, 1e-4)}),
    "vpt": Space({"lr": _PROMPTS}, {"num_prompts": (10, 50)}),
    "svpt": Space({"lr": _PROMPTS}, {"num_prompts": (10, 50)}),
    "ship": Space({"lr": _PROMPTS}, {"prompt_length": (10, 50)}),
    "vfpt": Space({"lr": _PROMPTS}, {"num_prompts": (10, 50)}),
    "e2vpt": Space({"lr": _PROMPTS}, {"num_prompts": (5, 10)}),
    "lora": Space({"lr": _MODULES}, {"rank": (8, 2)}),
    "adapter": Space({"lr": _MODULES}, {"dim": (8, 32)}),
    "bias": Space({"lr": _VECTORS}),
    "ssf": Space({"lr": _VECTORS}),
    "full": Space({"lr": (1e-4, 3e-5, 3e-4, 1e-5, 1e-3, 3e-6)}),
}


def own_space(method: str) -> Space:
    """Return the search space of a method; for methods of other packages learning rates around their own."""
    if method in _SPACES:
        return _SPACES[method]
    from trimtab.methods import METHODS

    lr = METHODS[method].recipe.lr
    return Space({"lr": tuple(float(f"{lr * factor:.3g}") for factor in (1, 0.3, 3, 0.1, 10, 0.03))})


# --- VPT's protocol ---------------------------------------------------------------------------------------

_VPT_RATES = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0)
_VPT_DECAYS = (0.0, 1e-4, 1e-3, 1e-2)
_VPT_LENGTHS = (10, 1, 5, 50, 100, 200)


def vpt_space(method: str, options: Mapping[str, Any], suite: str, task: str) -> Space:
    """Return the grid of VPT's code, with the published prompt length of a task, or six lengths where there is none.

    References:
        | Jia et al., Visual Prompt Tuning (2022), appendix A; KMnP/vpt tune_vtab.py, tune_fgvc.py

    Raises:
        ConfigError: If the method is none that this recipe is for.
    """
    if method not in ("vpt", "svpt"):
        raise ConfigError(
            f"paper-vpt is how VPT (and in our reading SVPT) was tuned, and nothing is known of {method!r} under it; "
            "leave it out of --methods, or take --protocol strict."
        )
    deep = method != "vpt" or options.get("deep", True)
    published = _lengths(deep).get(task)
    lengths = _VPT_LENGTHS if published is None else (published,)
    own: dict[str, tuple[Any, ...]] = {"num_prompts": lengths, "prompt_init": ("uniform",)}
    if method == "vpt":
        own["head_init"] = ("paper",)
    # The script for FGVC stops at 0.1.
    rates = _VPT_RATES if suite != "fgvc" else _VPT_RATES[1:]
    fixed = {"recipe": "vpt", "preprocess": "vpt-fgvc" if suite == "fgvc" else "vpt"}
    return Space({"lr": rates, "weight_decay": _VPT_DECAYS}, own, fixed).without(options)


_VFPT_SHARES = (0.5, 0.0, 0.3, 0.7, 1.0)
# Of the numbers that occur in the paper: one is too few for a share.
_VFPT_LENGTHS = (10, 5, 50, 100, 200)


def vfpt_space(method: str, options: Mapping[str, Any], suite: str, task: str) -> Space:
    """Return VPT's grid with a task's published share and number of prompts; what is not published is searched.

    References:
        | Zeng et al., Visual Fourier Prompt Tuning (2024), section 4.1, tables S1-S4

    Raises:
        ConfigError: If the method is another.
    """
    if method != "vfpt":
        raise _only_for("paper-vfpt", "VFPT", method)
    published = next((row for row in read_published("vfpt_per_task") if row["dataset"] == task), None)
    shares: tuple[float, ...] = _VFPT_SHARES
    lengths: tuple[int, ...] = _VFPT_LENGTHS
    if published is not None:
        shares = (float(published["fourier_share"]),)
        lengths = (int(published["num_prompts"]),) if published["num_prompts"] else lengths
    own: dict[str, tuple[Any, ...]] = {"num_prompts": lengths, "fourier_share": shares, "head_init": ("paper",)}
    rates = _VPT_RATES if suite != "fgvc" else _VPT_RATES[1:]
    fixed = {"recipe": "vfpt", "preprocess": "vfpt-fgvc" if suite == "fgvc" else "vfpt"}
    return Space({"lr": rates, "weight_decay": _VPT_DECAYS}, own, fixed).without(options)


def adapter_plus_space(method: str, options: Mapping[str, Any]) -> Space:
    """Return the one setting that Adapter+ has for all tasks.

    References:
        | Steitz and Roth, Adapters Strike Back (2024); visinf/adapter_plus conf/

    Raises:
        ConfigError: If the method is another, or its style.
    """
    if method != "adapter" or options.get("style", "adapter-plus") != "adapter-plus":
        raise _only_for("paper-adapter-plus", "Adapter+", method)
    return Space({"lr": (1e-3,)}, {"dim": (8,)}, {"recipe": "adapter-plus", "preprocess": "adapter-plus"}).without(
        options
    )


def _only_for(protocol: str, whose: str, method: str) -> ConfigError:
    return ConfigError(
        f"{protocol} is how {whose} was tuned, and nothing is known of {method!r} under it; leave it out of --methods, "
        "or take --protocol strict."
    )


def vpt_batch(options: Mapping[str, Any]) -> int:
    """Return the batch size of VPT's code on a ViT-B."""
    return 128 if options["num_prompts"] < 100 else 64


@functools.cache
def _lengths(deep: bool) -> dict[str, int]:
    column = "p_deep" if deep else "p_shallow"
    # Entries with ? are those that the papers' numbers leave open.
    return {row["dataset"]: int(row[column].rstrip("?")) for row in read_published("vpt_prompt_lengths")}


# --- SHIP's protocol --------------------------------------------------------------------------------------

_SHIP_FIT = {"lr": (1e-3, 0.05, 0.25, 1.0), "weight_decay": (1e-3, 0.0, 1e-4, 1e-2)}
_SHIP_OPTIONS = {"prompt_length": (50, 30, 5, 10, 100, 200), "threshold": (0.95, 0.93, 0.96, 0.97, 0.98)}


def ship_space(method: str, options: Mapping[str, Any], task: str) -> Space:
    """Return SHIP's logged setting of a task, or the grid that its logs show.

    References:
        | haoweiz23/SHIP results_summary.txt, train.py

    Raises:
        ConfigError: If the method is another.
    """
    if method != "ship":
        raise _only_for("paper-ship", "SHIP", method)
    fixed = {"recipe": "ship", "preprocess": "ship"}
    for row in read_published("ship_per_task_config"):
        if row["dataset"] == task:
            fit = {"lr": (float(row["lr"]),), "weight_decay": (float(row["weight_decay"]),)}
            own = {"prompt_length": (int(row["K_sip"]),), "threshold": (float(row["share_threshold"]),)}
            return Space(fit, own, fixed).without(options)
    return Space(_SHIP_FIT, _SHIP_OPTIONS, fixed).without(options)


# --- published figures ------------------------------------------------------------------------------------

_NAMES = {
    "linear": "Linear",
    "ship": "SHIP (official code results_summary)",
    "lora": "LoRA",
    "adapter": "Adapter-64 (VPT paper)",
    "bias": "Bias",
    "ssf": "SSF",
    "full": "Full",
    "e2vpt": "E2VPT",
}


def published_name(method: str, options: Mapping[str, Any]) -> str | None:
    """Return the name of a method in the published tables; ``None`` if it is in none."""
    if method == "vpt":
        return "VPT-Deep" if options.get("deep", True) else "VPT-Shallow"
    if method == "adapter" and options.get("style") != "adaptformer":
        return None
    return _NAMES.get(method)


SELECTED_ON_VALIDATION = ("Full", "Linear", "Bias", "Partial-1", "MLP-3", "Sidetune", "Adapter-64 (VPT paper)", "VPT-")
"""Beginnings of the names of published rows that were chosen on validation images (all of VPT's paper)."""
SELECTED_ON_TEST = ("SHIP", "NOAH", "FacT", "Convpass", "RepAdapter")
"""Of those whose code takes the best epoch, or setting, on the test images."""


@functools.cache
def read_published(name: str) -> tuple[Mapping[str, str], ...]:
    """Read the rows of a published table."""
    with (PUBLISHED / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return tuple(csv.DictReader(file))
