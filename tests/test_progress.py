"""What a long job tells, on a terminal and elsewhere."""

from __future__ import annotations

import io
import threading

import pytest

from trimtab import progress
from trimtab.progress import Progress, TerminalProgress, clock, default_progress, main_process


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


def test_the_base_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    listener = Progress()
    listener.say("hello")
    with listener.stage("Training", 3, "images") as advance:
        advance()
        advance(2, "loss 1.0")
    assert capfd.readouterr() == ("", "")


def test_lines_come_every_ten_seconds_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clock_, out = Clock(monkeypatch), io.StringIO()
    with TerminalProgress(out).stage("Training", 100, "images") as advance:
        advance(10)
        clock_.now += 10
        advance(10, "loss 2.00")
        clock_.now += 9
        advance(20)
        clock_.now += 1
        advance(10)
        clock_.now += 70
        advance(50, "loss 1.00")
    assert out.getvalue().splitlines() == [
        "Training: 20/100 images, 0:10 elapsed, 0:40 left, loss 2.00",
        "Training: 50/100 images, 0:20 elapsed, 0:20 left, loss 2.00",
        "Training: 100/100 images, 1:30 elapsed, loss 1.00",
    ]


def test_time_left_ignores_what_was_done_before(monkeypatch: pytest.MonkeyPatch) -> None:
    clock_, out = Clock(monkeypatch), io.StringIO()
    with TerminalProgress(out).stage("Training", 100, "images", done=80) as advance:
        clock_.now += 10
        advance(10)
    assert "90/100 images, 0:10 elapsed, 0:10 left" in out.getvalue()


def test_an_interrupted_stage_tells_how_far_it_came() -> None:
    out = io.StringIO()

    def work() -> None:
        with TerminalProgress(out).stage("Training", 3, "images") as advance:
            advance()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert out.getvalue().startswith("Training: 1/3 images")


def test_threads_lose_no_counts() -> None:
    out = io.StringIO()
    with TerminalProgress(out).stage("Reading", 4000, "images") as advance:

        def work() -> None:
            for _ in range(1000):
                advance()

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert "4000/4000 images" in out.getvalue()


def test_bars_on_a_terminal_show_text_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    out = Terminal()
    listener = TerminalProgress(out)
    with listener.stage("Epochs [of all]", 2, "epochs") as epoch:
        with listener.stage("Images", 0, "images"):
            listener.say("a [bold]sentence[/bold]")
        epoch(2, "accuracy [0.5]")
    listener.say("after")
    text = out.getvalue()
    assert "Epochs [of all]" in text
    assert "2/2 epochs" in text
    assert "accuracy [0.5]" in text
    assert "a [bold]sentence[/bold]" in text
    assert text.endswith("after\n")


def test_two_runs_of_one_listener(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    listener = TerminalProgress(out)
    for title in ("First", "Second"):
        with listener.stage(title, 1, "images") as advance:
            advance()
    assert out.getvalue().index("First") < out.getvalue().index("Second")


@pytest.mark.parametrize(
    ("variables", "speaks"),
    [
        ({}, True),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"RANK": "1", "LOCAL_RANK": "1"}, False),
        ({"RANK": "8", "LOCAL_RANK": "0"}, False),
        ({"LOCAL_RANK": "1"}, False),
    ],
)
def test_only_the_main_process_speaks(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], speaks: bool) -> None:
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main_process() is speaks
    assert isinstance(default_progress(), TerminalProgress) is speaks


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3661, "1:01:01")])
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text
