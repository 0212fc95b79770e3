"""Every name timm lists: whether it opens, and whether it works where it opens.

    make test-all                                     # all of them, and docs/backbones.* written anew
    python scripts/every_backbone.py 'vitamin*'       # a few; nothing is written

A name is first built at its own size without memory for its weights, which says whether it opens. Those that do are
built small (depth 2, narrow) with random weights: timm's own logits must come out without prompts, at two image sizes,
and a training step of each main method must give finite losses and gradients.

The exit is 1 if a name opens and does not work, or if something no longer works that the table says works; in the
latter case the table is left as it is.
"""

from __future__ import annotations

import argparse
import fnmatch
import math
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

if not __package__:
    # Run as a file: the package is found from its parent, and its modules not as top-level ones.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import timm
import timm.models
import torch
import torch.nn.functional as F
from tests.families import images_for, scramble, small_options
from tests.methods.cases import CLASSES, tuned_on
from torch import Tensor, nn

from scripts.backbones_page import METHODS, TABLE, Row, lost, page, read_table, table
from trimtab.backbone import Backbone, reasons_not_to_open
from trimtab.backbone.meta import SkipInit
from trimtab.errors import BackboneError, ConfigError
from trimtab.progress import Progress, TerminalProgress, clock
from trimtab.storage.files import write_text

LIMIT = 200_000_000
"""Parameters at depth 2 beyond which a model is not tried: 0.8 GB, and gradients pass through all of it."""
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
DOCS = Path(__file__).resolve().parents[1] / "docs"


class BrokenError(Exception):
    """What a backbone that opened did wrong."""


def examine(name: str) -> Row:
    """Open one of timm's names and try what can be tried."""
    module = timm.models.model_entrypoint(name).__module__.rpartition(".")[2]
    try:
        with torch.device("meta"), SkipInit():
            whole = timm.create_model(name)
    except Exception as error:  # noqa: BLE001 (timm raises whatever its layers raise)
        return Row(name, module, "", "not built", one_line(error))
    kind, reasons = type(whole).__name__, reasons_not_to_open(whole)
    if reasons:
        return Row(name, module, kind, "refused", "; ".join(reasons))
    try:
        model, parameters = shrunk(name)
        if model is None:
            return Row(name, module, kind, "does not fit", f"{parameters / 1e6:,.0f} million parameters at depth 2")
        backbone = Backbone(model)
        check_logits(backbone)
        facts = facts_of(backbone)
    except Exception as error:  # noqa: BLE001 (whatever goes wrong is what the table is for)
        return Row(name, module, kind, "fails", one_line(error))
    steps = {label: outcome(check_step, backbone, *case) for label, case in METHODS.items()}
    resized = outcome(check_resized, backbone)
    told = {**steps, "another image size": resized}
    failed = [f"{label}: {text}" for label, text in told.items() if text.startswith("fails")]
    result = "fails" if failed else "works"
    return Row(name, module, kind, result, "; ".join(failed), **facts, resized=resized, steps=steps)


def facts_of(backbone: Backbone) -> dict[str, str]:
    """What readers may want to know of an architecture."""
    tokens = range(backbone.num_prefix_tokens + backbone.patches[0])[backbone.pooled_tokens]
    if len(tokens) <= backbone.num_prefix_tokens:
        pooled = "class token" if len(tokens) == 1 else "class and distillation token"
    else:
        pooled = "patches" if tokens[0] == backbone.num_prefix_tokens else "all tokens"
    height, width = backbone.patch_size
    return {"prefix_tokens": str(backbone.num_prefix_tokens), "patch": f"{height}x{width}", "pooled": pooled}


