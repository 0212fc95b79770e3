"""The tiers of memory, without a GPU: host memory stands in for a device's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.families import images_for, shared_backbone
from tests.serving import made
from trimtab.serving.bank import Bank
from trimtab.serving.store import Tier

FAMILY = "class-token"


@pytest.fixture
def bank(tmp_path: Path) -> Bank:
    """Two of four adapters fit the device, three fit the host."""
    backbone = shared_backbone(FAMILY)
    folders = [made.save(made.classifier("vpt", "deep", FAMILY, seed=k), tmp_path / str(k)) for k in range(4)]
    size = Bank(backbone).add("x", folders[0]).num_bytes
    bank = Bank(backbone, max_bytes=2 * size)
    bank._store.host = Tier(3 * size)
    for k, folder in enumerate(folders):
        bank.add(str(k), folder)
    return bank


def test_what_left_the_device_comes_back_from_host_memory(bank: Bank) -> None:
    size, images = bank.task("0").num_bytes, images_for(shared_backbone(FAMILY), count=1)
    assert (bank.stats().num_bytes, bank.stats().host_bytes) == (2 * size, 3 * size)
    bank.predict(images, ["1"])
    assert bank.stats().loads == 0
    # "0" was the least recently used on the host, too.
    bank.predict(images, ["0"])
    assert bank.stats().loads == 1
    assert (bank.stats().num_bytes, bank.stats().host_bytes) == (2 * size, 3 * size)


def test_a_copy_answers_as_what_was_copied(bank: Bank) -> None:
    images = images_for(shared_backbone(FAMILY), count=2)
    names = ["3", "1"]
    before = bank.predict(images, names)
    bank.predict(images, ["2", "0"])
    after = bank.predict(images, names)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_what_is_removed_leaves_the_host(bank: Bank) -> None:
    for name in bank.names:
        bank.remove(name)
    assert (bank.stats().host_bytes, bank.stats().num_bytes, len(bank)) == (0, 0, 0)
