"""The benchmarks run, and mean what they print: samples are paired, wrong results are not timed."""

from __future__ import annotations

import copy
import csv
import dataclasses
import gc
import hashlib
import importlib.util
import itertools
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_files import mnist_folder, needs_mnist, random_images, write_idx
from torch.utils.data import TensorDataset

import fastmlp
from fastmlp.data import deskew, distort

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))  # scripts, not a package

import augment  # noqa: E402
import check  # noqa: E402
import fit  # noqa: E402
import harness  # noqa: E402
import inputs  # noqa: E402
import loader  # noqa: E402
import memory  # noqa: E402
import peers  # noqa: E402
import report  # noqa: E402
import rivals  # noqa: E402
import shapes  # noqa: E402
import static_c  # noqa: E402
import suite  # noqa: E402
import train_step  # noqa: E402

TINY = shapes.select("tiny-1")[0]


def run(
    script: str, *arguments: str, status: int | None = 0, given: str = ""
) -> subprocess.CompletedProcess[str]:
    """A benchmark in its own process, using the fastmlp that is under test."""
    package = str(Path(fastmlp.__file__).resolve().parents[1])
    paths = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *arguments],
        input=given, capture_output=True, text=True, timeout=300,
        env=os.environ | {"PYTHONPATH": paths},
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    assert status is None or done.returncode == status, done.stdout + done.stderr
    return done


# The scripts -------------------------------------------------------------------------------------


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("script", "rows"), [("model.py", 4), ("step.py", 2), ("grid.py", 4)], ids=lambda v: str(v)
)
def test_network_benchmarks_run(script: str, rows: int, tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    options = ["--quick", "--shapes", "tiny-1", "--peers", "fastmlp,eager", "--threads", "1"]
    # A loss, which ends grid.py with 1, is for quiet machines to find.
    printed = run(script, *options, "--csv", str(file), status=None).stdout
    with file.open(encoding="utf-8") as lines:
        table = list(csv.DictReader(lines))
    assert len(table) == rows
    for row in table:
        assert row["shape"] in printed
        assert row["network"] == "64-64-64-4"
        assert row["threads"] == "1"
        assert row["isa"] == fastmlp.get_isa()
        assert 0 < float(row["us_low"]) <= float(row["us_median"]) <= float(row["us_high"])
        assert 0 < float(row["ratio_low"]) <= float(row["ratio_high"])
        assert float(row["gflops"]) > 0
        assert float(row["peak_gflops"]) > 0
        assert row["contestant"] != "eager" or float(row["ratio_median"]) == 1


@pytest.mark.sweep
def test_models_run(tmp_path: Path) -> None:
    table = tmp_path / "models.md"
    options = ["--quick", "--models", "lesson*", "--batches", "1,8", "--threads", "1"]
    run("models.py", *options, "--table", str(table), status=None)  # a loss ends it with 1
    head, _, *rows = table.read_text(encoding="utf-8").splitlines()
    assert len(rows) > 1
    assert all(row.count("|") == head.count("|") == 7 for row in rows)
    assert all(row.startswith("| lesson") and "| 100% |" in row for row in rows)


@pytest.mark.sweep
@pytest.mark.parametrize("peer", ["jax", "onnxruntime", "compile"])
def test_peers_compute_the_same(peer: str) -> None:
    if peer != "compile":
        pytest.importorskip(peer)
    if peer == "onnxruntime":
        pytest.importorskip("onnx")
    printed = run("model.py", "--quick", "--shapes", "b3-w8-d3", "--peers", peer).stdout
    lines = [line for line in printed.splitlines() if line.startswith("b3-w8-d3")]
    assert [line.split()[3] for line in lines] == [peer] * (1 if peer == "onnxruntime" else 2)


def compiler_or_skip() -> None:
    try:
        static_c.compiler()
    except peers.Unsupported:
        pytest.skip("no C compiler")


@pytest.mark.sweep
def test_compile_compiles() -> None:
    with torch.no_grad():
        peers.compile(peers.Problem(TINY, "forward"), 1).results()  # else NotAsNamed
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x + 1, None),
        (abs, "0 graphs compiled"),
        (lambda x: (torch._dynamo.graph_break(), x + 1)[1], "breaks"),
        (lambda x: (x + 1, torch._dynamo.graph_break(), x + 2)[2], "breaks"),
    ],
    ids=["one graph", "none", "a break before", "two"],
)
def test_who_compiles_not_everything_is_refused(
    function: Callable[[torch.Tensor], torch.Tensor], message: str | None
) -> None:
    torch._dynamo.reset()
    # What a name alone would do: nothing is compiled.
    call = function if function is abs else torch.compile(function, backend="eager")
    contestant = peers.of_one_graph(
        peers.Contestant("compile", object, lambda: {"y": call(torch.zeros(2)).numpy()})
    )
    if message is None:
        assert list(contestant.results()) == ["y"]
    else:
        with pytest.raises(peers.NotAsNamed, match=message):
            contestant.results()
    torch._dynamo.reset()


def test_who_cannot_be_compiled_is_refused() -> None:
    torch._dynamo.reset()
    call = torch.compile(lambda: torch._dynamo.graph_break(), backend="eager", fullgraph=True)
    with pytest.raises(peers.NotAsNamed, match="not compiled: "):
        peers.of_one_graph(peers.Contestant("compile", object, lambda: call() or {})).results()
    torch._dynamo.reset()


