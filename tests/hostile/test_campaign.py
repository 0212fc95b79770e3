"""Mutated files given to every reader of images, sets, adapters, states and results, and runs that are killed.

The same tests are small in ``make test`` and large in ``make test-nightly``.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests import job
from trimtab.bench.results import Results, repair
from trimtab.data import Preprocess, SegmentationTransform, open_training
from trimtab.data.decode import sniff
from trimtab.data.masks import read_raw
from trimtab.errors import TrimtabError
from trimtab.inference.evaluate import load
from trimtab.training.run_folder import RESUME, RunFolder

SIZES = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "image_size": (16, 16)}
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(OUT) (w) file closefile showpage\n%%EOF\n"
STARTS = {
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.forkpty",
    "pty.spawn",
}


def times(small: int, large: int) -> Any:
    """Run a test with few attempts, and by night with many."""
    return pytest.mark.parametrize("attempts", [small, pytest.param(large, marks=pytest.mark.nightly)])


def check(error: TrimtabError, untouched: bool = True) -> None:
    """A refusal is one line, and leaves a file as it was."""
    assert "\n" not in str(error)
    assert untouched


# --- watching -------------------------------------------------------------------------------------

_watching: list[list[str]] = []
"""Where to note what happens, while somebody watches; a hook cannot be taken away again."""


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watching:
        return
    if event in STARTS:
        _watching[0].append(event)
    elif event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        _watching[0].append(f"open {arguments[0]} {arguments[1]}")


sys.addaudithook(_watch)


@pytest.fixture
def watched() -> Iterator[list[str]]:
    """Programs started and files opened for writing during a test."""
    _watching.append([])
    yield _watching[0]
    _watching.clear()


# --- mutations ------------------------------------------------------------------------------------


def mutated(draw: random.Random, content: bytes, others: list[bytes]) -> bytes:
    """A file with one to four changes: bits, cuts, repeats, parts of other files, extreme numbers."""
    data = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(len(data) + 1)
        # Headers decide more than pixels.
        place = min(place, draw.choice([16, 64, 256, len(data)]))
        kind = draw.randrange(7)
        if kind == 0 and data:
            data[place % len(data)] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del data[place:]
        elif kind == 2:
            del data[place : place + draw.randint(1, 32)]
        elif kind == 3:
            data[place:place] = data[place : place + draw.randint(1, 64)]
        elif kind == 4:
            data[place : place + 4] = draw.choice(
                [b"\xff\xff\xff\xff", bytes(4), b"\x7f\xff\xff\xff", b"\x00\x01\x00\x00"]
            )
        elif kind == 5:
            other = draw.choice(others)
            data[place:] = other[min(place, len(other)) :]
        else:
            other = draw.choice(others)
            data[:place] = other[:place]
    return bytes(data)


def image_files() -> dict[str, bytes]:
    """Small files of many formats and modes."""
    colours = Image.fromarray(np.random.default_rng(0).integers(0, 256, (13, 17, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray((np.arange(13 * 17).reshape(13, 17) * 16).astype(np.uint16))
    wanted: list[tuple[str, Image.Image, dict[str, Any]]] = [
        ("jpg", colours, {"format": "JPEG", "exif": exif}),
        ("png", colours, {"format": "PNG", "exif": exif}),
        ("png", colours.convert("RGBA"), {"format": "PNG"}),
        ("png", colours.convert("P"), {"format": "PNG", "transparency": 3}),
        ("png", deep, {"format": "PNG"}),
        ("png", colours.convert("1"), {"format": "PNG"}),
        *(("tif", colours, {"format": "TIFF", "compression": c}) for c in ("raw", "tiff_lzw", "jpeg", "tiff_deflate")),
        ("tif", deep, {"format": "TIFF"}),
        *(
            (name, colours, {"format": name})
            for name in ("gif", "bmp", "dib", "ppm", "webp", "tga", "pcx", "ico", "sgi")
        ),
        ("jp2", colours, {"format": "JPEG2000"}),
        ("avif", colours, {"format": "AVIF"}),
    ]
    found = {"0.eps": EPS}
    for number, (suffix, image, how) in enumerate(wanted, start=1):
        buffer = io.BytesIO()
        try:
            image.save(buffer, **how)
        except (KeyError, OSError, ValueError):  # a format that this Pillow does not write
            continue
        found[f"{number}.{suffix}"] = buffer.getvalue()
    assert len(found) > 15
    return found


@times(400, 20_000)
@pytest.mark.filterwarnings("ignore")
def test_whatever_is_in_an_image_file_it_is_read_or_refused(
    attempts: int, tmp_path: Path, watched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # What large images cost is another question; here they only would take time.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)
    files, draw = image_files(), random.Random(0)
    contents = list(files.values())
    readers: list[Callable[[Path], Any]] = [
        Preprocess(**SIZES, resize="squash", background=(255, 255, 255), bits=12).read,
        SegmentationTransform(**SIZES, background=(255, 255, 255)).read,
        lambda path: read_raw(path, coloured=draw.random() < 0.5),
        sniff,
    ]
    wrong: list[str] = []
    for number in range(attempts):
        name, content = draw.choice(list(files.items()))
        changed = mutated(draw, content, contents)
        path = tmp_path / (name if draw.random() < 0.7 else f"x.{draw.choice(['jpg', 'png', 'tga', 'tif', ''])}")
        path.write_bytes(changed)
        reader = readers[number % len(readers)]
        del watched[:]
        try:
            reader(path)
        except (TrimtabError, OSError, ValueError) as error:
            if reader == readers[0] and not isinstance(error, TrimtabError):
                wrong.append(f"{path.name}: {type(error).__name__}: {error}")
        except Exception as error:  # noqa: BLE001 - what a reader of masks raises is told by its caller
            if reader != readers[2]:
                wrong.append(f"{path.name}: {type(error).__name__}: {error}")
        wrong += [f"{path.name}: {event}" for event in watched]
        path.unlink(missing_ok=True)
    assert wrong == []
    assert list(tmp_path.iterdir()) == []


@times(30, 3_000)
def test_whatever_is_in_a_list_of_images_it_is_read_or_refused(attempts: int, tmp_path: Path) -> None:
    draw = random.Random(1)
    images = sorted((job.data() / "train").rglob("*.png"))
    table = io.StringIO()
    csv.writer(table).writerows([("path", "label", "split"), *((str(p), p.parent.name, "train") for p in images)])
    content = table.getvalue().encode()
    strange = [
        b'"',
        b"\n",
        b",",
        b"\0",
        "é".encode("utf-16"),
        b"label",
        b"/dev/zero",
        b"..",
        b"\xff\xfe",
        b"train",
        b"1,1",
    ]
    path = tmp_path / "list.csv"
    for _ in range(attempts):
        changed = mutated(draw, content, [content, *strange])
        place = draw.randrange(len(changed) + 1)
        path.write_bytes(changed[:place] + draw.choice(strange) + changed[place:])
        try:
            open_training(path)
        except TrimtabError as error:
            check(error)


# --- what trimtab wrote ---------------------------------------------------------------------------


@times(30, 3_000)
@pytest.mark.filterwarnings("ignore")
def test_a_changed_adapter_is_refused_or_predicts_the_same(attempts: int, tmp_path: Path) -> None:
    draw = random.Random(2)
    whole = job.copy_of(job.finished("vpt"), tmp_path / "whole")
    image = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = load(whole).logits(image)  # type: ignore[union-attr]
    contents = [file.read_bytes() for file in sorted(whole.iterdir())]
    for _ in range(attempts):
        changed = Path(shutil.copytree(whole, tmp_path / "changed"))
        file = draw.choice(sorted(changed.iterdir()))
        file.write_bytes(mutated(draw, file.read_bytes(), contents))
        try:
            predictor = load(changed)
        except TrimtabError as error:
            check(error)
        else:
            assert torch.equal(predictor.logits(image), expected), file.name  # type: ignore[union-attr]
        shutil.rmtree(changed)


@times(30, 3_000)
def test_a_changed_state_is_refused_or_the_same(attempts: int, tmp_path: Path) -> None:
    draw = random.Random(3)
    folder = tmp_path / "run"
    stopped = job.Running(job.words("vpt", folder, epochs=50))
    while not (folder / RESUME).exists():
        time.sleep(0.02)
    stopped.kill()
    stopped.wait()
    raw = (folder / RESUME).read_bytes()
    for _ in range(attempts):
        changed = mutated(draw, raw, [raw, EPS])
        (folder / RESUME).write_bytes(changed)
        try:
            RunFolder(folder, resume=True).load_state()
        except TrimtabError as error:
            check(error)
        else:
            assert changed == raw


@times(200, 10_000)
def test_changed_results_are_read_or_refused_and_never_cut_but_at_a_half_line(attempts: int, tmp_path: Path) -> None:
    draw = random.Random(4)
    lines = [
        {"kind": "setup", "time": "now", "setup": {"suite": "s", "fingerprint": "f"}},
        {
            "kind": "task",
            "time": "now",
            "task": "t",
            "suite": "s",
            "group": "g",
            "variant": "own",
            "splits": {},
            "data": "d",
        },
        {"kind": "choice", "time": "now", "row": "r", "task": "t", "settings": [], "tried": [], "chosen": None},
    ]
    raw = "".join(json.dumps(line) + "\n" for line in lines).encode()
    path = tmp_path / "results.jsonl"
    for _ in range(attempts):
        changed = mutated(draw, raw, [raw, b"{}\n", b"[]\n", b"null\n", b'{"kind": "trial"}\n', EPS])
        path.write_bytes(changed)
        try:
            Results(path)
            repair(path)
        except TrimtabError as error:
            check(error)
            untouched = path.read_bytes() == changed
            check(error, untouched)
        else:
            after = path.read_bytes()
            kept = changed[: changed.rfind(b"\n") + 1]
            assert after in (changed, changed + b"\n", kept)


# --- kills ----------------------------------------------------------------------------------------


@times(2, 40)
def test_of_runs_that_fight_over_a_folder_and_are_killed_one_result_remains(attempts: int, tmp_path: Path) -> None:
    draw = random.Random(5)
    undisturbed = job.bits(job.finished("vpt"))
    for number in range(attempts):
        out = tmp_path / f"run{number}"
        for attempt in itertools.count():
            runs = [job.Running(job.words("vpt", out, "--resume")) for _ in range(2)]
            if attempt < 3:
                time.sleep(draw.random() * 1.5)
                for run in runs:
                    run.kill()
            ended = [run.wait() for run in runs]
            assert all("Traceback" not in end.err and "bug" not in end.err for end in ended)
            if any(end.code == 0 for end in ended):
                break
            assert attempt < 10
        assert job.bits(out) == undisturbed
        assert {path.name for path in out.iterdir()} == {path.name for path in job.finished("vpt").iterdir()}
