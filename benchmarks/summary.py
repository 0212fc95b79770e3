"""Numbers of a study from its results: means, intervals and paired differences."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.studies import SETS, FixedRow, Study
from trimtab.bench.results import Record, Results
from trimtab.bench.statistics import difference, interval, t_value

INTERVAL = (
    "Intervals are 95 % t intervals over the per-seed means over the sets ({seeds} seeds, {degrees} degrees of "
    "freedom, t = {t:.3f}); they hold the draw of training and validation images and the training, not the draw of "
    "test images or of sets. Differences are paired: of the same seed, on the same images."
)


def summarise(study: Study, results: Results) -> Record | None:
    """All that tables and pictures show of a study, JSON values; ``None`` without results.

    Only the newest budget is shown, and rows of another one are named in ``left_out``.
    """
    lines = results.find("test") if study.tuned else results.find("use", study=study.name)
    if not lines:
        return None
    base = lines[-1]["base"]
    rows: dict[str, dict[str, dict[int, Record]]] = {}
    left_out: list[str] = []
    rates = {line["set"]: results.trials[line["key"]]["lr"] for line in lines if line["base"] == base}
    for line in lines:
        trial = results.trials[line["key"]]
        name = f"{line['row']}, {line['set']}, seed {line['seed']}"
        if line["base"] != base:
            left_out.append(f"{name}: another budget")
        elif not study.tuned and trial["lr"] != rates[line["set"]]:
            left_out.append(f"{name}: another learning rate")
        else:
            rows.setdefault(line["row"], {}).setdefault(line["set"], {})[line["seed"]] = _seen(study, line, trial)
    sets = [name for name in SETS if any(name in by_set for by_set in rows.values())]
    seeds = sorted({seed for by_set in rows.values() for by_seed in by_set.values() for seed in by_seed})
    order = [row.name for row in study.rows]
    names = sorted(rows, key=lambda name: order.index(name) if name in order else len(order))
    table = [_row(name, rows[name], sets, seeds) for name in names]
    for row in table:
        row.update(_described(study, row["name"]))
        if study.tuned:
            row["choices"] = {name: _choice(results, row["name"], name, base) for name in row["sets"]}
    _compare(study, table)
    return {
        "study": study.name,
        "title": study.title,
        "measure": "test accuracy" if study.tuned else "validation accuracy",
        "budget": base,
        "test_images": {line["set"]: line["test_images"] for line in lines if "test_images" in line},
        "sets": sets,
        "seeds": len(seeds),
        "interval": _about_intervals(len(seeds)),
        "rows": table,
        "left_out": left_out,
        "test_openings": results.find("test-opened") if study.tuned else [],
    }


def _seen(study: Study, line: Record, trial: Record) -> Record:
    """One seed of a row and set, as the JSON shows it."""
    costs = ("trainable", "trainable_method", "adapter_bytes", "seconds", "train_loss", "method_config", "failed")
    extra = {name: value for name, value in line.items() if name.startswith("test_")}
    provenance = {name: trial.get(name) for name in ("split", "fingerprint", "versions", "code", "gpu")}
    return {
        "key": line["key"],
        "seed": line["seed"],
        "accuracy": line["test_accuracy"] if study.tuned else trial["val_accuracy"],
        "time": line["time"],
        "lr": trial["lr"],
        "val_accuracy": trial["val_accuracy"],
        "val_loss": trial["val_loss"],
        **{name: trial.get(name) for name in costs},
        **extra,
        **provenance,
    }


def _about_intervals(seeds: int) -> str | None:
    return INTERVAL.format(seeds=seeds, degrees=seeds - 1, t=t_value(seeds)) if seeds > 1 else None


def _row(name: str, by_set: dict[str, dict[int, Record]], sets: Sequence[str], seeds: Sequence[int]) -> Record:
    cells = {
        one: {
            "mean": statistics.fmean(record["accuracy"] for record in by_seed.values()),
            "whole": sorted(by_seed) == list(seeds),
            "diverged": sum(record["failed"] is not None for record in by_seed.values()),
            "trainable": _mean(record["trainable"] for record in by_seed.values()),
            "seeds": [by_seed[seed] for seed in sorted(by_seed)],
        }
        for one, by_seed in by_set.items()
    }
    # A mean over some of the sets could not be compared with the other rows.
    whole = all(one in cells and cells[one]["whole"] for one in sets)
    means = [statistics.fmean(by_set[one][seed]["accuracy"] for one in sets) for seed in seeds] if whole else []
    every = [record for by_seed in by_set.values() for record in by_seed.values()]
    costs = ("trainable", "trainable_method", "adapter_bytes", "seconds")
    return {
        "name": name,
        "sets": cells,
        "seed_means": means,
        **interval(means),
        **{cost: _mean(record[cost] for record in every) for cost in costs},
    }


def _described(study: Study, name: str) -> Record:
    row = next((row for row in study.rows if row.name == name), None)
    if row is None:
        return {}
    panel = row.panel if isinstance(row, FixedRow) else None
    value = row.options[panel] if panel is not None else None
    return {"method": row.method, "options": dict(row.options), "panel": panel, "value": value}


def _choice(results: Results, row: str, name: str, base: Record) -> Record | None:
    choice = results.last("choice", row=row, set=name, base=base)
    if choice is None:
        return None
    shown = ("key", "options", "lr", "val_accuracy", "val_loss", "failed")
    tried = [{part: results.trials[key].get(part) for part in shown} for key in choice["tried"]]
    return {**{part: choice[part] for part in ("key", "options", "lr", "time")}, "tried": tried}


def _compare(study: Study, table: list[Record]) -> None:
    """Add the paired differences: to named rows, and in studies of fixed rows to the row before."""
    named = ("linear", "vpt") if study.tuned else (study.baseline,)
    found = {row["name"]: row["seed_means"] for row in table}
    before: Record | None = None
    for row in table:
        row["against"] = {
            other: difference(row["seed_means"], found[other])
            for other in named
            if other is not None and other in found and other != row["name"]
        }
        if study.baseline is not None and before is not None:
            row["against_previous"] = difference(row["seed_means"], before["seed_means"])
        before = row


def _mean(values: Iterable[Any]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