def test_who_is_not_what_it_is_named_is_not_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def results() -> peers.Results:
        raise peers.NotAsNamed("does something else")

    def pretender(problem: peers.Problem, threads: int) -> peers.Contestant:
        return peers.Contestant("pretender", pytest.fail, results)

    monkeypatch.setitem(peers.PEERS, "pretender", pretender)
    parser = suite.network_options("test", "tiny-1", ("forward",), ("eager", "pretender"))
    measured = suite.Suite(parser.parse_args(["--quick"]))
    assert measured.run() == 1
    assert [row.contestant for row in measured.rows] == ["eager"]
    assert "refused pretender, forward of tiny-1: does something else" in capsys.readouterr().err


def test_a_missing_peer_is_skipped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    problem = peers.Problem(TINY, "forward")
    found = list(peers.contestants(["onnxruntime", "eager"], peers.PEERS, problem, 1))
    assert [c.name for c in found] == ["eager"]
    assert capsys.readouterr().out.startswith("skipped onnxruntime, forward of tiny-1: ")


@pytest.mark.sweep
def test_peak_runs() -> None:
    rows = run("peak.py", "--quick", "--threads", "1").stdout.splitlines()[-2:]
    assert [row.split()[:2] for row in rows] == [["float32", "1"], ["float64", "1"]]
    assert all(float(row.split()[2]) > 0 for row in rows)


def test_tune_runs() -> None:
    numbers = "chain,turned_peak"
    printed = run(
        "tune.py", "--quick", "--shapes", "tiny-1,micro-8", "--threads", "1", "--numbers", numbers
    ).stdout
    rows = printed.splitlines()[-5:-1]
    now = fastmlp._C.get_tuning()
    expected = [f"{name} = {now[name] * by:g}" for name in numbers.split(",") for by in (0.5, 2)]
    assert {" ".join(row.split()[:3]) for row in rows} == set(expected)
    assert all(float(row.split()[3]) > 0 for row in rows)


@pytest.mark.sweep
def test_import_time_runs() -> None:
    printed = run("import_time.py", "--quick", "--rounds", "1").stdout
    assert printed.count(" ms ") == 3


@pytest.mark.sweep
def test_memory_kept_is_no_more_than_eagers() -> None:
    printed = run("memory.py", "--quick", "--shapes", "lecture-50,tiny-1,b17-w17-d3").stdout
    counts = [[int(c.replace(",", "")) for c in r.split()[2:]] for r in printed.splitlines()[2:]]
    assert len(counts) == 3
    assert counts[0][1] == counts[0][3] == 50 * 300 * 4  # eager keeps ReLU's result
    assert all(ours <= eager for r in counts for ours, eager in (r[:2], r[2:]))


def test_memory_sees_what_is_kept() -> None:
    class Hoarder(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.extra = torch.zeros(1000)
            return (super().forward(x) * 2).exp()

    model, x = Hoarder(4, 8), torch.zeros(2, 4)
    assert memory.saved(model, x) == 2 * 8 * 4  # the result of exp, which is the output
    with torch.no_grad():
        assert memory.allocated(model, x) == 1000 * 4


@pytest.mark.sweep
def test_loader_runs() -> None:
    printed = run("loader.py", "--quick", "--shapes", "small-32", "--threads", "1").stdout
    rows = [row.split() for row in printed.splitlines()[2:]]
    assert len(rows) == 2 * len(loader.LOADERS)
    for row in rows:
        assert row[:3] == ["small-32", "64", "32"]
        batch_us, ratio = float(row[-4]), float(row[-3])
        assert batch_us > 0
        assert ratio == 1 if "DataLoader" in row else ratio > 0


@pytest.mark.sweep
def test_png_runs() -> None:
    pytest.importorskip("PIL")
    printed = run("png.py", "--quick", "--files", "1500", "--threads", "1").stdout
    rows = [(row[:5].strip(), row[6:21].strip()) for row in printed.splitlines()[2:]]
    states = ["warm", "cold"] if hasattr(os, "posix_fadvise") else ["warm"]
    readers = ["Pillow", "Pillow, threads", "fastmlp", "fastmlp, kept"]
    assert rows == list(itertools.product(states, readers))


def test_a_wrong_loader_is_found() -> None:
    data = TensorDataset(torch.randn(10, 2), torch.arange(10))

    def fault(change: Callable[[loader.Loader], loader.Loader]) -> str | None:
        return loader.fault(lambda *given: change(loader.data_loader(*given)), data, 4, True)

    def aside(*given: Any) -> loader.Loader:
        *others, generator = given
        return loader.data_loader(*others, copy.deepcopy(generator))

    assert fault(lambda right: right) is None
    assert fault(lambda right: list(right)[:2]) == "fewer than 2 batches"
    assert fault(lambda right: [*right, *right]) == "more than 3 batches"
    assert fault(lambda right: [[x + 1, y] for x, y in right]) == "batch 0 differs"
    assert fault(lambda right: [[x] for x, _ in right]) == "batch 0 differs"
    assert loader.fault(aside, data, 4, True) == "leaves the generator in another state"


@pytest.mark.sweep
def test_augment_runs() -> None:
    printed = run("augment.py", "--quick", "--images", "100", "--threads", "1").stdout
    rows = [row.split() for row in printed.splitlines()[3:] if not row.startswith("skipped")]
    peers = {"scipy"} if importlib.util.find_spec("scipy") else set()
    for task in augment.TASKS:
        names = {" ".join(row[1:-7]) for row in rows if row[0] == task}
        assert names == {"fit", "batch by batch", "fastmlp"} | peers
    for row in rows:
        assert float(row[-7]) > 0
        assert float(row[-4]) == 1 if row[1] == "fit" else float(row[-4]) > 0


def test_wrong_distortions_are_found() -> None:
    pytest.importorskip("scipy")
    images, _ = inputs.strokes(400)
    upright = augment.scipy_deskew(images)
    assert augment.fault(deskew(images), images, upright, random=False) is None
    assert augment.fault(deskew(images).roll(1, 2), images, upright, random=False) is not None
    for task in ("affine", "elastic"):
        amounts = augment.TASKS[task]
        assert amounts is not None
        peers = augment.scipy_distort(images, np.random.default_rng(0), amounts)
        assert augment.fault(distort(images, **amounts), images, peers, random=True) is None
        for name in amounts:
            other = amounts | {name: (0.4 if name == "sigma" else 3.0) * amounts[name]}
            assert augment.fault(distort(images, **other), images, peers, random=True) is not None


@pytest.mark.sweep
def test_compare_serves_both_builds() -> None:
    ready, sample = run(
        "compare.py", "serve", "1", "0.001", given="tiny-1 forward\n\n"
    ).stdout.split("\n", 1)
    assert ready == "ready"
    assert all(float(value) > 0 for value in sample.split())


@pytest.mark.sweep
def test_plot_is_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "plot.png"
    run(
        "model.py", "--quick", "--shapes", "tiny-1", "--peers", "fastmlp,eager", "--plot", str(file)
    )
    assert file.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [((1.01, 1.3, 1.5), False), ((0.99, 1.3, 1.5), True), ((0.7, 0.8, 0.9), False), (None, False)],
)
def test_grid_measures_again_what_is_undecided(
    ratios: tuple[float, float, float] | None, expected: bool
) -> None:
    time_s = harness.Spread(1e-3, 2e-3, 3e-3)
    ratio = harness.Spread(*ratios) if ratios else None
    row = report.Row(TINY, "forward", "fastmlp", time_s, ratio, 100.0, 3)
    assert suite.undecided(row) == expected
    assert not suite.undecided(dataclasses.replace(row, contestant="eager"))
    assert not suite.undecided(dataclasses.replace(row, base="fastmlp"))
    other = dataclasses.replace(row, contestant="train_step", base="fastmlp")
    assert suite.undecided(other) == expected


