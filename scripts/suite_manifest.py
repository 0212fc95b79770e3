"""Write down which images the sets of a suite file hold: counts and digests over decoded pixels and labels.

    python scripts/suite_manifest.py benchmarks/local.csv --out docs/comparison/local/manifest.json

The digests are those of ``trimtab data prepare``, of the images of each split in the order in which they are listed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from trimtab.bench.pixels import look_at, together
from trimtab.bench.suites import SuiteTask, open_parts, open_suite, open_test
from trimtab.data import ImageSet
from trimtab.errors import TrimtabError
from trimtab.progress import TerminalProgress
from trimtab.storage.files import write_text


def manifest(tasks: list[SuiteTask], val_fraction: float) -> dict[str, Any]:
    """By task: group, classes, and of each split the number of images and the digest of what they show."""
    found = {}
    for task in tasks:
        parts = open_parts(task, val_fraction)
        classes = parts.final.train.classes
        splits = {
            "train": parts.tuning.train,
            "val": parts.tuning.val,
            "train and val": parts.final.train,
            "test": open_test(task, parts.final.train),
        }
        facts = {name: {"images": len(images), "sha256": digest(images)} for name, images in splits.items()}
        found[task.name] = {"group": task.group, "classes": list(classes), "images": parts.digest, "splits": facts}
    return found


def digest(images: ImageSet) -> str:
    """Of the decoded pixels and the class names of a set, in its order."""
    seen = []
    for path, label in zip(images.paths, images.labels, strict=True):
        seen.append(look_at(Path(str(path)).read_bytes(), images.classes[label], str(path)).sha256)
    return together(seen)


def main(arguments: list[str] | None = None) -> int:
    """Write the file that the command line names."""
    parser = argparse.ArgumentParser(description="Write down which images the sets of a suite hold.")
    parser.add_argument("suite", help="CSV file with the columns task, data, group")
    parser.add_argument("--val-fraction", type=float, default=0.2, help="as for trimtab bench")
    parser.add_argument("--out", type=Path, required=True)
    parsed = parser.parse_args(arguments)
    try:
        found = manifest(open_suite(parsed.suite), parsed.val_fraction)
        write_text(parsed.out, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    except (TrimtabError, OSError) as error:
        TerminalProgress().say(f"{type(error).__name__}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
