"""Small fakes of what benchmarks are made from: tables, images, and each layout they come in."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet as arrow_parquet

from trimtab.bench import task_table
from trimtab.bench.task_table import BenchmarkTask

CLASSES = 3
VTAB = {"train800": 5, "val200": 3, "train800val200": 8, "test": 4}
FGVC = {"train": 4, "val": 3, "test": 5}
SCENES = {"train": 3, "val": 2}
NOAH = {"train": "train800", "val": "val200", "test": "test"}


def small(task: BenchmarkTask) -> BenchmarkTask:
    """A task as it is, but for a few images and classes; checksums of archives are left out, as they cannot match."""
    sizes = {"vtab1k": VTAB, "fgvc": FGVC, "ade20k": SCENES}[task.suite]
    archive = task.archive and dataclasses.replace(task.archive, checksum="")
    return dataclasses.replace(task, classes=CLASSES, sizes=sizes, archive=archive)


def small_tasks() -> dict[str, dict[str, BenchmarkTask]]:
    """The whole table, small."""
    return {suite: {name: small(task) for name, task in tasks.items()} for suite, tasks in task_table.TASKS.items()}


def picture(seed: int, kind: str = "PNG", size: int = 8) -> bytes:
    """An image file of noise, another for each seed."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def mask(seed: int, size: int = 8) -> bytes:
    """A PNG of numbers from 0 to the number of classes."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, CLASSES + 1, (size, size), dtype=np.uint8)).save(
        buffer, "PNG"
    )
    return buffer.getvalue()


def seed_of(split: str, place: int) -> int:
    """Each image of a task is another one."""
    return 1000 * ["train", "val", "test"].index(split) + place


def parquet(
    split: str, places: range, kind: str = "PNG", names: tuple[str, ...] | None = ("ant", "bee", "cow")
) -> bytes:
    """A file of the hub as `datasets` writes it: bytes and path of an image, a label, and the names in the metadata."""
    image = [{"bytes": picture(seed_of(split, place), kind), "path": None} for place in places]
    table = pa.table(
        {
            "image": pa.array(image, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            "label": pa.array([place % CLASSES for place in places], pa.int64()),
        }
    )
    label = {"names": list(names), "_type": "ClassLabel"} if names else {"dtype": "int64", "_type": "Value"}
    features = {"image": {"_type": "Image"}, "label": label}
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    buffer = io.BytesIO()
    arrow_parquet.write_table(table, buffer, row_group_size=2)
    return buffer.getvalue()


def columns(**values: list[object]) -> bytes:
    """A parquet file of columns."""
    buffer = io.BytesIO()
    arrow_parquet.write_table(pa.table(values), buffer)
    return buffer.getvalue()


def repository(
    kind: str = "PNG", names: tuple[str, ...] | None = ("ant", "bee", "cow"), sizes: Mapping[str, int] = VTAB
) -> dict[str, bytes]:
    """The files of a data set: also the splits that are not wanted, and training images in two parts."""
    half = sizes["train800"] // 2
    parts = {
        f"data/train800-0000{k}-of-00002.parquet": parquet("train", places, kind, names)
        for k, places in enumerate((range(half), range(half, sizes["train800"])))
    }
    return {
        "README.md": b"what it is",
        **parts,
        "data/val200-00000-of-00001.parquet": parquet("val", range(sizes["val200"]), kind, names),
        "data/test-00000-of-00001.parquet": parquet("test", range(sizes["test"]), kind, names),
        "data/train800val200-00000-of-00001.parquet": b"not wanted",
        "data/trainval-00000-of-00001.parquet": b"not wanted",
    }  # fmt: skip


def noah_tree(
    home: Path,
    task: BenchmarkTask,
    kind: str = "JPEG",
    folder: str = "",
    images: Mapping[str, list[bytes]] | None = None,
) -> Path:
    """A task of a tree as NOAH's converter writes it, and its folder."""
    suffix, own = {"JPEG": ".jpg", "PNG": ".png"}[kind], home / (folder or task.folders[0])
    for split, name in NOAH.items():
        (own / "images" / name).mkdir(parents=True)
        lines = []
        for place in range(task.sizes[name]):
            path = f"images/{name}/{place:06}{suffix}"
            given = images[split][place] if images else picture(seed_of(split, place), kind)
            (own / path).write_bytes(given)
            lines.append(f"{path} {place % task.classes}")
        (own / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return own


def tarred(files: Mapping[str, bytes], mode: str = "w:gz") -> bytes:
    """A tar file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def zipped(files: Mapping[str, bytes]) -> bytes:
    """A zip file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def lists(
    labels: tuple[int | str, ...] = (1, 2, 12), paths: str = "{label}.kind/{split}_{place}.jpg"
) -> dict[str, bytes]:
    """The three split files of a task of FGVC."""
    return {
        f"{split}.json": json.dumps(
            {paths.format(label=labels[k % 3], split=split, place=k): labels[k % 3] for k in range(FGVC[split])}
        ).encode()
        for split in ("train", "val", "test")
    }


def listed_images(own: Mapping[str, bytes], inside: str) -> dict[str, bytes]:
    """The archive that split files belong to: their images, others, and what a system added."""
    paths = [path for content in own.values() for path in json.loads(content)]
    images = {f"{inside}/{path}".strip("/"): picture(seed, "JPEG") for seed, path in enumerate(paths)}
    strange = {"__MACOSX/._a.jpg": b"x", f"{inside}/.DS_Store".strip("/"): b"x", "README": b"what it is"}
    return {**strange, **images, f"{inside}/unlisted.jpg".strip("/"): picture(99, "JPEG")}


def scene_archive(top: str = "ADEChallengeData2016/") -> dict[str, bytes]:
    """ADE20K's archive: images, masks, and a list with two classes of one first name."""
    files = {f"{top}objectInfo150.txt": b"Idx\tRatio\tTrain\tVal\tName\n1\t.1\t1\t1\twall\n2\t.1\t1\t1\tdoor, gate\n"
             b"3\t.1\t1\t1\tdoor, hatch\n"}  # fmt: skip
    for split, folder in (("train", "training"), ("val", "validation")):
        for place in range(SCENES[split]):
            name = f"ADE_{folder}_{place + 1:08}"
            files[f"{top}images/{folder}/{name}.jpg"] = picture(seed_of(split, place), "JPEG")
            files[f"{top}annotations/{folder}/{name}.png"] = mask(seed_of(split, place))
    return files
