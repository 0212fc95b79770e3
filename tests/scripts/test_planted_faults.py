"""The planted faults keep up with the package; whether tests find them takes ``make test-faults``."""

from __future__ import annotations

import ast

import pytest
from scripts.planted_faults import FAULTS, PACKAGE, Fault, Result

from scripts import planted_faults


def test_every_text_is_in_its_file_exactly_once() -> None:
    assert {fault.id: fault.matches() for fault in FAULTS if fault.matches() != 1} == {}


def test_every_fault_is_a_program_still() -> None:
    for fault in FAULTS:
        source = (PACKAGE / fault.file).read_text(encoding="utf-8")
        assert ast.dump(ast.parse(source)) != ast.dump(ast.parse(source.replace(fault.old, fault.new))), fault.id


def test_names_are_different() -> None:
    assert len({fault.id for fault in FAULTS}) == len(FAULTS)


@pytest.mark.parametrize(("found", "code"), [(True, 0), (False, 1)])
def test_what_is_not_found_fails(found: bool, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planted_faults, "try_fault", lambda fault, first: Result(fault.id, found, None, 0.0))
    assert planted_faults.main(["--only", FAULTS[0].id]) == code


def test_a_text_that_is_gone_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(planted_faults, "FAULTS", (Fault("old", "noise.py", "no such text", "", "nothing"),))
    assert planted_faults.main([]) == 1
    assert "old: its text is not in its file exactly once" in capsys.readouterr().out
