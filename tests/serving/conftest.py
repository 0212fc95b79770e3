"""A server of four tasks, for the tests that only ask it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving.served import Server, adapters, running


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The adapters of all tasks: leave them as they are."""
    return adapters(tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[Server]:
    """A server of them."""
    with running([str(home)]) as found:
        yield found
