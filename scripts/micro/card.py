"""The model card beside the weights, and the page in docs: words by hand, numbers from the training and the probe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from scripts.micro import probe
from scripts.micro.teacher import TEACHER, TEACHER_SIDE
from trimtab.storage.files import write_atomically, write_json, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = ("#0072B2", "#D55E00")
"""Of Okabe and Ito, which people with the common kinds of colour blindness can tell apart."""
_PANELS = {
    "What the tokens should say": {"class_token_loss": "class token", "patches_loss": "patches"},
    "What the class should be": {"logits_loss": "the teacher's logits", "labels_loss": "the labels"},
    "Images never trained on": {"held_out_accuracy": "accuracy among 1000 classes"},
}


def write_card(work: Path, backbone: nn.Module, package: Path, docs: Path) -> None:
    """Write README.md into ``package``, and page, picture and numbers into ``docs``.

    Args:
        work: What training and probe left there.
        backbone: What goes into the package.
        package: Where the weights lie.
        docs: Where the page goes.
    """
    about = json.loads((work / "curves.json").read_text())
    results = json.loads((work / "probe.json").read_text()) if (work / "probe.json").is_file() else []
    missing = [name for name in probe.SETS if not _measured(results, name, probe.digest(backbone))]
    if missing:
        raise SystemExit(f"micro: these weights are not measured on {', '.join(missing)}; run the part 'probe' first.")
    results = sorted(results, key=lambda e: (probe.SETS.index(e["set"]), probe.ROWS.index(e["features"])))
    count = sum(value.numel() for value in backbone.parameters())
    table = "\n".join(probe.table(results))
    write_text(package / "README.md", _words("card", parameters=count / 1e6, table=table))
    write_text(docs / "trimtab-micro.md", _page(about, results, count, table))
    write_json(docs / "trimtab-micro.json", {**about, "probe": results})
    figure = picture(about["curves"])
    write_atomically(
        docs / "trimtab-micro.svg", lambda file: figure.savefig(file, format="svg", metadata={"Date": None})
    )


def _measured(results: list[dict[str, Any]], name: str, digest: str) -> bool:
    rows = {e["features"]: e["weights"] for e in results if e["set"] == name}
    return rows.keys() == set(probe.ROWS) and rows[probe.OURS] == digest


def _page(about: dict[str, Any], results: list[dict[str, Any]], parameters: int, table: str) -> str:
    recipe, last = about["recipe"], about["curves"][-1]
    cifar = {e["features"]: e for e in results if e["set"] == "cifar10"}
    chosen = ["| features | set | C | validation | test | standard error |", "|---|---|---|---|---|---|"]
    for e in results:
        numbers = " | ".join(f"{100 * e[key]:.1f}" for key in ("validation", "accuracy", "standard_error"))
        chosen.append(f"| {e['features']} | {e['set']} ({e['train']} + {e['test']}) | {e['C']:g} | {numbers} |")
    return _words(
        "page",
        parameters=parameters / 1e6,
        bytes=2 * parameters / 1e6,
        teacher_side=TEACHER_SIDE,
        minutes=last["minutes"],
        cpu_minutes=last["cpu_minutes"],
        images=last["images"],
        passes=last["images"] / 31500,
        held_out=100 * last["held_out_accuracy"],
        table=table,
        ours=100 * cifar[probe.OURS]["accuracy"],
        error=100 * cifar[probe.OURS]["standard_error"],
        random=100 * cifar[probe.RANDOM]["accuracy"],
        pixels=100 * cifar[probe.PIXELS]["accuracy"],
        vit=100 * cifar[probe.VIT]["accuracy"],
        view=100 * cifar[probe.VIEW]["accuracy"],
        chosen="\n".join(chosen),
        recipe="\n".join(f"| `{name}` | {value:g} |" for name, value in recipe.items()),
        **{name: recipe[name] for name in ("kept", "kept_last", "whole_from", "seed")},
    )


def _words(name: str, **values: Any) -> str:
    """A text of ours with numbers in it, and the two parts that card and page share."""
    folder = Path(__file__).parent / "words"
    shared = {part: (folder / f"{part}.md").read_text().strip() for part in ("use", "origin")}
    text = (folder / f"{name}.md").read_text()
    for part, words in shared.items():
        text = text.replace(f"{{{part}}}", words)
    return text.format(teacher=TEACHER, **values)


def picture(curves: list[dict[str, float]]) -> Figure:
    """Losses and accuracy over the images seen."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # Text stays text, and the same numbers give the same file.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "trimtab", "font.size": 9})
    figure = Figure(figsize=(9.6, 2.8), layout="constrained")
    images = [entry["images"] / 1000 for entry in curves]
    for axes, (title, lines) in zip(figure.subplots(1, len(_PANELS)), _PANELS.items(), strict=True):
        for colour, style, (key, label) in zip(_COLOURS, ("-", "--"), lines.items(), strict=False):
            axes.plot(images, [entry[key] for entry in curves], color=colour, linestyle=style, label=label)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("thousand images seen")
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.legend(frameon=False)
    return figure
