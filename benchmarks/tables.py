"""Turn results into tables, pictures and JSON.

python benchmarks/tables.py --work runs/methods --out docs/comparison
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

if not __package__:
    # Run as a file: the package is found from its parent, and its modules not as top-level ones.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.pictures import draw
from benchmarks.studies import STUDIES
from benchmarks.summary import summarise
from trimtab.bench.results import Record, Results
from trimtab.storage.files import write_json, write_text

NONE = "–"  # noqa: RUF001


def markdown(summary: Record) -> str:
    """The tables of a study, with what they rest on."""
    parts = [_table(summary), _budget(summary)]
    if summary["interval"]:
        parts.append(summary["interval"])
    if summary["study"] == "methods":
        parts.append(f"What tuning chose on the validation images of seed 0:\n\n{_choices(summary)}")
    if summary["left_out"]:
        parts.append("Left out: " + "; ".join(summary["left_out"]) + ".")
    return "\n\n".join(parts) + "\n"


def _table(summary: Record) -> str:
    sets, rows = summary["sets"], summary["rows"]
    others = [row["name"] for row in rows if any(row["name"] in other["against"] for other in rows)]
    previous = any("against_previous" in row for row in rows)
    header = ["row", *sets, "mean", *(f"against {other}" for other in others)]
    header += ["against the row before"] if previous else []
    header += ["trainable parameters of the method", "adapter", "training"]
    lines = []
    for row in rows:
        line = [row["name"], *(_cell(row["sets"].get(one)) for one in sets), _share(row)]
        line += [_share(row["against"].get(other), sign=True) for other in others]
        line += [_share(row.get("against_previous"), sign=True)] if previous else []
        line.append(NONE if row["trainable_method"] is None else f"{row['trainable_method']:,.0f}")
        line.append(NONE if row["adapter_bytes"] is None else f"{row['adapter_bytes'] / 1000:,.0f} kB")
        line.append(NONE if row["seconds"] is None else f"{row['seconds']:.0f} s")
        lines.append(line)
    return _markdown(header, lines)


def _choices(summary: Record) -> str:
    lines = []
    for row in summary["rows"]:
        shown = []
        for one in summary["sets"]:
            choice = row["choices"].get(one)
            shown.append(NONE if choice is None else _chosen(row, choice))
        lines.append([row["name"], *shown])
    return _markdown(["row", *summary["sets"]], lines)


def _chosen(row: Record, choice: Record) -> str:
    before = row.get("options", {})
    first = choice["tried"][0]["options"] if choice["tried"] else before
    changed = [f"{name} {value}" for name, value in choice["options"].items() if first.get(name) != value]
    rates = [trial["lr"] for trial in choice["tried"] if trial["options"] == first]
    # A better rate may lie beyond.
    notes = ["an end of the grid"] if choice["lr"] in (min(rates), max(rates)) else []
    failed = sum(bool(trial["failed"]) for trial in choice["tried"])
    notes += [f"{failed} diverged"] if failed else []
    return ", ".join([f"lr {choice['lr']:g}", *changed, *notes])


def _budget(summary: Record) -> str:
    budget: dict[str, Any] = summary["budget"]
    seeds = f"mean of {summary['seeds']} seeds" if summary["seeds"] > 1 else "one seed"
    text = (
        f"{summary['measure'].capitalize()} in %, {seeds}. {budget['train_images']} training "
        f"and {budget['val_images']} validation images a set and seed, {budget['epochs']} epochs, batch "
        f"{budget['batch_size']}, {budget['image_size']} px"
    )
    counts = sorted(set(summary["test_images"].values()))
    if counts:
        text += f"; {' or '.join(map(str, counts))} test images a set, read once a model"
    return text + "."


def _cell(cell: Record | None) -> str:
    if cell is None:
        return NONE
    text = f"{100 * cell['mean']:.1f}" + ("" if cell["whole"] else f" ({len(cell['seeds'])} of the seeds)")
    return text + (f" ({cell['diverged']} diverged, counted as 0)" if cell["diverged"] else "")


def _share(values: Record | None, sign: bool = False) -> str:
    if values is None or values["mean"] is None:
        return NONE
    mean = f"{100 * values['mean']:+.1f}" if sign else f"{100 * values['mean']:.1f}"
    return mean if values["half"] is None else f"{mean} ± {100 * values['half']:.1f}"


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(arguments: list[str] | None = None) -> int:
    """Write everything that there are results for, and print the tables."""
    parser = argparse.ArgumentParser(description="Tables, pictures and JSON of what benchmarks/methods.py measured.")
    parser.add_argument("--work", type=Path, default=Path("runs/methods"))
    parser.add_argument("--out", type=Path, default=Path("docs/comparison"))
    parsed = parser.parse_args(arguments)
    results = Results(parsed.work / "trials.jsonl")
    parsed.out.mkdir(parents=True, exist_ok=True)
    shown = 0
    for study in STUDIES.values():
        summary = summarise(study, results)
        if summary is None:
            continue
        shown += 1
        text = markdown(summary)
        write_json(parsed.out / f"{study.name}.json", summary)
        write_text(parsed.out / f"{study.name}.md", text)
        draw(summary, parsed.out)
        print(f"## {study.title}\n\n{text}")
    if not shown:
        print(f"There are no results in {parsed.work}; run benchmarks/methods.py first.")
    return 0 if shown else 1


if __name__ == "__main__":
    sys.exit(main())