@pytest.mark.sweep
@pytest.mark.parametrize("wrong", ["--shapes=none", "--peers=numpy", "--tasks=sleep"])
def test_unknown_names_are_refused_on_one_line(wrong: str) -> None:
    assert "model.py: error: argument" in run("model.py", wrong, status=2).stderr.splitlines()[-1]


# The table of shapes -----------------------------------------------------------------------------


def test_grid_spans_what_it_should() -> None:
    grid = shapes.select("grid")
    assert len(grid) >= 60
    assert len({s.name for s in shapes.SHAPES}) == len(shapes.SHAPES)
    for values, low, high in (
        ([s.batch for s in grid], 1, 4096),
        ([s.sizes[0] for s in grid], 8, 2048),
        ([len(s.sizes) - 1 for s in grid], 1, 8),
    ):
        assert (min(values), max(values)) == (low, high)


def test_flops_are_those_of_the_products() -> None:
    lecture = shapes.select("lecture-50")[0]
    first, second = 2 * 50 * 784 * 300, 2 * 50 * 300 * 10
    assert lecture.flops("forward") == first + second
    assert lecture.flops("forward+backward") == 2 * first + 3 * second  # no dX of the input


def test_select_by_pattern_and_group() -> None:
    assert [s.name for s in shapes.select("lecture-*, tiny-1")] == [
        "lecture-50",
        "lecture-1",
        "tiny-1",
    ]
    with pytest.raises(ValueError, match="no shape matches 'nothing'"):
        shapes.select("nothing")


# Dropout and residual blocks ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dropout-100", "residual-32"])
def test_networks_of_blocks_are_what_they_should_be(name: str) -> None:
    shape = shapes.select(name)[0]
    plain, fused = (
        make(peers.Problem(shape, "step")) for make in (peers.eager_network, peers.fastmlp_network)
    )
    assert type(plain) is torch.nn.Sequential
    assert isinstance(fused, fastmlp.FusedMLP)
    assert fused.why_plain(torch.randn(shape.batch, shape.sizes[0])) is None
    assert list(plain.state_dict()) == list(fused.state_dict())
    for a, b in zip(plain.parameters(), fused.parameters(), strict=True):
        assert torch.equal(a, b)
    kinds = [type(module) for module in fused.modules()]
    assert kinds.count(torch.nn.Dropout) == (shape.dropout > 0) * (len(shape.sizes) - 2)
    blocks = [isinstance(fused.get_submodule(str(i)), fastmlp.Residual) for i in range(len(fused))]
    assert sum(blocks) == sum(shape.skips)
    assert shape.skips == (False,) * 2 if shape.dropout else (True,) * 7 + (False,)
    assert not any(shapes.select("lecture-50")[0].skips)


@pytest.mark.sweep
@pytest.mark.parametrize("task", shapes.TASKS)
@pytest.mark.parametrize("name", ["dropout-100", "residual-32"])
@pytest.mark.parametrize("peer", ["eager", "fastmlp"])
def test_dropout_is_timed_but_not_compared(peer: str, name: str, task: str) -> None:
    problem = peers.Problem(shapes.select(name)[0], task)
    with torch.set_grad_enabled(task != "forward"):
        contestant = peers.PEERS[peer](problem, 1)
        assert check.fault(problem, contestant.results()) is None
        state = torch.get_rng_state()
        contestant.run()
    draws = not torch.equal(torch.get_rng_state(), state)
    assert draws == (problem.shape.dropout > 0 and task != "forward")


@pytest.mark.parametrize("task", shapes.TASKS)
def test_a_block_that_forgets_its_input_is_found(task: str) -> None:
    shape = shapes.select("residual-32")[0]
    without = peers.Problem(dataclasses.replace(shape, residual=False), task)
    with torch.set_grad_enabled(task != "forward"):
        wrong = peers.eager(without, 1).results()
    assert "off by" in str(check.fault(peers.Problem(shape, task), wrong))


