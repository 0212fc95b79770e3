"""Subjects in processes of their own, timed in turn.

In one process what one subject allocates changes what the next one waits for: the C library gives freed memory back
or keeps it by what was freed before, and pages given back are faulted in again (LOG.md). Alone, a subject has the
memory it would have at a user's. Where that lies is drawn anew for every process, and so is a tenth of its time:
more than one process a subject has to be timed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.subjects import Setting, forward, make, saved_bytes, split_dtype, training_step

REST = 0.02
"""Seconds between two turns, in which the threads of the one that ran go to sleep."""


def in_turn(
    kind: str, subjects: list[str], setting: Setting, rounds: int, draws: int
) -> dict[str, tuple[dict[str, Any], list[float]]]:
    """Of each subject its counts and its seconds in ``draws`` processes of ``rounds`` turns each.

    The counts are ``flops``, ``trainable``, for a training step ``saved_bytes``, and ``faults``: pages of memory that
    a turn waited for, the median over all.
    """
    counts: dict[str, dict[str, Any]] = {}
    turns: dict[str, list[tuple[float, int]]] = {subject: [] for subject in subjects}
    for _ in range(draws):
        for subject, (found, more) in _one_draw(kind, subjects, setting, rounds).items():
            counts[subject] = found
            turns[subject] += more
    return {
        subject: (
            {**counts[subject], "faults": sorted(faults for _, faults in turns[subject])[len(turns[subject]) // 2]},
            [seconds for seconds, _ in turns[subject]],
        )
        for subject in subjects
    }


def _one_draw(
    kind: str, subjects: list[str], setting: Setting, rounds: int
) -> dict[str, tuple[dict[str, Any], list[tuple[float, int]]]]:
    """Counts of each subject, and seconds and page faults of each turn; the order turns from round to round."""
    with contextlib.ExitStack() as stack:
        workers = {subject: stack.enter_context(_worker(kind, subject, setting)) for subject in subjects}
        counts: dict[str, dict[str, Any]] = {}
        for subject in subjects:
            # They import at the same time, and run one after the other.
            workers[subject].send(True)
            counts[subject] = _heard(workers[subject], subject)
        turns: dict[str, list[tuple[float, int]]] = {subject: [] for subject in subjects}
        for number in range(rounds):
            first = number % len(subjects)
            for subject in (*subjects[first:], *subjects[:first]):
                time.sleep(REST)
                workers[subject].send(True)
                turns[subject].append(_heard(workers[subject], subject))
    return {subject: (counts[subject], turns[subject]) for subject in subjects}


@contextlib.contextmanager
def _worker(kind: str, subject: str, setting: Setting) -> Iterator[Connection]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, _threads(), kind, subject, setting), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()
        process.join()


def _heard(worker: Connection, subject: str) -> Any:
    try:
        return worker.recv()
    except EOFError:
        raise SystemExit(f"The process that times {subject} ended; what it said is above.") from None


def _serve(connection: Connection, threads: int, kind: str, subject: str, setting: Setting) -> None:
    """Prepare a subject when asked, say its counts, and run it as often as asked."""
    import torch

    torch.set_num_threads(threads)
    # Where another subject failed, the connection ends, and only that one has something to say.
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        connection.recv()
        run, counts = prepared(kind, subject, setting)
        connection.send(counts)
        while connection.recv():
            faults, started = _faults(), time.perf_counter()
            run()
            if setting.device == "cuda":
                torch.cuda.synchronize()
            connection.send((time.perf_counter() - started, _faults() - faults))


def prepared(kind: str, subject: str, setting: Setting) -> tuple[Any, dict[str, Any]]:
    """What runs a subject once, warmed up, and its counts."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    subject, setting = split_dtype(subject, setting)
    images = torch.randn(setting.batch_size, 3, setting.image_size, setting.image_size, device=setting.device)
    module = make(subject, setting)
    trainable = sum(p.numel() for p in module.parameters() if p.requires_grad)
    run = (forward if kind == "forward" else training_step)(module, images, setting.dtype)
    with FlopCounterMode(display=False) as counter:
        run()
    counts = {"flops": counter.get_total_flops(), "trainable": trainable}
    if kind == "training":
        counts["saved_bytes"] = saved_bytes(run, module)
    if setting.compiled and kind == "forward":
        module.compile()
    elif setting.compiled:
        run = training_step(module, images, setting.dtype, compiled=True)
    for _ in range(3):
        run()
    if setting.device == "cuda":
        torch.cuda.synchronize()
    return run, counts


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _faults() -> int:
    """Pages that were faulted in so far; 0 where the system does not say."""
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
