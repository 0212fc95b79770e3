"""PNG and TIFF files with 16 bits a value in any colour mode, which Pillow reads and does not write."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy.typing as npt

from trimtab.progress import Progress

Array = npt.NDArray[Any]


def png(path: Path, values: Array, transparent: tuple[int, ...] = ()) -> Path:
    """Write (h, w) or (h, w, c) of 0 to 65535 as grey, grey with alpha, colour, or colour with alpha."""
    height, width = values.shape[:2]
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[1 if values.ndim == 2 else values.shape[2]]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))]
    chunks += [(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent))] if transparent else []
    chunks += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
            for name, data in chunks
        )
    )
    return path


def tiff(path: Path, values: Array, *, order: str = "<", planes: bool = False, packed: bool = False) -> Path:
    """Write (h, w, 3) of 0 to 65535 as one strip or, with ``planes``, as three."""
    height, width, channels = values.shape
    parts = [values[..., c] for c in range(channels)] if planes else [values]
    strips = [part.astype(f"{order}u2").tobytes() for part in parts]
    strips = [zlib.compress(strip) for strip in strips] if packed else strips
    entries = [(256, 4, [width]), (257, 4, [height]), (258, 3, [16] * channels), (259, 3, [8 if packed else 1])]
    entries += [(262, 3, [2]), (273, 4, [0] * len(strips)), (277, 3, [channels]), (278, 4, [height])]
    entries += [(279, 4, [len(strip) for strip in strips]), (284, 3, [2 if planes else 1])]
    begin = 8 + 2 + 12 * len(entries) + 4
    extra = sum(len(numbers) * {3: 2, 4: 4}[kind] for _, kind, numbers in entries)
    offsets = [begin + extra + sum(map(len, strips[:k])) for k in range(len(strips))]
    directory, beyond = b"", b""
    for tag, kind, given in entries:
        numbers = offsets if tag == 273 else given
        content = struct.pack(f"{order}{len(numbers)}{'H' if kind == 3 else 'I'}", *numbers)
        if len(content) > 4:
            place, beyond = struct.pack(f"{order}I", begin + len(beyond)), beyond + content
        else:
            place = content.ljust(4, b"\0")
        directory += struct.pack(f"{order}HHI", tag, kind, len(numbers)) + place
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    head += struct.pack(f"{order}H", len(entries)) + directory + bytes(4)
    path.write_bytes((head + beyond).ljust(begin + extra, b"\0") + b"".join(strips))
    return path


class Told(Progress):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)
