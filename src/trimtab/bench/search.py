"""Search: settings from a grid, random points or Optuna's TPE, and Optuna's median pruner."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trimtab.bench.presets import Space
from trimtab.bench.results import Record
from trimtab.data.images import randomness
from trimtab.errors import ConfigError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


def settings_count(space: Space, sampler: str, trials: int | None) -> int:
    """Count the settings to try; a single one needs no trial."""
    points = len(space.points())
    if points == 1:
        return 1
    return trials if trials is not None and sampler != "grid" else min(points, trials or points)


def propose(space: Space, sampler: str, number: int, done: Sequence[tuple[Record, float]], name: str) -> Record:
    """Propose the setting to try as ``number``, from 0.

    Args:
        space: What is searched.
        sampler: ``"grid"``, ``"random"`` or ``"tpe"``.
        number: Which trial of its search this is.
        done: Settings that were tried, with their validation accuracies; of use to TPE only.
        name: Of the search: another one has other random points.
    """
    points = space.points()
    if sampler == "grid" or len(points) == 1:
        return points[number]
    if sampler == "random":
        return _random(space, f"{name}/{number}")
    return _tpe(space, number, done, name)


def check_optuna(sampler: str, *, prune: bool) -> None:
    """Make sure that Optuna is installed if the search needs it.

    Raises:
        ConfigError: If it is not.
    """
    if sampler != "tpe" and not prune:
        return
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"{'--prune' if prune else 'The sampler tpe'} needs the package optuna; install trimtab[search], or "
            f"{'leave it out' if prune else 'take --sampler random'}."
        ) from error


def is_behind(curve: Sequence[float], earlier: Sequence[Sequence[float]], epochs: int) -> bool:
    """Tell whether Optuna's median pruner stops a trial: after a third of its epochs, from the fifth trial on.

    Args:
        curve: Validation scores of the trial, one for each epoch so far.
        earlier: Those of whole trials before it.
        epochs: How many epochs it has in all.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=epochs // 3 + 1)
    study = optuna.create_study(direction="maximize", pruner=pruner)
    for other in earlier:
        # The best so far, as the pruner takes it of the trial itself.
        best = list(itertools.accumulate(other, max))
        values = dict(enumerate(best, start=1))
        study.add_trial(optuna.trial.create_trial(value=best[-1], intermediate_values=values))
    trial = study.ask()
    for epoch, value in enumerate(curve, start=1):
        trial.report(value, epoch)
    return trial.should_prune()


def _random(space: Space, name: str) -> Record:
    draw = randomness("search", name)

    def values(grid: Mapping[str, tuple[Any, ...]]) -> Record:
        found: Record = {}
        for key, choices in grid.items():
            share = draw.random()
            low, high = _ends(key, choices)
            between = low is not None and high is not None
            found[key] = _rounded(low * (high / low) ** share) if between else choices[int(share * len(choices))]  # type: ignore[operator]
        return found

    return {"options": values(space.options), "fit": values(space.fit)}


def _ends(key: str, choices: tuple[Any, ...]) -> tuple[float | None, float | None]:
    """Return the range of a continuous option (learning rates), or two ``None`` for a choice."""
    if key != "lr" or len(choices) == 1:
        return None, None
    return float(min(choices)), float(max(choices))


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def _tpe(space: Space, number: int, done: Sequence[tuple[Record, float]], name: str) -> Record:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    seed = int(hashlib.sha256(f"{name}/{number}".encode()).hexdigest()[:8], 16)
    spread = _distributions(space)
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=4)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for setting, value in done:
        known = {
            f"{part}.{key}": _position(key, choices, setting[part][key])
            for part, grid in (("options", space.options), ("fit", space.fit))
            for key, choices in grid.items()
            if f"{part}.{key}" in spread
        }
        study.add_trial(optuna.trial.create_trial(params=known, distributions=dict(spread), value=value))
    found = study.ask(dict(spread)).params
    return {
        part: {key: _value(key, choices, found.get(f"{part}.{key}")) for key, choices in grid.items()}
        for part, grid in (("options", space.options), ("fit", space.fit))
    }


def _position(key: str, choices: tuple[Any, ...], value: Any) -> Any:
    """Return how Optuna knows a value: a choice by its position, as a choice may be a tuple."""
    if _ends(key, choices) != (None, None):
        return value
    # In the records a tuple is a list.
    return choices.index(tuple(value) if isinstance(value, list) else value)


def _value(key: str, choices: tuple[Any, ...], found: Any) -> Any:
    """Return the value that Optuna found; the only one where nothing was searched."""
    if found is None:
        return _rounded(choices[0]) if key == "lr" else choices[0]
    return choices[found] if _ends(key, choices) == (None, None) else _rounded(found)


def _distributions(space: Space) -> dict[str, BaseDistribution]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    found: dict[str, BaseDistribution] = {}
    for part, grid in (("options", space.options), ("fit", space.fit)):
        for key, choices in grid.items():
            low, high = _ends(key, choices)
            if len(choices) == 1:
                continue  # nothing to search
            if low is None or high is None:
                found[f"{part}.{key}"] = CategoricalDistribution(range(len(choices)))
            else:
                # Rounding may lead beyond the ends.
                found[f"{part}.{key}"] = FloatDistribution(low * 0.99, high * 1.01, log=not math.isclose(low, 0.0))
    return found
