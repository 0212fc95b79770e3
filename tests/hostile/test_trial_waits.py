"""A trial of a benchmark waits for the worker of a killed run that still writes its folder."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from trimtab.storage.locks import wait_until_free

_HOLD = """
import sys, time
from pathlib import Path
from trimtab.storage.locks import own

with own(Path(sys.argv[1]), way_out="wait"):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def _holder(folder: Path, seconds: float) -> subprocess.Popen[str]:
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(folder), str(seconds)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def test_it_waits_until_the_folder_is_free(tmp_path: Path) -> None:
    with _holder(tmp_path / "trial", 0.5) as holder:
        wait_until_free(tmp_path / "trial", 60)
        assert holder.wait(60) == 0


def test_it_does_not_wait_for_ever(tmp_path: Path) -> None:
    with _holder(tmp_path / "trial", 60) as holder:
        started = time.monotonic()
        wait_until_free(tmp_path / "trial", 0.2)
        assert 0.2 <= time.monotonic() - started < 30
        holder.kill()


def test_a_folder_that_is_not_there_is_free(tmp_path: Path) -> None:
    started = time.monotonic()
    wait_until_free(tmp_path / "trial", 60)
    assert time.monotonic() - started < 30
