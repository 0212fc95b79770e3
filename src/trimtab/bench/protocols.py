"""Protocols, ours and four papers': how settings are chosen, and final models trained and evaluated."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from trimtab.bench import presets
from trimtab.bench.presets import Space
from trimtab.bench.results import Record, best, score
from trimtab.bench.suites import SuiteTask


@dataclass(frozen=True)
class Row:
    """A row of the table: a method with its options, training options and perhaps search spaces."""

    name: str
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of the method; they are not searched."""
    fit: Mapping[str, Any] = field(default_factory=dict)
    """Of the training, in place of those that all rows have."""
    spaces: Mapping[str, Space] = field(default_factory=dict)
    """By task, what is searched, where a study says so; a space of one point is a fixed setting."""


class Protocol(abc.ABC):
    """How settings are chosen, and final models trained and evaluated."""

    name: str
    words: str
    """What tables say of it."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Those of the final models; more follow by counting on."""
    setting_on_test = False
    """Whether the setting is chosen on the test images, as no honest protocol may."""
    epoch_on_test = False
    """Whether the epoch is."""
    trains_on_val = True
    """Whether final models are trained on training and validation images together."""
    measured_on: Literal["test", "val"] = "test"
    """The images that the tables' numbers are of."""

    @abc.abstractmethod
    def space(self, row: Row, task: SuiteTask) -> Space:
        """Return the search space.

        Raises:
            ConfigError: If the protocol does not know the method.
        """

    def complete(self, point: Record, space: Space) -> Record:
        """Complete a point to ``options`` of the method and ``fit`` of the training."""
        return {"options": dict(point["options"]), "fit": {**space.fixed, **point["fit"]}}

    def choose(self, trials: Iterable[Record]) -> Record:
        """Choose the tuning trial whose setting the final models have."""
        return best(trials)

    def test_epochs(self, epochs: int) -> tuple[int, ...]:
        """Return the epochs after which a final training is evaluated on test images; by default none."""
        return ()

    def seeds_of(self, count: int | None) -> tuple[int, ...]:
        """Return the seeds of ``count`` final models."""
        known = self.seeds
        wanted = len(known) if count is None else count
        return (*known, *range(max(known) + 1, max(known) + 1 + wanted))[:wanted]


