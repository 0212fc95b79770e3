"""Published results beside ours, with the reasons against a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trimtab.bench.presets import SELECTED_ON_TEST, SELECTED_ON_VALIDATION, published_name, read_published
from trimtab.bench.results import Record
from trimtab.bench.suites import DAMAGED

_TABLES = {"vtab1k": "vtab1k_per_task", "fgvc": "fgvc"}
_ORIGINAL = "vit_base_patch16_224.orig_in21k"
"""timm's name of the weights that the papers call ViT-B_16.npz."""


def beside(suite: str, rows: Sequence[Record], variants: Mapping[str, str]) -> list[Record]:
    """Collect the published rows of a suite, each with its numbers and the reasons against comparing it with ours.

    Args:
        suite: Its name; suites that nobody has published on have none.
        rows: Ours.
        variants: Of our data, by task.
    """
    if suite not in _TABLES:
        return []
    lines = read_published(_TABLES[suite])
    ours: dict[str | None, list[Record]] = {}
    for row in rows:
        ours.setdefault(published_name(row["method"], row["options"]), []).append(row)
    found: dict[tuple[str, str], Record] = {}
    for line in lines:
        key = line["method"], line["backbone"]
        record = found.setdefault(key, {"method": key[0], "backbone": key[1], "values": {}, "sources": {}})
        record["values"][line["dataset"]] = float(line["value"]) / 100
        record["params_m"] = float(line["params_m"]) if line["params_m"] else None
        record["sources"][line["dataset"]] = line["source"]
    for record in found.values():
        same = ours.get(record["method"], [])
        record["ours"] = list(dict.fromkeys(row["name"] for row in same))
        # How another row of ours was chosen says nothing about this method's.
        record["not_comparable"] = reasons(record["method"], record["backbone"], same or rows, variants)
    # What is ours, too, comes first.
    return sorted(found.values(), key=lambda record: not record["ours"])


def reasons(method: str, backbone: str, rows: Sequence[Record], variants: Mapping[str, str]) -> list[str]:
    """List the reasons why a published row cannot be compared with ours; none where it can."""
    found = []
    if "original" not in backbone:
        found.append("its source does not say for certain which weights it is of")
    elif any(row["backbone"] != _ORIGINAL for row in rows):
        found.append(f"it is of other weights ({_ORIGINAL})")
    elif any(row["weights"] for row in rows):
        found.append("ours has weights of a file (--weights), and only the model's name says that they are the same")
    if method.startswith(SELECTED_ON_TEST) and not all(row["on_test"] for row in rows):
        found.append("its epoch or setting was chosen on test images")
    elif not method.startswith(SELECTED_ON_TEST + SELECTED_ON_VALIDATION):
        found.append("its source does not say what it was chosen on")
    if any(row["on_test"] for row in rows) and method.startswith(SELECTED_ON_VALIDATION):
        found.append("ours was chosen on test images")
    if not method.startswith(SELECTED_ON_VALIDATION):
        found.append("its source does not say whether its images were stored again as JPEG")
    elif DAMAGED in variants.values():
        found.append("our images were stored again as JPEG, its were not")
    sizes = {str(row["departures"].get("image_size", "224")) for row in rows}
    if sizes - {"224", "224x224"}:
        found.append(f"ours is at {', '.join(sorted(sizes))} px, it at 224")
    shortened = sorted({str(row["departures"]["limit"]) for row in rows if "limit" in row["departures"]})
    if shortened:
        found.append(f"ours is trained on {shortened[0]} images")
    return found