@pytest.mark.parametrize("name", ["dropout-100", "residual-32"])
@pytest.mark.parametrize("contestant", ["train_step", "fastmlp", "eager"])
def test_steps_of_blocks_are_right(contestant: str, name: str) -> None:
    problem = peers.Problem(shapes.select(name)[0], "sgd")
    one = train_step.CONTESTANTS[contestant](problem, 1)
    assert train_step.expected(problem).fault(one.results()) is None
    state = torch.get_rng_state()
    one.run()
    assert (not torch.equal(torch.get_rng_state(), state)) == (problem.shape.dropout > 0)


def test_who_draws_other_masks_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    for task, known in (("sgd", train_step.CONTESTANTS), ("forward+backward", peers.PEERS)):
        problem = peers.Problem(shapes.select("dropout-100")[0], task)
        assert not list(peers.contestants(["jax"], known, problem, 1))
        assert capsys.readouterr().out == f"skipped jax, {task} of dropout-100: no dropout\n"


# Statistics and timing ---------------------------------------------------------------------------


def test_spread() -> None:
    assert harness.Spread.of(range(101)) == (10, 50, 90)
    assert harness.Spread.of([3.0]) == (3, 3, 3)


def test_speedup_pairs_the_rounds() -> None:
    # The machine slowed down tenfold for the third round: the ratio stays what it is.
    assert harness.speedup([2, 2, 20, 2], [1, 1, 10, 1]) == (2, 2, 2)
    # Of the medians the ratio would be 1.
    assert harness.speedup([1, 2, 3], [0.5, 4, 2]).median == 1.5
    with pytest.raises(ValueError, match="argument 2"):
        harness.speedup([1, 2], [1])


def test_rounds_fit_the_budget() -> None:
    effort = harness.Effort(rounds=20, block_s=1, budget_s=10, least_rounds=5)
    assert [effort.rounds_for(s) for s in (0.1, 1, 100)] == [20, 10, 5]
    assert effort._replace(rounds=3).rounds_for(0.1) == 3


@pytest.mark.parametrize("grad", [True, False])
def test_measure_gives_each_a_sample_a_round(grad: bool) -> None:
    seen: set[tuple[bool, bool]] = set()

    def call() -> None:
        seen.add((torch.is_grad_enabled(), gc.isenabled()))

    samples = harness.measure({"a": call, "b": call}, harness.QUICK, grad=grad)
    assert {name: len(s) for name, s in samples.items()} == dict.fromkeys(
        "ab", harness.QUICK.rounds
    )
    assert all(second > 0 for s in samples.values() for second in s)
    assert seen == {(grad, False)}
    assert gc.isenabled()


def test_a_block_is_as_long_as_asked() -> None:
    calls = 0

    def call() -> None:
        nonlocal calls
        calls += 1

    block = harness.Block(call, 0.001)
    calls = 0
    block.sample()
    assert calls == block.inner + block.lead_in
    assert block.inner > 1


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are seen through /proc")
def test_settle_waits_for_other_threads() -> None:
    started, done = threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        # Without the GIL, for a second or so, and never asleep: it waits for no memory or thread.
        hashlib.pbkdf2_hmac("sha256", b"", b"", 4_000_000)
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    started.wait()
    time.sleep(0.02)  # until it has the GIL no more
    harness.settle(limit_s=60)
    assert done.wait(0.2)  # what follows takes no time
    thread.join()


# The check ---------------------------------------------------------------------------------------


def eager_results(task: str) -> tuple[peers.Problem, peers.Results]:
    problem = peers.Problem(shapes.select("b17-w17-d3")[0], task)
    return problem, peers.eager(problem, 1).results()


@pytest.mark.parametrize("task", shapes.TASKS)
@pytest.mark.parametrize("peer", ["eager", "fastmlp"])
def test_right_results_pass(peer: str, task: str) -> None:
    problem = peers.Problem(shapes.select("b17-w17-d3")[0], task)
    with torch.set_grad_enabled(task != "forward"):
        assert check.fault(problem, peers.PEERS[peer](problem, 1).results()) is None


@pytest.mark.parametrize("task", shapes.TASKS)
def test_every_wrong_result_is_found(task: str) -> None:
    with torch.set_grad_enabled(task != "forward"):
        problem, right = eager_results(task)
    assert len(right) == {"forward": 1, "forward+backward": 7, "step": 6}[task]
    for name, array in right.items():
        for wrong in (
            array * np.float32(1.05),
            np.where(array == array.max(), np.nan, array),
            array[:-1],
        ):
            assert str(check.fault(problem, right | {name: wrong})).startswith(name)
        rest = {k: v for k, v in right.items() if k != name}
        assert "expected" in str(check.fault(problem, rest))


def test_one_number_beyond_its_bound_is_found() -> None:
    problem, right = eager_results("forward+backward")
    wrong = right["dW1"].copy()
    wrong[3, 5] += 1e-3 * abs(wrong).max()
    assert "dW1[3, 5]" in str(check.fault(problem, right | {"dW1": wrong}))


def test_a_step_of_another_length_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "LEARNING_RATE", 1.1 * peers.LEARNING_RATE)
    problem, wrong = eager_results("step")
    assert "off by" in str(check.fault(problem, wrong))


