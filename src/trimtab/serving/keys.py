"""Keys: who may ask, and who may change what is served."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

from trimtab.errors import ConfigError

_SHORTEST = 8


class Keys:
    """Keys of which a request must have one.

    Args:
        keys: All of them.
    """

    def __init__(self, keys: list[str]) -> None:
        self._digests = [_digest(key.encode()) for key in keys]

    @classmethod
    def read(cls, path: str | Path) -> Keys:
        """Read a file of keys, one a line; empty lines and those that begin with # are left out.

        Raises:
            ConfigError: If it cannot be read, has no key, or one that is easily guessed by its length.
        """
        try:
            lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no text"
            raise ConfigError(f"The file of keys {str(path)!r} cannot be read: {reason}; name another.") from error
        keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not keys:
            raise ConfigError(
                f"The file of keys {str(path)!r} has none; write at least one, each on a line of its own and of "
                f"{_SHORTEST} characters or more."
            )
        if (shortest := min(map(len, keys))) < _SHORTEST:
            raise ConfigError(
                f"The file of keys {str(path)!r} has a key of {shortest} characters, which is easily guessed; use at "
                f"least {_SHORTEST}."
            )
        return cls(keys)

    def allow(self, authorization: str | None) -> bool:
        """Whether an ``Authorization: Bearer`` header has one of the keys; how long this takes tells none of them."""
        scheme, _, token = (authorization or "").partition(" ")
        # A header is bytes that are shown as Latin-1, whose white space may be a half of a letter.
        asked = _digest(token.strip(" \t").encode("latin-1", "replace"))
        found = [hmac.compare_digest(asked, known) for known in self._digests]
        return scheme.lower() == "bearer" and any(found)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
