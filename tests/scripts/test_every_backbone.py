"""The command behind `make test-all`: what it finds out, what it writes, and when it fails."""

from __future__ import annotations

import dataclasses
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from scripts.backbones_page import METHODS, TABLE, Row, page, read_table, table
from scripts.every_backbone import examine, main

from scripts import every_backbone
from tests.versions import need
from trimtab.backbone import Backbone
from trimtab.errors import ConfigError
from trimtab.methods.ship import SHIP
from trimtab.methods.vpt import VPT

GOOD, CLOSED, NETWORK = "test_vit", "vit_base_patch16_rpn_224", "test_resnet"


class TestExamine:
    """One name."""

    def test_one_that_works(self) -> None:
        row = examine(GOOD)
        assert (row.outcome, row.reason, row.module, row.kind) == (
            "works",
            "",
            "vision_transformer",
            "VisionTransformer",
        )
        assert (row.prefix_tokens, row.patch, row.pooled) == ("1", "16x16", "class token")
        assert row.steps == dict.fromkeys(METHODS, "works")
        assert row.resized == "works"

    @pytest.mark.parametrize(("name", "word"), [(CLOSED, "ResPostBlock"), (NETWORK, "ResNet")])
    def test_one_that_does_not_open(self, name: str, word: str) -> None:
        row = examine(name)
        assert row.outcome == "refused"
        assert word in row.reason

    def test_one_whose_width_is_fixed(self) -> None:
        need("timm", "1.0.7")
        row = examine("vit_base_mci_224")
        assert (row.outcome, row.patch) == ("works", "16x16")

    def test_one_that_is_too_large(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(every_backbone, "LIMIT", 1000)
        assert examine(GOOD).outcome == "does not fit"

    def test_one_that_timm_cannot_build(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(name: str, **options: Any) -> None:
            raise RuntimeError("no\nweights")

        monkeypatch.setattr(timm, "create_model", broken)
        row = examine(GOOD)
        assert (row.outcome, row.reason) == ("not built", "RuntimeError: no weights")

    @pytest.mark.parametrize("part", ["embed", "pool"])
    def test_other_numbers_than_timms_are_a_failure(self, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
        right = getattr(Backbone, part)

        def wrong(self: Backbone, given: Any, **options: Any) -> Any:
            result = right(self, given, **options)
            return result + 1e-3 if part == "pool" else result.replace(tokens=result.tokens * 1.001)

        monkeypatch.setattr(Backbone, part, wrong)
        row = examine(GOOD)
        assert row.outcome == "fails"
        assert "not close" in row.reason

    def test_a_backbone_that_cannot_be_wrapped_is_a_failure(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Backbone, "_open", lambda self: 1 / 0)
        assert examine(GOOD).reason == "ZeroDivisionError: division by zero"

    def test_a_method_that_breaks_is_a_failure(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(SHIP, "step", lambda *_: [].pop())
        row = examine(GOOD)
        assert row.outcome == "fails"
        assert row.reason == "ship: fails: IndexError: pop from empty list"
        assert row.steps["vpt"] == "works"

    @pytest.mark.parametrize(
        ("loss", "told"),
        [
            (lambda self, stream: next(self.parameters()).sum() * float("nan"), "the loss is nan"),
            (lambda self, stream: (next(self.parameters()) * 0).sqrt().sum(), "the gradient of method.* is not finite"),
        ],
    )
    def test_numbers_that_are_not_finite_are_a_failure(
        self, monkeypatch: pytest.MonkeyPatch, loss: Any, told: str
    ) -> None:
        monkeypatch.setattr(VPT, "loss", loss)
        assert fnmatch(examine(GOOD).steps["vpt"], f"fails: {told}")

    def test_prompts_that_do_nothing_are_a_failure(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(VPT, "step", lambda self, i, backbone, stream: backbone.block(i, stream))
        assert fnmatch(examine(GOOD).steps["vpt"], "fails: method.prompts* has no gradient")

    def test_other_numbers_at_another_size_are_a_failure(self, monkeypatch: pytest.MonkeyPatch) -> None:
        resize = Backbone.set_image_size

        def wrong(self: Backbone, height: int, width: int) -> None:
            resize(self, height, width)
            self._blocks = self._blocks[::-1]

        monkeypatch.setattr(Backbone, "set_image_size", wrong)
        row = examine(GOOD)
        assert row.outcome == "fails"
        assert row.reason.startswith("another image size: fails: AssertionError: Tensor-likes are not close")

    def test_a_method_that_refuses_is_no_failure(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def unsupported(*_: Any) -> list[str]:
            raise ConfigError("It is Tuesday.")

        monkeypatch.setattr(SHIP, "unsupported", unsupported)
        row = examine(GOOD)
        assert row.outcome == "works"
        assert row.steps["ship"] == "refused: It is Tuesday."


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> None:
    """A timm that lists three names."""
    monkeypatch.setattr(timm, "list_models", lambda: [GOOD, CLOSED, NETWORK])


@pytest.mark.usefixtures("three")
class TestCommand:
    """What is written and what the exit says."""

    def run(self, out: Path, *arguments: str) -> int:
        threads = torch.get_num_threads()
        try:
            return main([*arguments, "--out", str(out), "--workers", "1"])
        finally:
            torch.set_num_threads(threads)

    def test_all_names_write_the_table_and_the_page(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.run(tmp_path) == 0
        outcomes = {name: line["outcome"] for name, line in read_table(tmp_path / TABLE).items()}
        assert outcomes == {GOOD: "works", CLOSED: "refused", NETWORK: "refused"}
        assert "timm " + timm.__version__ in (tmp_path / "backbones.md").read_text()
        assert "3/3 names" in capsys.readouterr().err

    def test_some_names_write_nothing(self, tmp_path: Path) -> None:
        assert self.run(tmp_path, "test_*") == 0
        assert list(tmp_path.iterdir()) == []

    def test_a_name_like_none_is_told(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            self.run(tmp_path, "tset_*")
        assert "lists no name like tset_*" in capsys.readouterr().err

    def test_a_name_that_worked_and_does_not_leaves_the_table(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = table([Row(CLOSED, "vision_transformer", "VisionTransformer", "works")])
        (tmp_path / TABLE).write_text(before)
        assert self.run(tmp_path) == 1
        assert (tmp_path / TABLE).read_text() == before
        assert f"{CLOSED} worked when the table was written (outcome); now: refused: its" in capsys.readouterr().err
        assert self.run(tmp_path, "--accept") == 1
        assert self.run(tmp_path) == 0

    def test_a_method_that_worked_and_refuses_is_told(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        steps = dict.fromkeys(METHODS, "works")
        (tmp_path / TABLE).write_text(table([Row(GOOD, "vision_transformer", "", "works", steps=steps)]))
        monkeypatch.setattr(SHIP, "unsupported", lambda *_: ["it is Tuesday"])
        assert self.run(tmp_path, GOOD) == 1
        assert "(ship); now: refused: 'ship' cannot tune 'test_vit': it is Tuesday." in capsys.readouterr().err

    def test_a_name_that_opens_and_fails_fails(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(SHIP, "step", lambda *_: [].pop())
        assert self.run(tmp_path) == 1
        assert "## Opens and fails" in (tmp_path / "backbones.md").read_text()


class TestPage:
    """What readers see."""

    row = Row("vit_tiny", "vision_transformer", "VisionTransformer", "works", "", "1", "16x16", "class token")

    def test_families_are_counted(self) -> None:
        rows = [self.row, dataclasses.replace(self.row, name="vit_b_patch14_dinov2", prefix_tokens="5", patch="14x7")]
        text = page([*rows, dataclasses.replace(self.row, name="vit_s_patch14_dinov2")], "1.2.3")
        assert "| DINOv2 | 2 | `vit_b_patch14_dinov2` | 1, 5 | 16, 14x7 | class token |" in text
        assert "timm 1.2.3 lists 3 names. **3 open and work**, 0 open and fail, 0 do not open." in text

    def test_refusals_of_methods_are_told(self) -> None:
        steps = dict.fromkeys(METHODS, "works")
        rows = [
            dataclasses.replace(self.row, name=name, steps={**steps, "ship": f"refused: {name!r} is too short"})
            for name in ("deit_a", "deit_b")
        ]
        assert "| ship | DeiT | 2 | it is too short |" in page(rows, "1")

    def test_networks_come_in_one_line(self) -> None:
        rows = [
            Row(f"net{k}", module, "Net", "refused", "Net is not") for k, module in enumerate(["vgg", "dla", "vgg"])
        ]
        assert "by timm's module: dla 1, vgg 2." in page(rows, "1")
        assert "net0" not in page(rows, "1")

    def test_a_module_nobody_wrote_about_is_shown_with_the_errors_reason(self) -> None:
        text = page([Row("new_1", "new", "New", "refused", "New is not | open")], "1")
        assert "| new | 1 | `new_1` | New is not / open |" in text

    def test_reasons_of_names_whose_siblings_open_are_the_errors(self) -> None:
        closed = Row("beit_b", "beit", "Beit", "refused", "Beit is not")
        assert "relative positions" in page([closed], "1")
        assert "Beit is not" in page([closed, dataclasses.replace(self.row, name="beit_a", module="beit")], "1")

    def test_a_family_nobody_wrote_about_is_shown_by_its_module(self) -> None:
        assert "| new | 1 | `new_1` |" in page([dataclasses.replace(self.row, name="new_1", module="new")], "1")


def test_in_the_projects_table_nothing_fails() -> None:
    lines = read_table(Path(__file__).parents[2] / "docs" / TABLE)
    assert lines["vit_base_patch16_224"]["outcome"] == "works"
    assert not [name for name, line in lines.items() if line["outcome"] == "fails"]
