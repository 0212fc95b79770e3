"""Checksums of saved files, over all that decides a result."""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_KEY = "checksum"
_SIZE = 8
"""Bytes of a safetensors file before its header, which say how long that is; and what it is aligned to."""
_METADATA = "__metadata__"


def json_digest(value: Any) -> str:
    """Compute the SHA-256 of a JSON value, whatever the order of its keys and the whitespace of its file."""
    # Once through JSON, so that keys sort as they do when they are read.
    return hashlib.sha256(_canonical(json.loads(json.dumps(value)))).hexdigest()


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")


# --- an adapter -----------------------------------------------------------------------------------


def checksums(config: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> dict[str, str]:
    """Compute the checksums of an adapter, which its configuration keeps.

    Args:
        config: The adapter's configuration, which has the digest of the tensors.
        preprocessor: The preprocessing.
    """
    return _of_config(config, json_digest(preprocessor))


def is_intact(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is as it was saved; one of an earlier version has no checksum, and is taken as it is."""
    if _KEY not in config:
        return True
    kept = config[_KEY]
    return isinstance(kept, dict) and kept == _of_config(config, kept.get("preprocessor"))


def is_kept_by(config: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> bool:
    """Whether preprocessing is what was saved with a configuration that is intact."""
    return _KEY not in config or bool(config[_KEY]["preprocessor"] == json_digest(preprocessor))


def _of_config(config: Mapping[str, Any], preprocessor: Any) -> dict[str, Any]:
    # Where the backbone's weights lie is left out: they may be moved, and have a fingerprint of their own.
    backbone = {name: value for name, value in config["backbone"].items() if name != "weights"}
    whole = {**config, "backbone": backbone, _KEY: {"preprocessor": preprocessor}}
    return {"config": json_digest(whole), "preprocessor": preprocessor}


# --- a training state -----------------------------------------------------------------------------


def sealed(raw: bytes) -> tuple[bytes, memoryview]:
    """Add a digest over everything in a safetensors file to its metadata.

    Args:
        raw: The file, with metadata.

    Returns:
        The new file's beginning, and the rest, which is not copied.
    """
    header, data = _parts(memoryview(raw))
    header[_METADATA][_KEY] = _of_file(header, data)
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % _SIZE)
    return len(text).to_bytes(_SIZE, "little") + text, data


def seal_of(path: Path) -> dict[str, str] | None:
    """The metadata of a safetensors file whose digest is right; ``None`` if it has no digest.

    Raises:
        ValueError: If the file is broken, or is not what was saved.
        OSError: If it cannot be read.
    """
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as raw,
    ):
        header, data = _parts(raw)
        with data:
            metadata = header.get(_METADATA)
            if not isinstance(metadata, dict) or _KEY not in metadata:
                return None
            kept = metadata.pop(_KEY)
            if kept != _of_file(header, data):
                raise ValueError("its checksum is another")
    return metadata


def _parts(raw: memoryview) -> tuple[dict[str, Any], memoryview]:
    """Header and data of a safetensors file."""
    end = _SIZE + int.from_bytes(raw[:_SIZE], "little")
    if not _SIZE < end <= len(raw):
        raise ValueError("it is truncated")
    header = json.loads(bytes(raw[_SIZE:end]))
    if not isinstance(header, dict):
        raise ValueError("it has no header")  # noqa: TRY004 - of a file, as the others
    return header, raw[end:]


def _of_file(header: Mapping[str, Any], data: memoryview) -> str:
    digest = hashlib.sha256(_canonical(header))
    digest.update(data)
    return digest.hexdigest()
