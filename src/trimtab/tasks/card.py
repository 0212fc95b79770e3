"""The model card of a saved adapter."""

from __future__ import annotations

from typing import Any


def model_card(config: dict[str, Any], metrics: dict[str, Any], run: dict[str, Any]) -> str:
    """Write a model card in the hub's form.

    Args:
        config: The adapter's configuration.
        metrics: What its training came to.
        run: The record of the run, for its command.
    """
    labels = config["labels"]
    shown = ", ".join(labels[:20]) + (f" and {len(labels) - 20} more" if len(labels) > 20 else "")
    base = _base_model(config["backbone"]["name"])
    segments = "head" in config
    measure = metrics.get("val_miou" if segments else "val_accuracy")
    result = "not measured (no validation images)" if measure is None else f"{measure:.4f}"
    head = ""
    if segments:
        head = f"| head | {config['head']['head']}, with {metrics.get('head_parameters')} of the trained parameters |\n"
    measured = "mIoU" if segments else "accuracy"
    kind, out = ("segmentation", "FOLDER") if segments else ("classification", "predictions.csv")
    return f"""---
library_name: trimtab
{base}pipeline_tag: image-{kind}
tags: [image-{kind}, visual-prompt-tuning, {config["method"]}]
---

# {config["method"]} on {config["backbone"]["name"]}

A {"segmenter" if segments else "classifier"} of {len(labels)} classes: {shown}.

| | |
|---|---|
| method | {config["method"]} |
| backbone | {config["backbone"]["name"]}, weights {config["backbone"]["fingerprint"][:12]} |
| image size | {config["backbone"]["image_size"][0]}x{config["backbone"]["image_size"][1]} |
{head}| validation {measured} | {result} |
| trained parameters | {metrics.get("trainable_parameters")} |
| training images | {metrics.get("train_images")} |

Validation images choose the epoch and the settings, so their {measured} is a little optimistic: measure with
`trimtab eval` on images that were not used here.

```
{run.get("command") or "trained from Python"}
trimtab predict . IMAGES... --out {out}
```
"""


def _base_model(name: str) -> str:
    """The card's line on the backbone's repository; nothing for a folder or one of the package, which have none."""
    from trimtab.backbone.embedded import EMBEDDED
    from trimtab.backbone.weights import FOLDER, HUB

    if name.startswith(FOLDER) or name in EMBEDDED:
        return ""
    repository = name.removeprefix(HUB).partition("@")[0] if name.startswith(HUB) else f"timm/{name}"
    return f"base_model: {repository}\n"