def ways(name: str, native: int) -> Iterator[dict[str, Any]]:
    """Options that may make a name small, the smallest first: one column of blocks, stages of them, its own width."""
    yield small_options(name)
    # Windows that divide the native image divide a quarter of it.
    yield {"embed_dim": 32, "depths": (2, 2), "num_heads": (2, 4), "num_classes": 5, "img_size": native // 4}
    sides: tuple[dict[str, Any], ...] = ({"img_size": small_options(name)["img_size"]}, {"img_size": native // 4}, {})
    yield from ({"depth": 2, **side} for side in sides)
    yield from sides


def shrunk(name: str) -> tuple[nn.Module | None, int]:
    """The first way that timm builds and runs, or None if it has too many parameters; and how many it has."""
    config = timm.get_pretrained_cfg(name)
    native = config.input_size[-1] if config else 224
    for options in ways(name, native):
        try:
            with torch.device("meta"), SkipInit():
                parameters = sum(value.numel() for value in timm.create_model(name, **options).parameters())
            if parameters > LIMIT:
                return None, parameters
            model = scramble(timm.create_model(name, **options)).eval()
            side = options.get("img_size", native)
            with torch.no_grad():
                model(torch.zeros(1, 3, side, side))
        except Exception:  # noqa: BLE001, S112 (options of another architecture; the last way has none)
            continue
        return model, parameters
    raise BrokenError("timm runs it at no small size")


def check_logits(backbone: Backbone) -> None:
    """Without prompts, block by block, timm's own logits.

    Raises:
        AssertionError: If they differ, with how much.
    """
    images, model = images_for(backbone), backbone.model
    with torch.no_grad():
        stream = backbone.embed(images)
        for i in range(backbone.depth):
            stream = backbone.block(i, stream)
        # Stages of timm's keep rows and columns apart.
        left = model.norm(stream.tokens).reshape(model.forward_features(images).shape)
        torch.testing.assert_close(model.forward_head(left), model(images), **CLOSE)
        timms = model.forward_head(model.forward_features(images), pre_logits=True)
        torch.testing.assert_close(backbone.pool(stream), timms, **CLOSE)


def check_resized(backbone: Backbone) -> None:
    """Timm's own logits on images twice as high, which leaves the backbone at that size.

    Raises:
        AssertionError: If they differ, with how much.
    """
    height, width = backbone.image_size
    backbone.set_image_size(2 * height, width)
    check_logits(backbone)


def check_step(backbone: Backbone, method: str, case: str) -> None:
    """Forward and backward once in training.

    Raises:
        BrokenError: If a loss or a gradient is missing, not finite, or all 0.
    """
    model = tuned_on(backbone, method, case).train()
    images = images_for(backbone, count=4)
    logits, extra = model.outputs(images)
    loss = F.cross_entropy(logits, torch.arange(len(images)) % CLASSES) + extra
    if not math.isfinite(loss.item()):
        raise BrokenError(f"the loss is {loss.item()}")
    loss.backward()
    for name, value in model.named_parameters():
        if not name.startswith("backbone."):
            check_gradient(name, value.grad)


def check_gradient(name: str, gradient: Tensor | None) -> None:
    """A gradient there is, finite and not 0."""
    if gradient is None:
        raise BrokenError(f"{name} has no gradient")
    if not torch.isfinite(gradient).all():
        raise BrokenError(f"the gradient of {name} is not finite")
    if not gradient.any():
        raise BrokenError(f"the gradient of {name} is 0")


def outcome(check: Callable[..., None], *arguments: Any) -> str:
    """What came of a check, in words."""
    try:
        check(*arguments)
    except (BackboneError, ConfigError) as error:
        return f"refused: {one_line(error)}"
    except Exception as error:  # noqa: BLE001 (whatever goes wrong is what the table is for)
        return f"fails: {one_line(error)}"
    return "works"


def one_line(error: Exception) -> str:
    """An error without line ends, not too long."""
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, (BrokenError, BackboneError, ConfigError)) else f"{type(error).__name__}: {text}"


def examined(names: Sequence[str], workers: int, progress: Progress) -> list[Row]:
    """What :func:`examine` says of names, in so many processes of one thread each."""
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    rows = []
    with ExitStack() as stack:
        found: Iterable[Row] = map(examine, names)
        if workers > 1:
            # Forks of a process in which torch has run may hang.
            context = multiprocessing.get_context("spawn")
            found = stack.enter_context(ProcessPoolExecutor(workers, mp_context=context)).map(examine, names)
        advance = stack.enter_context(progress.stage("Backbones", len(names), "names"))
        for row in found:
            rows.append(row)
            advance(note=row.name)
            if row.outcome == "fails":
                progress.say(f"{row.name} opens but fails: {row.reason}")
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Examine, compare with the table, write it, and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patterns", nargs="*", help="names to examine, as 'vit_*' (default: all; writes the table)")
    parser.add_argument("--out", type=Path, default=DOCS, help="folder of the table (default: docs)")
    parser.add_argument("--workers", type=int, default=2, help="processes, of one thread each (default: 2)")
    parser.add_argument("--accept", action="store_true", help="write the table although something is lost")
    options = parser.parse_args(arguments)
    listed = timm.list_models()
    names = [n for n in listed if not options.patterns or any(fnmatch.fnmatch(n, p) for p in options.patterns)]
    if not names:
        parser.error(f"timm {timm.__version__} lists no name like {' or '.join(options.patterns)}")
    progress, started = TerminalProgress(), time.monotonic()
    rows = examined(names, options.workers, progress)
    before = read_table(options.out / TABLE)
    losses = {row.name: found for row in rows if (found := lost(row, before.get(row.name, {})))}
    for name, found in losses.items():
        for what, now in found.items():
            progress.say(f"{name} worked when the table was written ({what}); now: {now}")
    if not options.patterns and (options.accept or not losses):
        write_text(options.out / TABLE, table(rows))
        write_text(options.out / "backbones.md", page(rows, timm.__version__))
    counts = Counter(row.outcome for row in rows)
    told = ", ".join(f"{count} {one}" for one, count in sorted(counts.items()))
    progress.say(f"{len(rows)} names in {clock(time.monotonic() - started)}: {told}.")
    return int(bool(losses or counts["fails"]))


if __name__ == "__main__":
    sys.exit(main())
