"""Everything trimtab raises on purpose.

    TrimtabError
      ConfigError       an option or a combination of options that cannot work
      BackboneError     a backbone that is unknown, cannot be opened, or does not take its weights
      DataError         images, labels or folders that cannot be used
      CheckpointError   a saved adapter or resume state that is broken, foreign or in the way
      TrainingError     training that cannot go on (a loss that is not finite, a full disk)

Every message says what is wrong (with the values), why, and the way out, in one line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TrimtabError(Exception):
    """Base of all errors a user can act on; the command line prints its text and exits with 1."""


class ConfigError(TrimtabError, ValueError):
    """An option, or a combination of options, that cannot work."""


class BackboneError(TrimtabError):
    """A backbone that is unknown, cannot be opened, or does not take its weights."""


class DataError(TrimtabError):
    """Images, labels or folders that cannot be used."""


class CheckpointError(TrimtabError):
    """A saved adapter or resume state that is broken, foreign or in the way."""


class TrainingError(TrimtabError):
    """Training that cannot go on."""


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """A hint ``" Did you mean 'a' or 'b'?"`` with the known names closest to ``name``; may be empty."""
    matches = difflib.get_close_matches(name, list(known), n=count, cutoff=0.6)
    return f" Did you mean {' or '.join(repr(match) for match in matches)}?" if matches else ""
