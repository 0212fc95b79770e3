"""Who looks at a run's images, by its task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from trimtab.progress import Progress
from trimtab.reporting import classified, segmented
from trimtab.reporting.findings import EvaluationOptions, Findings, LoadedRun, open_run
from trimtab.reporting.runs import Run
from trimtab.tasks import Classification, Segmentation


class _Find(Protocol):
    def __call__(self, looked: LoadedRun, *, mistakes: int, examples: int, progress: Progress) -> Findings: ...


FINDERS: Mapping[str, _Find] = {Classification.name: classified.find, Segmentation.name: segmented.find}


def find(run: Run, asked: EvaluationOptions, *, mistakes: int, examples: int, progress: Progress) -> Findings:
    """Run a model over labelled images.

    Args:
        run: Whose model.
        asked: Which images; without data, those that the run was validated on.
        mistakes: How many of the worst to keep.
        examples: How many images to look at closely.
        progress: Who is told how far it is.

    Raises:
        TrimtabError: If the images, the backbone or the adapter cannot be used.
    """
    looked = open_run(run, asked)
    for note in looked.images.notes:
        progress.say(note)
    return FINDERS[looked.task.name](looked, mistakes=mistakes, examples=examples, progress=progress)
