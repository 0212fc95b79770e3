"""A whole benchmark with real trainings of a tiny backbone, in this process; and what the command line is told."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest

from tests.bench.pretended import Inline, go, make_suite
from tests.job import BACKBONE, data, weights
from trimtab.bench import benchmark
from trimtab.bench.benchmark import bench, read_row
from trimtab.bench.pools import Processes
from trimtab.bench.report import bench_report
from trimtab.bench.results import Results
from trimtab.errors import ConfigError, DataError


class Here(Inline):
    """Works in this process, really."""

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(work(*arguments))
        return future


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    file = tmp_path / "colours.csv"
    file.write_text(f"task,data\ncolours,{data()}\n")
    return file


def options(**more: Any) -> dict[str, Any]:
    small = {"backbone": BACKBONE, "weights": str(weights()), "image_size": "32", "epochs": 2, "batch_size": 7}
    return small | {"seeds": 2, "trials": 2, "device": "cpu"} | more


def test_a_whole_benchmark_with_its_report(suite: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome = bench(str(suite), methods=["linear", "vpt:num_prompts=3"], out=out, pool=Here(), **options())
    assert outcome.broken == ()
    results = Results(out / "results.jsonl")
    tests = results.find("test")
    assert [(line["row"], line["seed"]) for line in tests] == [
        ("linear", 0),
        ("linear", 1),
        ("vpt:num_prompts=3", 0),
        ("vpt:num_prompts=3", 1),
    ]
    assert all(line["test_images"] == 15 for line in tests)
    final = next(line for line in results.find("trial") if line["part"] == "final" and line["method"] == "vpt")
    # 18 training and 9 validation images; nothing is left to validate on.
    assert final["val_accuracy"] is None
    assert final["method_config"]["num_prompts"] == 3
    assert {"torch", "timm", "trimtab"} == set(final["versions"])
    assert final["computer"]["python"]
    report = bench_report([out])
    assert "vpt:num_prompts=3 [strict]" in report.text
    assert "All rows: image_size 32, epochs 2, batch_size 7." in report.text
    assert (report.out / "report.html").is_file()
    mean = sum(line["test_accuracy"] for line in tests[:2]) / 2
    assert report.summary["rows"][0]["mean_of_tasks"]["mean"] == pytest.approx(mean)


def test_paper_ship_reads_the_test_images_as_it_trains(suite: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    methods = ["ship:hierarchy=0,2,prototypes=5,attribute_length=3,matching_tokens=4,shared_length=2"]
    small = options(protocol="paper-ship", seeds=1, trials=1, epochs=3)
    assert bench(str(suite), methods=methods, out=out, pool=Here(), **small).broken == ()
    (line,) = Results(out / "results.jsonl").find("test")
    (trial,) = Results(out / "results.jsonl").find("trial")
    assert [epoch for epoch, _ in trial["test_history"]] == [1, 3]
    assert line["test_accuracy"] == max(accuracy for _, accuracy in trial["test_history"])
    assert "CHOSEN ON THE TEST IMAGES" in bench_report([out]).text


def test_trials_that_are_behind_are_stopped(suite: Path, tmp_path: Path) -> None:
    from trimtab.bench.search import is_behind
    from trimtab.bench.trial import TrialFiles, WorkerSettings, run_trial

    curves = [[0.1, 0.5, 0.5], [0.2, 0.6, 0.4], [0.3, 0.7, 0.7], [0.3, 0.8, 0.9]]
    assert not is_behind([0.0, 0.0], curves[:3], 3)
    # In the first third of the epochs nobody is; then the best so far counts, of all: the median is 0.65.
    assert not is_behind([0.0], curves, 3)
    assert is_behind([0.64, 0.1], curves, 3)
    assert not is_behind([0.66, 0.1], curves, 3)
    assert is_behind([0.1, 0.1, 0.64], curves, 3)
    out = tmp_path / "out"
    given: list[Any] = []

    class Keeping(Here):
        def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
            given.append(arguments)
            return super().submit(work, *arguments)

    bench(str(suite), methods=["linear"], out=out, pool=Keeping(), **options(seeds=1))
    trial, place = given[0]
    record = run_trial(
        trial, TrialFiles(place.training, tmp_path / "again", WorkerSettings(str(weights()), "cpu"), ((1.1, 1.1),) * 4)
    )
    assert record["pruned"]
    assert len(record["val_history"]) == 1
    assert not (tmp_path / "again").exists()


# --- workers ----------------------------------------------------------------------------------------------


def killed_once(marker: Path) -> str:
    """Dies of a signal the first time, as of a lack of memory."""
    if marker.exists():
        return "done"
    marker.touch()
    os.kill(os.getpid(), signal.SIGKILL)
    return "not reached"


@pytest.mark.nightly
def test_processes_are_renewed_after_one_was_killed(tmp_path: Path) -> None:
    pool = Processes(1)
    try:
        with pytest.raises(BrokenProcessPool):
            pool.submit(killed_once, tmp_path / "marker").result(timeout=600)
        pool.renew()
        assert pool.submit(killed_once, tmp_path / "marker").result(timeout=600) == "done"
    finally:
        pool.close()


# --- what cannot work is told in one line -----------------------------------------------------------------


def test_rows_are_read(tmp_path: Path) -> None:
    row = read_row("vpt:deep=false,num-prompts=20")
    assert (row.method, dict(row.options)) == ("vpt", {"deep": False, "num_prompts": 20})
    assert dict(read_row("ship:hierarchy=0,2,4,threshold=0.9").options) == {"hierarchy": (0, 2, 4), "threshold": 0.9}
    short = read_row("linear:epochs=50")
    assert (dict(short.options), dict(short.fit)) == ({}, {"epochs": 50})
    for text, message in {
        "vtp": "no method 'vtp'. Did you mean 'vpt'",
        "vpt:deeep=1": "vpt has no option 'deeep'",
        "vpt:deep=perhaps": "neither true nor false",
        "vpt:num_prompts=few": "'few' is not a whole number",
    }.items():
        with pytest.raises(ConfigError, match=message):
            read_row(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "lenient"}, "protocol is 'lenient'"),
        ({"seeds": 0}, "seeds is 0"),
        ({"val_fraction": 0.0}, "something to choose on"),
        ({"sed": 3}, "bench has no option 'sed'"),
        ({"tasks": ["mops"]}, "has no task 'mops'. Did you mean 'maps'"),
        ({"methods": ("linear", "linear")}, "named twice"),
    ],
)
def test_wrong_options(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    suite = make_suite(tmp_path, {"maps": "drawn"})
    with pytest.raises(ConfigError, match=message):
        go(suite, tmp_path / "out", Inline(), *options.pop("methods", ()), **options)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (None, ConfigError, "There is no suite"),
        ("name,path\n", DataError, "needs the columns task,data"),
        ("task,data\nx,\n", DataError, "row 2: task or data is blank"),
        ("task,data\nx,maps\nx,maps\n", DataError, "names the task 'x' twice"),
        ("task,data\nx,nowhere\n", DataError, "nowhere does not exist"),
        ("task,data\nx,maps/train\n", DataError, "has no test images"),
    ],
)
def test_wrong_suites(tmp_path: Path, text: str | None, error: type[Exception], message: str) -> None:
    make_suite(tmp_path, {"maps": "drawn"})
    file = tmp_path / "suite.csv"
    if text is not None:
        file.write_text(text)
    with pytest.raises(error, match=message):
        go(file, tmp_path / "out", Inline())


# --- the command line -------------------------------------------------------------------------------------


def test_the_command_line_hands_everything_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from trimtab.bench.scheduler import Outcome
    from trimtab.cli import commands as cli

    seen: dict[str, Any] = {}

    def stand_in(suite: str, **given: Any) -> Outcome:
        seen.update(given, suite=suite)
        return Outcome(3, ())

    monkeypatch.setattr(benchmark, "bench", stand_in)
    words = ["bench", "vtab1k", "--methods", "vpt:deep=false", "linear", "--tasks", "svhn", "kitti", "--out", "runs"]
    assert cli.main([*words, "--protocol", "paper-vpt", "--seeds", "3", "--prune"]) == 0
    del seen["progress"], seen["command"]
    assert seen == {
        "suite": "vtab1k",
        "methods": ["vpt:deep=false", "linear"],
        "tasks": ["svhn", "kitti"],
        "out": "runs",
        "protocol": "paper-vpt",
        "seeds": 3,
        "prune": True,
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bench", "vtab2k", "--methods", "linear", "--out", "{}/out"], "There is no suite 'vtab2k'. Did you mean"),
        (["bench", "report", "{}"], "has no results.jsonl of a benchmark"),
    ],
)
def test_errors_are_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from trimtab.cli import commands as cli

    assert cli.main([word.format(tmp_path) for word in words]) == 1
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1


def test_what_could_not_be_done_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from trimtab.bench.scheduler import Outcome
    from trimtab.cli import commands as cli

    monkeypatch.setattr(benchmark, "bench", lambda *_, **__: Outcome(2, ("svhn, vpt: DataError: broken",)))
    assert cli.main(["bench", "vtab1k", "--methods", "vpt", "--out", "runs"]) == 1
    told = capsys.readouterr()
    assert "1 of the table could not be done, first svhn, vpt: DataError: broken" in told.err
    assert "trimtab bench report runs" in told.out
