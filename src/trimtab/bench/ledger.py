"""Access to test images: to chosen models only, once each, and recorded before it happens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from trimtab.bench.results import Record, Results
from trimtab.errors import TrimtabError

if TYPE_CHECKING:
    from trimtab.bench.trial import Trial
    from trimtab.data import ImageSet


class LedgerError(TrimtabError):
    """Test images were requested for a model that may not read them."""


class Ledger:
    """Hands out test images to chosen models, once to each: one model for each row, task and seed.

    Nothing else of a benchmark can open them: tuning and training get lists of images that hold none of them.

    Args:
        results: Where choices are read, and every opening is recorded.
        tests: By task, what lists its test images.
    """

    def __init__(self, results: Results, tests: Mapping[str, Callable[[], ImageSet]]) -> None:
        self._results, self._tests = results, tests

    def open(self, trial: Trial, model: str) -> ImageSet:
        """Open the test images for a final model.

        A measurement that was interrupted may be made again, of the same model.

        Args:
            trial: What was trained.
            model: Digest of its saved tensors.

        Raises:
            LedgerError: If it is not the chosen one, was measured before, or another model was.
        """
        self._check(trial)
        trained = self._results.trials.get(trial.key)
        if trained is None or trained["model"] != model:
            raise LedgerError(f"{trial.words} is not the model that was trained and recorded; remove {trial.key}.")
        # Trained twice, as after its folder was lost, it need not be the same to the bit.
        if {line["model"] for line in self._results.find("test-opened", key=trial.key)} - {model}:
            raise self._second(trial)
        return self._opened(trial, {"model": model})

    def open_to_select(self, trial: Trial) -> ImageSet:
        """Open the test images for a training whose protocol chooses its epoch on them; every such row says so.

        Raises:
            LedgerError: If its protocol does not, or it was measured before.
        """
        if not trial.test_epochs:
            raise LedgerError(f"{trial.words} may not see test images before it is trained.")
        self._check(trial)
        return self._opened(trial, {"selects": True, "epochs": list(trial.test_epochs)})

    def enter(self, trial: Trial, measured: Record) -> Record:
        """Record an evaluation on test images."""
        return self._results.append("test", {**trial.place, "key": trial.key, **measured})

    def measured(self, trial: Trial) -> Record | None:
        """Find the recorded evaluation of a trial; ``None`` if there is none."""
        return self._results.last("test", key=trial.key)

    def _check(self, trial: Trial) -> None:
        if trial.part != "final":
            raise LedgerError(f"{trial.words} is a tuning trial; these never see test images.")
        choice = self._results.last("choice", **trial.unit)
        if choice is None:
            raise LedgerError(f"Nothing is chosen yet for {trial.row!r} on {trial.task}.")
        if trial.setting not in choice["settings"]:
            raise LedgerError(f"{trial.words} is not what was chosen for {trial.row!r} on {trial.task}.")
        if self.measured(trial) is not None:
            raise LedgerError(f"The test images of {trial.task} were read for {trial.words} already.")
        others = {line["key"] for line in self._results.find("test-opened", **trial.place)} - {trial.key}
        if others and not trial.test_epochs:
            raise self._second(trial)

    @staticmethod
    def _second(trial: Trial) -> LedgerError:
        return LedgerError(
            f"Another model of {trial.row!r} on {trial.task}, seed {trial.seed}, had the test images, which are "
            "read once only; another search needs another --out."
        )

    def _opened(self, trial: Trial, more: Record) -> ImageSet:
        self._results.append("test-opened", {**trial.place, "key": trial.key, **more})
        return self._tests[trial.task]()
