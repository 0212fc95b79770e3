"""Verify prepared tasks: decode their images again and compare with the manifests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.bench import task_table
from trimtab.bench.pixels import look_at
from trimtab.bench.prepare import versions
from trimtab.bench.task_folder import (
    MANIFEST,
    PIXELS,
    SPLITS,
    PreparedImage,
    read_manifest,
    read_seen,
    split_facts,
    splits_text,
)
from trimtab.errors import DataError
from trimtab.progress import Progress

_SHOWN = 3


@dataclass(frozen=True)
class Verdict:
    """The result of verifying a prepared task.

    Attributes:
        task: ``"SUITE/TASK"``.
        variant: As its manifest says.
        images: How many were decoded.
        wrong: What is not as it should be, a sentence each; nothing if all is well.
    """

    task: str
    variant: str
    images: int
    wrong: tuple[str, ...]

    @property
    def text(self) -> str:
        """Summarise the result in a line."""
        return f"wrong: {'; '.join(self.wrong)}" if self.wrong else f"{self.variant}, {self.images} images, all right"


def verify(path: str | Path, *, threads: int = 2, progress: Progress | None = None) -> list[Verdict]:
    """Decode every image of prepared tasks and compare with manifest, table and sizes.

    Args:
        path: The folder of a task, of a suite, or the root of all.
        threads: That decode images.
        progress: Reports progress.

    Raises:
        DataError: There is nothing prepared.
    """
    # Names of suite and task are taken from the folders, so they have to be in the path.
    listener, top = progress or Progress(), Path(path).absolute()
    found = [folder for depth in ("", "*/", "*/*/") for folder in sorted(top.glob(f"{depth}{PIXELS}"))]
    if not found:
        raise DataError(f"{top} has no prepared tasks in it; make some with `trimtab data prepare`.")
    return [_verdict(file.parent, threads, listener) for file in found]


def _verdict(folder: Path, threads: int, progress: Progress) -> Verdict:
    name, wrong = f"{folder.parent.name}/{folder.name}", list[str]()
    if not (folder / MANIFEST).is_file():
        return Verdict(name, "", 0, ("it is unfinished; go on with `trimtab data prepare`",))
    try:
        manifest, listed = read_manifest(folder), read_seen(folder)
    except DataError as error:
        return Verdict(name, "", 0, (str(error),))
    name = f"{manifest['suite']}/{manifest['task']}"
    seen = _looked_at(folder, name, listed, threads, wrong, progress)
    wrong += _against_manifest(manifest, seen)
    changed = [one.path for one, now in zip(listed, seen, strict=True) if now.sha256 not in ("", one.sha256)]
    if changed:
        made = manifest.get("made_with", {}).get("libjpeg")
        other = f"; made with libjpeg {made}, this is {versions()['libjpeg']}" if made != versions()["libjpeg"] else ""
        wrong.append(f"{len(changed)} images show something else than when prepared ({_some(changed)}{other})")
    wrong += _against_splits(folder, listed)
    return Verdict(name, manifest["variant"], len(listed), tuple(wrong))


def _looked_at(
    folder: Path, name: str, listed: Sequence[PreparedImage], threads: int, wrong: list[str], progress: Progress
) -> list[PreparedImage]:
    """The images as they are now; one that cannot be read has no digest."""
    with progress.stage(f"Verifying {name}", len(listed), "images") as advance:

        def look(one: PreparedImage) -> PreparedImage:
            try:
                mask = (folder / one.mask).read_bytes() if one.mask else None
                now = look_at((folder / one.path).read_bytes(), one.label, one.path, mask)
            except (OSError, DataError):
                return PreparedImage(one.split, one.place, one.path, one.mask, one.label, "", "")
            finally:
                advance()
            return PreparedImage(one.split, one.place, one.path, one.mask, one.label, now.format, now.sha256)

        with ThreadPoolExecutor(threads) as pool:
            seen = list(pool.map(look, listed))
    lost = [one.path for one in seen if not one.sha256]
    if lost:
        wrong.append(f"{len(lost)} images are missing or cannot be read ({_some(lost)})")
    return seen


def _against_manifest(manifest: Mapping[str, Any], seen: Sequence[PreparedImage]) -> list[str]:
    task = task_table.TASKS[manifest["suite"]][manifest["task"]]
    wrong = []
    facts = split_facts(seen)
    sizes = {split: own["images"] for split, own in facts.items()}
    if sizes != task.splits_written:
        wrong.append(f"it has {sizes} images, and the benchmark has {task.splits_written}")
    if len(manifest["classes"]) != task.classes:
        wrong.append(f"it has {len(manifest['classes'])} classes, and the benchmark has {task.classes}")
    for split in {*facts, *manifest["splits"]}:
        if facts.get(split) != manifest["splits"].get(split):
            wrong.append(f"the {split} split is not the one of the manifest")
    return sorted(wrong)


def _against_splits(folder: Path, listed: Sequence[PreparedImage]) -> list[str]:
    """``splits.csv`` must say the same as the digests' list, or training would see something else."""
    if any(one.mask for one in listed):
        return []
    try:
        same = (folder / SPLITS).read_text(encoding="utf-8") == splits_text(listed)
    except (OSError, UnicodeDecodeError):
        same = False
    return [] if same else [f"{SPLITS} is not the one that was written"]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
