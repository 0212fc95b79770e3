"""How hyper-parameters are chosen and final models are trained and read: ``strict``, or as two papers did."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from trimtab.bench import presets
from trimtab.bench.presets import Space
from trimtab.bench.results import Record, best
from trimtab.bench.suites import SuiteTask


@dataclass(frozen=True)
class Row:
    """A row of the table: a method, perhaps with options."""

    name: str
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of the method; they are not searched."""
    fit: Mapping[str, Any] = field(default_factory=dict)
    """Of the training, in place of those that all rows have."""


class Protocol(abc.ABC):
    """A way from a method and a task to numbers."""

    name: str
    words: str
    """What tables say of it."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Those of the final models; more follow by counting on."""
    chooses_on_test = False
    """Whether settings and epochs are chosen on the test images, as no other protocol may."""

    @abc.abstractmethod
    def space(self, row: Row, task: SuiteTask) -> Space:
        """What is searched.

        Raises:
            ConfigError: If the protocol does not know the method.
        """

    def complete(self, point: Record, space: Space) -> Record:
        """A point with what belongs to it: ``options`` of the method and ``fit``, of the training."""
        return {"options": dict(point["options"]), "fit": {**space.fixed, **point["fit"]}}

    def choose(self, trials: Iterable[Record]) -> Record:
        """The tuning trial whose setting the final models have."""
        return best(trials)

    def test_epochs(self, epochs: int) -> tuple[int, ...]:
        """After which epochs a final training reads the test images; none where only the last model does."""
        return ()

    def seeds_of(self, count: int | None) -> tuple[int, ...]:
        """The seeds of as many final models as are wanted."""
        known = self.seeds
        wanted = len(known) if count is None else count
        return (*known, *range(max(known) + 1, max(known) + 1 + wanted))[:wanted]


class Strict(Protocol):
    """Chosen on validation images, never on test images."""

    name = "strict"
    words = (
        "chosen on validation images, trained again on training and validation images together, last epoch, "
        "test images read once a model"
    )

    def space(self, row: Row, task: SuiteTask) -> Space:
        """The method's own, the same number of settings for each method."""
        return presets.own_space(row.method).without(row.options)


class PaperVPT(Protocol):
    """VPT's code: a wide grid, the last epoch on val200."""

    name = "paper-vpt"
    words = (
        "as VPT's code: learning rate and weight decay chosen on validation images, published prompt length, trained "
        "again on training and validation images together, last epoch"
    )
    seeds = (42, 44, 82, 100, 800)

    def space(self, row: Row, task: SuiteTask) -> Space:
        """Learning rates and weight decays, and prompt lengths where none is published."""
        return presets.vpt_space(row.method, row.options, task.suite, task.name)

    def complete(self, point: Record, space: Space) -> Record:
        """With the batch size that goes with the number of prompts."""
        setting = super().complete(point, space)
        return {**setting, "fit": {"batch_size": presets.vpt_batch(setting["options"]), **setting["fit"]}}

    def choose(self, trials: Iterable[Record]) -> Record:
        """The best on the validation images; of equal ones the smallest learning rate."""

        def rank(trial: Record) -> tuple[bool, float, float]:
            return not trial.get("failed") and not trial.get("pruned"), trial["val_accuracy"], -trial["fit"]["lr"]

        return max(trials, key=rank)


class PaperSHIP(Protocol):
    """SHIP's code: the best epoch, and the best setting, on the test images."""

    name = "paper-ship"
    words = "as SHIP's code: the best epoch (of every tenth) and setting CHOSEN ON THE TEST IMAGES, so too high"
    seeds = (1,)
    chooses_on_test = True

    def space(self, row: Row, task: SuiteTask) -> Space:
        """The setting that the code's logs have for the task, or the grid they show."""
        return presets.ship_space(row.method, row.options, task.name)

    def test_epochs(self, epochs: int) -> tuple[int, ...]:
        """After the first, every tenth from there, and the last."""
        return tuple(sorted({*range(1, epochs + 1, 10), epochs}))


PROTOCOLS: Mapping[str, Protocol] = {kind.name: kind() for kind in (Strict, PaperVPT, PaperSHIP)}
"""By name."""