def test_a_wrong_peer_is_not_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never() -> None:
        raise AssertionError("timed")

    def wrong(problem: peers.Problem, threads: int) -> peers.Contestant:
        right = peers.eager(problem, threads).results()
        return peers.Contestant("wrong", never, lambda: {"y": right["y"] + 1})

    monkeypatch.setitem(peers.PEERS, "wrong", wrong)
    parser = suite.network_options("test", "tiny-1", ("forward",), ("eager", "wrong"))
    threads = torch.get_num_threads()
    measured = suite.Suite(parser.parse_args(["--quick"]))
    assert measured.run() == 1
    assert [row.contestant for row in measured.rows] == ["eager"]
    assert "refused wrong, forward of tiny-1: y: off by" in capsys.readouterr().err
    assert torch.get_num_threads() == threads


# Whole training steps ----------------------------------------------------------------------------


@pytest.mark.sweep
def test_train_step_benchmark_runs(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    contestants = ["train_step", "fastmlp", "eager"]
    shapes = "tiny-1,width-*"
    options = ["--quick", "--shapes", shapes, "--peers", ",".join(contestants), "--threads", "1"]
    printed = run("train_step.py", *options, "--csv", str(file)).stdout
    with file.open(encoding="utf-8") as lines:
        table = list(csv.DictReader(lines))
    assert [(row["shape"], row["task"], row["contestant"]) for row in table] == [
        (shape, task, contestant)
        for shape in ("tiny-1", "width-45", "width-46")
        for task in ("sgd", "adam")
        for contestant in contestants
    ]
    for row in table:
        assert row["threads"] == "1"
        assert 0 < float(row["us_low"]) <= float(row["us_median"]) <= float(row["us_high"])
        assert float(row["ratio_median"]) > 0
        assert float(row["gflops"]) > 0
    assert printed.count("width 45 to 46") == 2 * len(contestants)


def test_train_step_benchmark_asks_jax_for_the_same() -> None:
    pytest.importorskip("jax")
    printed = run("train_step.py", "--quick", "--shapes", "b3-w8-d3", "--peers", "jax").stdout
    rows = [line.split() for line in printed.splitlines() if line.startswith("b3-w8-d3")]
    assert [row[2:4] for row in rows] == [["sgd", "jax"], ["adam", "jax"]]


@pytest.mark.parametrize("task", ["sgd", "adam"])
def test_train_step_benchmark_finds_wrong_steps(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = peers.Problem(TINY, task)
    right = train_step.CONTESTANTS["train_step"](problem, 1).results()
    expected = train_step.expected(problem)
    assert expected.fault(right) is None
    assert "expected" in str(expected.fault({}))
    for name, array in right.items():
        for wrong in (
            array * np.float32(1.05),
            np.where(array == array.max(), np.nan, array),
            array[:-1],
        ):
            assert str(expected.fault(right | {name: wrong})).startswith(name)
    monkeypatch.setitem(train_step.RATES, task, 1.1 * train_step.RATES[task])
    wrong = train_step.CONTESTANTS["train_step"](problem, 1).results()
    assert "off by" in str(expected.fault(wrong))


def test_train_step_benchmark_draws_every_pair() -> None:
    """All inputs with all labels, none twice before that."""
    problem = peers.Problem(TINY, "sgd")
    rows, labels = train_step.pool(problem)
    pairs = len(rows) * len(labels)
    seen = {(id(x), id(y)) for x, y in itertools.islice(train_step.batches(problem), pairs)}
    assert len(seen) == pairs


@pytest.mark.sweep
def test_train_step_benchmark_searches_the_grid() -> None:
    """Against the drop-in module where eager takes no part."""
    options = ["--shapes", "b3-w8-d3,b17-w17-d3", "--peers", "train_step,fastmlp", "--tasks", "sgd"]
    # A loss, which ends it with 1, is for quiet machines to find.
    printed = run("train_step.py", "--quick", *options, "--threads", "1", status=None).stdout
    assert "× fastmlp" in printed
    assert re.search(
        r"\n2 rows: ratio to fastmlp [\d.]+ at least, [\d.]+ in the geometric mean\n"
        r"[0-2] below 1\.0, [0-2] of them with their whole spread\n",
        printed,
    )


def test_a_search_counts_the_losses_of_ours(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And measures again, with more effort, what is undecided."""
    tiny, small = shapes.select("tiny-1,b3-w8-d3")
    # By shape: how many times faster than eager each round was, at first and again.
    faster = {"fastmlp": {tiny: ([0.5, 0.5], []), small: ([0.5, 2], [4, 4])}, "jax": {}}
    budgets = []

    def measured(
        self: suite.Suite, problem: peers.Problem, contestants: Any, effort: harness.Effort
    ) -> list[report.Row]:
        budgets.append(effort.budget_s)
        again = effort != self.effort
        rows = []
        for name, ratios in faster.items():
            ratio = harness.Spread.of(ratios.get(problem.shape, ([0.1], [0.1]))[again])
            rows.append(report.Row(problem.shape, problem.task, name, ratio, ratio, 1.0, 2))
        return rows

    monkeypatch.setattr(suite.Suite, "_measure", measured)
    options = suite.network_options(
        "test", "tiny-1,b3-w8-d3", ("forward",), ("fastmlp", "eager")
    ).parse_args(["--quick"])
    assert suite.Suite(options).search() == 1
    quick = harness.QUICK.budget_s
    assert budgets == [quick, quick, suite.AGAIN * quick]
    printed = capsys.readouterr().out
    assert "2 rows: ratio to eager 0.50 at least, 1.41 in the geometric mean" in printed
    assert "1 below 1.0, 1 of them with their whole spread" in printed


@pytest.mark.parametrize(
    ("arguments", "base", "taking_part"),
    [
        ([], "eager", ["fastmlp", "jax", "eager"]),
        (["--peers", "jax,fastmlp"], "fastmlp", ["jax", "fastmlp"]),
        (["--peers", "jax"], "jax", ["jax"]),
        (["--peers", "fastmlp,eager", "--base", "jax"], "jax", ["fastmlp", "eager", "jax"]),
    ],
)
def test_whom_all_are_compared_with(
    arguments: list[str], base: str, taking_part: list[str]
) -> None:
    parser = suite.network_options("test", "tiny-1", ("forward",), ("fastmlp", "jax", "eager"))
    chosen = suite.Suite(parser.parse_args(arguments))
    assert (chosen.base, chosen.peers) == (base, taking_part)


# Inputs that are no random numbers ----------------------------------------------------------------


def drawn(name: str, data_dir: str | None = None) -> torch.Tensor:
    return peers.Problem(shapes.select(name)[0], "sgd", data_dir).x


def test_the_stand_in_is_as_sparse_as_mnist() -> None:
    images, labels = inputs.strokes(2000)
    assert (images.shape, images.dtype) == ((2000, 28, 28), torch.uint8)
    assert set(labels.tolist()) == set(range(10))
    assert 0.18 < (images > 0).float().mean() < 0.21  # of MNIST 0.191
    again, _ = inputs.strokes(2000)
    assert torch.equal(images, again)


@pytest.mark.sweep
def test_images_are_normalised_as_in_the_lecture() -> None:
    raw, normalised = drawn("mnist-raw-50"), drawn("mnist-50")
    assert raw.shape == normalised.shape == (50, 784)
    assert raw.dtype == normalised.dtype == torch.float32
    assert (raw.min(), raw.max()) == (0, 1)
    torch.testing.assert_close(normalised, (raw - 0.1307) / 0.3081)
    background = normalised[raw == 0]
    assert len(background) > raw.numel() / 2
    assert background.unique().numel() == 1


def test_images_come_from_the_folder(tmp_path: Path) -> None:
    images, labels = random_images(30, 28, 28)
    write_idx(tmp_path, images, labels, train=True)
    known = {row.numpy().tobytes() for row in images.view(30, 784)}
    rows = drawn("mnist-raw-50", str(tmp_path)).mul(255).round().to(torch.uint8)
    assert {row.numpy().tobytes() for row in rows} <= known
    assert len({row.numpy().tobytes() for row in rows}) > 15  # of 30, drawn 50 times


def test_a_folder_that_will_not_do_is_named_on_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=re.escape(f"{tmp_path}: neither train-images")):
        drawn("mnist-50", str(tmp_path))
    write_idx(tmp_path, *random_images(30, 4, 6), train=True)
    with pytest.raises(SystemExit, match="images of 4×6 pixels, not of 784"):
        drawn("mnist-50", str(tmp_path))


def test_one_hot_features() -> None:
    x = drawn("onehot-64")
    assert x.shape == (64, 1000)
    assert torch.equal(x.view(64, 20, 50).sum(2), torch.ones(64, 20))
    assert set(x.unique().tolist()) == {0, 1}


@pytest.mark.sweep
@pytest.mark.parametrize("task", ["forward+backward", "step"])
@pytest.mark.parametrize("name", ["mnist-50", "mnist-raw-50", "onehot-64"])
def test_results_on_sparse_inputs_pass(name: str, task: str) -> None:
    problem = peers.Problem(shapes.select(name)[0], task)
    assert check.fault(problem, peers.fastmlp(problem, 1).results()) is None


@pytest.mark.sweep
def test_train_step_benchmark_runs_on_sparse_inputs(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    options = ["--quick", "--shapes", "sparse", "--peers", "train_step,fastmlp,eager"]
    printed = run("train_step.py", *options, "--csv", str(file)).stdout
    assert "\nmnist-50: strokes in the place of MNIST, normalised, " in printed
    with file.open(encoding="utf-8") as lines:
        table = list(csv.DictReader(lines))
    assert len(table) == 3 * 2 * 3
    assert {row["shape"]: row["input"].split(",")[0] for row in table} == {
        "mnist-50": "strokes in the place of MNIST",
        "mnist-raw-50": "strokes in the place of MNIST",
        "onehot-64": "one-hot features",
    }


@pytest.mark.sweep
@needs_mnist
def test_train_step_benchmark_reads_mnist() -> None:
    options = ["--shapes", "mnist-50", "--peers", "train_step", "--tasks", "sgd"]
    printed = run("train_step.py", "--quick", *options, "--data-dir", str(mnist_folder())).stdout
    assert "mnist-50: images of --data-dir, normalised, 19.1% drawn on" in printed


# Whole epochs -------------------------------------------------------------------------------------

EPOCH = peers.Problem(shapes.select("mnist-50")[0], "sgd")


@pytest.mark.sweep
def test_fit_benchmark_runs(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    printed = run("fit.py", "--quick", "--threads", "1", "--csv", str(file)).stdout
    with file.open(encoding="utf-8") as lines:
        table = list(csv.DictReader(lines))
    assert [row["contestant"] for row in table] == ["lecture", "fastmlp", "train_step", "fit"]
    for row in table:
        assert row["base"] == "lecture"
        assert row["threads"] == "1"
        assert row["isa"] == fastmlp.get_isa()
        assert 0 < float(row["us_low"]) <= float(row["us_median"]) <= float(row["us_high"])
        assert float(row["ratio_median"]) > 0
        # What the last lines make of the time of a batch: 200 of 50 rows.
        line = rf"mnist-50, {row['contestant']}: ([\d.]+) s for all 10,000 rows"
        assert (found := re.search(line, printed)) is not None
        assert float(found[1]) == pytest.approx(200e-6 * float(row["us_median"]), abs=0.006)


@pytest.mark.sweep
def test_fit_benchmark_refuses_what_it_cannot_train_on() -> None:
    done = run("fit.py", "--quick", "--shapes", "dropout-100", "--peers", "fit")
    assert "skipped fit, sgd of dropout-100: no dropout" in done.stdout
    done = run("fit.py", "--quick", "--shapes", "tiny-1", "--peers", "lecture")
    assert "skipped lecture, sgd of tiny-1: no images" in done.stdout
    done = run("fit.py", "--quick", "--batches", "0", status=2)
    assert "fit.py: error: argument --batches: 0" in done.stderr


def epoch_or_skip(name: str) -> None:
    if name.startswith("jax"):
        pytest.importorskip("jax")
    if name == "c":
        compiler_or_skip()


# Compiling takes a minute.
FIT_CONTESTANTS = [
    pytest.param(name, marks=[pytest.mark.sweep] * name.startswith("compile"))
    for name in fit.CONTESTANTS
]


@pytest.mark.parametrize("name", FIT_CONTESTANTS)
def test_fit_benchmark_times_a_batch(name: str) -> None:
    epoch_or_skip(name)
    torch._dynamo.reset()
    one = fit.contestant(name, 3, EPOCH, 1)
    assert one.repeats == 3
    assert fit.expected(EPOCH, 3).fault(one.results()) is None


@pytest.mark.parametrize("name", FIT_CONTESTANTS)
@pytest.mark.parametrize("wrong", ["order", "rate", "transform"])
def test_fit_benchmark_finds_other_trainings(
    name: str, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    epoch_or_skip(name)
    torch._dynamo.reset()
    expected = fit.expected(EPOCH, 3)
    if wrong == "order":
        monkeypatch.setattr(fit, "SEED", fit.SEED + 1)
    elif wrong == "rate":
        monkeypatch.setitem(train_step.RATES, "sgd", 1.1 * train_step.RATES["sgd"])
    else:
        raw = dataclasses.replace(EPOCH.shape, input="mnist-raw")
        other = fit.share(dataclasses.replace(EPOCH, shape=raw), 3)
        monkeypatch.setattr(fit, "share", lambda problem, batches: other)
    assert "off by" in str(expected.fault(fit.contestant(name, 3, EPOCH, 1).results()))


def test_fit_benchmark_takes_a_share_of_the_rows() -> None:
    whole, part = inputs.images("mnist", None), fit.share(EPOCH, 3)
    assert len(part) == 150
    assert len(fit.share(EPOCH, 1000)) == len(whole) == 10_000
    assert part.labels.unique().numel() == 10  # not the first, which may all be of one class


# Rivals -------------------------------------------------------------------------------------------

MICRO = shapes.select("micro-8")[0]


@pytest.mark.parametrize("task", ["sgd", "adam"])
@pytest.mark.parametrize("name", ["fit", "eager", "eager-fused", "jax-scan-1", "jax-scan-8", "c"])
@pytest.mark.parametrize("shape", [TINY, MICRO], ids=lambda s: s.name)
def test_steps_in_a_row_are_right(shape: shapes.Shape, name: str, task: str) -> None:
    epoch_or_skip(name)
    problem = peers.Problem(shape, task)
    one = fit.contestant(name, 37, problem, 1)
    assert one.repeats == 37
    results = one.results()
    assert fit.expected(problem, 37).fault(results) is None
    one.run()  # trains on, in place of starting anew
    assert fit.expected(problem, 37).fault(one.results()) is not None


@pytest.mark.parametrize("name", ["fit", "eager", "jax-scan-8", "c"])
def test_who_runs_fewer_steps_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where the parameters are off by less than rounding may explain."""
    epoch_or_skip(name)
    problem = peers.Problem(MICRO, "sgd")
    fewer = fit.CONTESTANTS[name](problem, 1, fit.share(problem, 399), torch.Generator())
    monkeypatch.setitem(fit.CONTESTANTS, name, lambda *given: fewer)
    with pytest.raises(peers.NotAsNamed, match="399 steps, expected 400"):
        fit.contestant(name, 400, problem, 1).results()


def test_random_rows_cannot_be_learned_by_heart() -> None:
    data = fit.share(peers.Problem(MICRO, "sgd"), 50)
    x, y = fit.tensors(data)
    assert (x.shape, x.dtype, y.dtype) == ((400, 4), torch.float32, torch.int64)
    assert len(x.unique(dim=0)) == 400 / fit.COPIES
    for row in x.unique(dim=0):
        assert y[(x == row).all(1)].float().mean() == 0.5  # of two classes


@pytest.mark.parametrize("shape", ["tiny-1", "micro-8", "b17-w17-d3", "b3-w8-d3"])
def test_static_c_is_right(shape: str) -> None:
    compiler_or_skip()
    forward, sgd, adam = (
        peers.Problem(shapes.select(shape)[0], task) for task in ("forward", "sgd", "adam")
    )
    assert check.fault(forward, peers.static(forward, 1).results()) is None
    for problem in (sgd, adam):
        one = train_step.static(problem, 1)
        assert train_step.expected(problem).fault(one.results()) is None


def test_static_c_leaves_subnormal_numbers_alone() -> None:
    compiler_or_skip()
    one = train_step.static(peers.Problem(TINY, "adam"), 1)
    one.run()
    smallest = torch.tensor(1e-40)
    assert smallest * 1 == smallest != 0


def test_static_c_is_skipped_without_a_compiler(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(static_c.shutil, "which", lambda command: None)
    problem = peers.Problem(TINY, "sgd")
    assert not list(peers.contestants(["c"], train_step.CONTESTANTS, problem, 1))
    assert capsys.readouterr().out == "skipped c, sgd of tiny-1: no C compiler\n"
    residual = peers.Problem(shapes.select("residual-32")[0], "sgd")
    assert not list(peers.contestants(["c"], train_step.CONTESTANTS, residual, 1))
    assert "plain networks only" in capsys.readouterr().out


@pytest.mark.sweep
@pytest.mark.parametrize("cpp", [False, True], ids=["python", "cpp"])
@pytest.mark.parametrize("task", ["sgd", "adam"])
def test_compiled_steps_are_right(task: str, cpp: bool) -> None:
    torch._dynamo.reset()
    problem = peers.Problem(MICRO, task)
    one = train_step.compile_step(problem, 1, cpp)
    assert train_step.expected(problem).fault(one.results()) is None
    torch._dynamo.reset()


@pytest.mark.parametrize("task", ["sgd", "adam"])
def test_fused_optimizers_step_alike(task: str) -> None:
    problem = peers.Problem(TINY, task)
    one = train_step.eager_fused(problem, 1)
    assert train_step.expected(problem).fault(one.results()) is None


def test_the_fastest_variant_counts() -> None:
    def spread(median: float) -> harness.Spread:
        return harness.Spread(median / 2, median, median * 2)

    times = {"eager": 3.0, "eager-fused": 2.0, "jax-scan-1": 5.0, "jax-scan-8": 4.0, "fit": 1.0}
    spreads = {name: spread(time) for name, time in times.items()}
    assert suite.fastest(spreads, "eager") == "eager-fused"
    assert suite.fastest(spreads, "jax") == "jax-scan-8"
    assert suite.fastest(spreads, "jax-scan-1") == "jax-scan-1"
    assert suite.fastest(spreads, "fi") is None
    rows = [
        report.Row(TINY, "sgd", name, spread(time), spread(1 / time), 1.0, 3, "fit")
        for name, time in times.items()
    ]
    lines = [line.split() for line in rivals.verdicts(rows, "fit")]
    assert [line[4] for line in lines] == ["eager-fused", "jax-scan-8"]
    assert [line[6:] for line in lines] == [["2.00", "1.00–4.00"], ["4.00", "2.00–8.00"]]


def test_all_are_compared_with_the_faster_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(calls: dict[str, Any], effort: Any, **options: Any) -> dict[str, list[float]]:
        return {"train_step": [1.0, 1.0], "eager": [6.0, 6.0], "eager-fused": [4.0, 4.0]}

    monkeypatch.setattr(suite, "measure", measured)
    known = {"known": train_step.CONTESTANTS}
    parser = suite.network_options(
        "test", "tiny-1", ("sgd",), ("eager", "eager-fused"), *known.values()
    )
    one = train_step.StepSuite(
        parser.parse_args(["--quick", "--peers", "train_step,eager,eager-fused"])
    )
    assert one.run() == 0
    assert {row.base for row in one.rows} == {"eager-fused"}
    ratios = {row.contestant: row.ratio.median for row in one.rows if row.ratio}
    assert ratios == {"train_step": 4, "eager": 4 / 6, "eager-fused": 1}


@pytest.mark.sweep
def test_rivals_run(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    options = ["--quick", "--shapes", "micro-8", "--peers", "eager,c,jax", "--threads", "1"]
    printed = run("rivals.py", *options, "--csv", str(file)).stdout
    with file.open(encoding="utf-8") as lines:
        table = list(csv.DictReader(lines))
    assert {(row["base"], row["task"]) for row in table} == {
        ("fit", "sgd"), ("fit", "adam"), ("train_step", "sgd"), ("train_step", "adam"),
        ("fastmlp", "forward"), ("fastmlp", "forward+backward"),
    }  # fmt: skip
    verdicts = printed.split(rivals.COLUMNS)[1].splitlines()
    assert sum("eager" in line for line in verdicts) == 6
    if importlib.util.find_spec("jax") is None:
        assert "skipped jax-scan-8, sgd of micro-8: No module named 'jax'" in printed


@pytest.mark.sweep
def test_busy_runs(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    options = ["--quick", "--busy", "0,1", "--shapes", "tiny-1", "--tasks", "forward,sgd,fit-adam"]
    printed = run("busy.py", *options, "--peers", "eager", "--csv", str(file), "--threads", "2")
    with file.open(encoding="utf-8") as lines:
        table = list(csv.DictReader(lines))
    assert [(row["busy"], row["task"], row["contestant"], row["threads"]) for row in table] == [
        (busy, task, name, threads)
        for task, ours in (("forward", "fastmlp"), ("sgd", "train_step"), ("fit-adam", "fit"))
        for busy in "01"
        for name in (ours, "eager")
        for threads in "21"
    ]
    assert all(float(row["us_call"]) > 0 and float(row["p99"]) >= 1 for row in table)
    assert "two trainings at once, tiny-1: " in printed.stdout.splitlines()[-1]


@pytest.mark.sweep
def test_compare_takes_a_folder(tmp_path: Path) -> None:
    package = Path(fastmlp.__file__).parent
    done = run("compare.py", str(package.parent), "--quick", "--shapes", "tiny-1", status=1)
    assert f"compare: both builds are {package}" in done.stderr
    (tmp_path / "fastmlp").mkdir()
    done = run("compare.py", str(tmp_path), "--quick", status=1)
    assert "no fastmlp that is built" in done.stderr
    (tmp_path / "fastmlp").rmdir()
    (tmp_path / "fastmlp").symlink_to(package)
    tasks = ["forward", "sgd", "fit-adam"]
    options = ["--quick", "--shapes", "tiny-1", "--threads", "1", "--tasks", ",".join(tasks)]
    printed = run("compare.py", str(tmp_path), *options, status=None).stdout
    rows = [line.split()[1] for line in printed.splitlines() if line.startswith("tiny-1")]
    assert rows == tasks
    assert "3 rows, the least ratio " in printed
