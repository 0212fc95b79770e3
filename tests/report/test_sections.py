"""The parts of a report as values."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests import job
from tests.report import made
from trimtab.methods.base import PromptSet
from trimtab.progress import Progress
from trimtab.report.attention import Attention
from trimtab.report.drawing import looks
from trimtab.report.findings import Asked, Findings, find
from trimtab.report.runs import Run, read_runs
from trimtab.report.sections import Section, _Layout, accuracy, duration, error_of, section, size


@pytest.fixture(autouse=True)
def _looks() -> Iterator[None]:
    with looks():
        yield


def found(run: Run) -> Findings:
    return find(run, Asked(), mistakes=4, examples=3, progress=Progress())


def shown(method: str) -> Section:
    run = made.run(method)
    return section(1, run, found(run), [])


def test_what_prompts_have_pictures_of() -> None:
    linear, vpt, ship = shown("linear"), shown("vpt"), shown("ship")
    assert (linear.affinity, linear.entries, linear.shares) == (None, None, None)
    assert vpt.affinity is None
    assert vpt.entries is not None
    assert vpt.shares is not None
    assert ship.affinity is not None
    assert [len(one.examples[0].pictures) for one in (linear, vpt, ship)] == [2, 4, 4]
    assert len(vpt.mistakes) <= 4
    assert len(vpt.examples) == 3


def test_without_findings_the_rest_is_there() -> None:
    part = section(2, made.run("ship"), None, ["No images."])
    assert part.id == "run-2"
    assert part.notes == ("No images.",)
    assert part.affinity is not None
    assert (part.measured, part.confusion, part.examples) == ("", None, ())


def test_the_configuration_and_the_command_are_the_runs() -> None:
    part = section(1, *read_runs([made.hostile()]), None, [])
    assert part.command == 'trimtab fit "</pre><script>alert(3)</script>"'
    groups = {title: dict(values) for title, values in part.config}
    assert groups["method"]["num_prompts"] == "3"
    assert groups["training"]["epochs"] == "2"
    assert groups["preprocessing"]["image_size"] == "32, 32"
    assert section(1, made.run(), None, []).command == "Trained from Python."


def test_many_classes_are_told_as_pairs() -> None:
    (run,) = read_runs([made.many()])
    part = section(1, run, found(run), [])
    assert part.confusion is None
    assert len(part.pairs) == 10
    counts = [count for _, _, count, _ in part.pairs]
    assert counts == sorted(counts, reverse=True)
    assert all(was != said and of == "of 1" for was, said, _, of in part.pairs)


def test_pairs_are_those_of_the_mistakes() -> None:
    findings = found(made.run())
    part = section(1, made.run(), findings, [])
    assert sum(count for _, _, count, _ in part.pairs) == findings.wrong
    for was, said, count, _ in part.pairs:
        row, column = job.CLASSES.index(was), job.CLASSES.index(said)
        assert count == int(findings.confusion[row, column])


def attention(*counts: int) -> Attention:
    """Three images, 2x2 patches; the j-th prompt of a block gets j + 1 hundredths."""
    rows = [torch.arange(1, count + 1) / 100 for count in counts]
    return Attention(
        torch.full((3, 2, 2), 0.25),
        tuple(row.expand(3, -1) for row in rows),
        tuple(row.expand(3, 2, 2, -1).clone() for row in rows),
    )


def test_shares_are_the_sums_of_a_sets_prompts() -> None:
    sets = [PromptSet("first", 2, (0,)), PromptSet("both", 1, (0, 1))]
    names, rows = zip(*_Layout(sets, attention(3, 1)).shares(), strict=True)
    assert names == ("first", "both", "all prompts")
    assert rows[0] == pytest.approx([0.03, None])
    assert rows[1] == pytest.approx([0.03, 0.01])
    assert rows[2] == pytest.approx([0.06, 0.01])


def test_maps_are_of_the_prompts_that_tell_patches_apart() -> None:
    sets = [PromptSet("first", 2, (0,)), PromptSet("both", 1, (0, 1))]
    seen = attention(3, 1)
    seen.patches[0][:, 0, 0, 1] = 0.9
    seen.patches[1][:, 1, 1, 0] = 0.5
    assert _Layout(sets, seen).maps() == [("first, prompt 2", 0, 1), ("both, prompt 1", 1, 0)]


def test_one_set_has_maps_of_two_blocks() -> None:
    seen = attention(2, 2)
    seen.patches[0][:, 0, 0, 1] = 0.9
    assert [(name, i) for name, i, _ in _Layout([PromptSet("p", 2, (0, 1))], seen).maps()] == [
        ("prompt 2", 0),
        ("prompt 1", 1),
    ]


def test_prompts_that_no_method_tells_of_are_shown_all_the_same() -> None:
    layout = _Layout([PromptSet("wrong", 5, (0,))], attention(0, 2, 2))
    assert [(one.name, one.enters) for one in layout.sets] == [("2 prompts", (1, 2))]
    assert layout.shares()[0][1] == pytest.approx([None, 0.03, 0.03])


def test_numbers_in_words() -> None:
    assert accuracy(0.9, 100) == "90.0 % ± 3.0"
    assert accuracy(None, 100) == "not measured"
    assert error_of(0.5, 100) == pytest.approx(0.05)
    assert (duration(5.04), duration(75), duration(None)) == ("5.0 s", "1:15", "?")
    assert (size(1500), size(2_500_000), size(None)) == ("2 kB", "2.5 MB", "?")