class Ours(Protocol):
    """Settings of the row or of the method's own space, chosen on validation images unless told otherwise.

    Args:
        name: As the command line has it.
        words: What tables say of it.
        trains_on_val: Whether final models are trained on training and validation images together.
        measured_on: The images that the tables' numbers are of.
        epoch_on_test: Whether the epoch is the best on the test images, of some six.
        setting_on_test: Whether the setting is, too.
    """

    def __init__(
        self,
        name: str,
        words: str,
        *,
        trains_on_val: bool = True,
        measured_on: Literal["test", "val"] = "test",
        epoch_on_test: bool = False,
        setting_on_test: bool = False,
    ) -> None:
        self.name, self.words = name, words
        self.trains_on_val, self.measured_on = trains_on_val, measured_on
        self.epoch_on_test, self.setting_on_test = epoch_on_test, setting_on_test

    def space(self, row: Row, task: SuiteTask) -> Space:
        """Return the row's space, or the method's own, which has the same number of settings for each method."""
        if task.name in row.spaces:
            return row.spaces[task.name].without(row.options)
        return presets.own_space(row.method).without(row.options)

    def test_epochs(self, epochs: int) -> tuple[int, ...]:
        """Return some six epochs and the last, where the epoch is chosen on the test images."""
        if not self.epoch_on_test:
            return ()
        return tuple(sorted({*range(1, epochs + 1, max(1, epochs // 5)), epochs}))


class PaperVPT(Protocol):
    """VPT's code: a wide grid, the last epoch on val200."""

    name = "paper-vpt"
    words = (
        "as VPT's code: learning rate and weight decay chosen on validation images, published prompt length, trained "
        "again on training and validation images together, last epoch"
    )
    seeds = (42, 44, 82, 100, 800)

    def space(self, row: Row, task: SuiteTask) -> Space:
        """Return learning rates and weight decays, and prompt lengths where none is published."""
        return presets.vpt_space(row.method, row.options, task.suite, task.name)

    def complete(self, point: Record, space: Space) -> Record:
        """Return the point with the batch size that belongs to its number of prompts."""
        setting = super().complete(point, space)
        return {**setting, "fit": {"batch_size": presets.vpt_batch(setting["options"]), **setting["fit"]}}

    def choose(self, trials: Iterable[Record]) -> Record:
        """Choose the best on the validation images; of equal ones the smallest learning rate."""

        def rank(trial: Record) -> tuple[bool, float, float]:
            return not trial.get("failed") and not trial.get("pruned"), score(trial, "val"), -trial["fit"]["lr"]

        return max(trials, key=rank)


class PaperVFPT(PaperVPT):
    """VFPT's code: VPT's way, with the published share of transformed prompts."""

    name = "paper-vfpt"
    words = (
        "as VFPT's code: learning rate and weight decay chosen on validation images, published share and number of "
        "prompts, trained again on training and validation images together, last epoch"
    )

    def space(self, row: Row, task: SuiteTask) -> Space:
        """Return learning rates and weight decays, and what is not published of the prompts."""
        return presets.vfpt_space(row.method, row.options, task.suite, task.name)

    def complete(self, point: Record, space: Space) -> Record:
        """Return the point with the recipe's batch size, which is the same for all numbers of prompts."""
        return Protocol.complete(self, point, space)


class PaperAdapterPlus(Protocol):
    """Adapter+'s code: one setting for all tasks, nothing is chosen."""

    name = "paper-adapter-plus"
    words = (
        "as Adapter+'s code: one setting for all tasks, trained on training and validation images together, last epoch"
    )
    seeds = (18, 45, 25)

    def space(self, row: Row, task: SuiteTask) -> Space:
        """Return the one setting."""
        return presets.adapter_plus_space(row.method, row.options)


class PaperSHIP(Protocol):
    """SHIP's code: the best epoch, and the best setting, on the test images."""

    name = "paper-ship"
    words = "as SHIP's code: the best epoch (of every tenth) and setting CHOSEN ON THE TEST IMAGES, so too high"
    seeds = (1,)
    setting_on_test = True
    epoch_on_test = True

    def space(self, row: Row, task: SuiteTask) -> Space:
        """Return the logged setting of the task, or the grid that the logs show."""
        return presets.ship_space(row.method, row.options, task.name)

    def test_epochs(self, epochs: int) -> tuple[int, ...]:
        """Return the first epoch, every tenth from there, and the last."""
        return tuple(sorted({*range(1, epochs + 1, 10), epochs}))


_CHOSEN = "chosen on validation images"
_OURS = (
    Ours(
        "strict",
        f"{_CHOSEN}, trained again on training and validation images together, last epoch, "
        "test images read once a model",
    ),
    Ours(
        "holdout",
        f"{_CHOSEN}, trained again on the training images alone, last epoch, test images read once a model",
        trains_on_val=False,
    ),
    Ours(
        "validation",
        "trained on the training images, last epoch, measured on the VALIDATION images; test images not read",
        trains_on_val=False,
        measured_on="val",
    ),
    Ours(
        "test-epoch",
        f"setting {_CHOSEN}, trained again on both, the best epoch CHOSEN ON THE TEST IMAGES, so too high",
        epoch_on_test=True,
    ),
    Ours(
        "test-setting",
        "trained on training and validation images, epoch and setting CHOSEN ON THE TEST IMAGES, so too high",
        epoch_on_test=True,
        setting_on_test=True,
    ),
)
_PAPERS = (PaperVPT(), PaperSHIP(), PaperVFPT(), PaperAdapterPlus())
PROTOCOLS: Mapping[str, Protocol] = {protocol.name: protocol for protocol in (*_OURS, *_PAPERS)}
"""By name."""
