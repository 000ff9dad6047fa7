"""The interleaved benchmark: order of rounds, statistics, and how a worker's failure is told."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.glimpse import bench_glimpse, glimpse_inputs
from benchmarks.glimpse.glimpse_inputs import OUTPUTS, TASKS, parameter_shapes, parity_inputs
from benchmarks.harness import interleave
from benchmarks.harness.interleave import Plan, Worker
from benchmarks.harness.report import header, row
from benchmarks.harness.series import Series, compare, ratio
from formats.errors import UserError

PLAN = Plan(rounds=3, warm_up=1, round_sec=0.0, timeout_sec=20)

# A worker whose n-th answer says n * SECONDS, and that notes each request in LOG.
COUNTING = """
import sys
from benchmarks.harness.worker import serve
name, log, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
count = 0
def answer(case, repeat):
    global count
    count += 1
    print("a library talks")
    with open(log, "a") as file:
        file.write(f"{name} {case} {repeat}\\n")
    return {"seconds": count * seconds, "peak_mib": 10.0 * count}
serve(lambda: ({"versions": {"python": "3"}}, {"time": answer}))
"""


def python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", f"import sys; sys.path.insert(0, '.')\n{code}", *arguments]


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interleave, "PAUSE_SEC", 0.0)


def test_rounds_take_turns_and_warm_up_is_not_counted(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    with (
        Worker("a", python(COUNTING, "a", log, "1")) as a,
        Worker("b", python(COUNTING, "b", log, "10")) as b,
    ):
        assert a.about == {"ready": True, "versions": {"python": "3"}}
        series = interleave.interleave([a, b], "train", PLAN)
    lines = (tmp_path / "log").read_text().splitlines()
    # Two requests each to find out how long a step takes, one round of warm-up, three that count.
    assert lines == ["a train 2"] * 2 + ["b train 2"] * 2 + ["a train 1", "b train 1"] * 4
    assert series["a"].seconds == [4.0, 5.0, 6.0]
    assert series["b"].seconds == [40.0, 50.0, 60.0]
    assert series["b"].peak_mib == 60.0


def test_a_round_is_filled_with_steps(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    with Worker("a", python(COUNTING, "a", log, "0.01")) as a:
        interleave.interleave([a], "train", Plan(1, 0, round_sec=0.5))
    # The second answer says 0.02 s, and 0.5 s hold 25 of these.
    assert (tmp_path / "log").read_text().splitlines()[-1] == "a train 25"


def test_ratio_is_that_of_medians_and_its_spread_that_of_rounds() -> None:
    ours, other = Series([1.0, 2.0, 4.0], [1.0] * 3), Series([3.0, 2.0, 8.0], [1.0] * 3)
    assert ratio(other, ours) == {"ratio": 1.5, "min": 1.0, "max": 3.0}
    found = compare({"ours": ours, "other": other})
    assert found["ours"]["ratio"]["ratio"] == 1.0
    assert (found["other"]["median"], found["other"]["min"], found["other"]["max"]) == (3, 2, 8)
    line = row(["train", "other"], found["other"])
    assert line == "| train | other | 3000 (2000 to 8000) | 1.50 (1.00 to 3.00) | 0 |"
    assert {text.count("|") for text in (line, *header(["case", "worker"], "ms").splitlines())} == {
        6
    }


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("sys.exit('no such library')", "exit code 1 before it answered: no such library"),
        ("print('hello', flush=True)", "answered 'hello' where a JSON object was expected"),
        ("import time; time.sleep(60)", "did not answer within 1 s"),
    ],
)
def test_a_worker_that_does_not_start_is_named(code: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        Worker("theirs", python(code), timeout_sec=1 if "sleep" in code else 20)
    assert str(caught.value).startswith("worker theirs ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


CRASHING = """
import os
from benchmarks.harness.worker import serve
def die(case, repeat):
    if case == "raise":
        raise ValueError("odd")
    sys.stderr.write("out of paper\\n")
    sys.stderr.flush()
    os._exit(7)
serve(lambda: ({}, {"time": die}))
"""


def test_a_worker_that_raises_or_dies_later_is_named() -> None:
    with Worker("theirs", python(CRASHING)) as worker:
        with pytest.raises(UserError, match=r"^worker theirs: time: ValueError: odd$"):
            interleave.interleave([worker], "raise", PLAN)
        with pytest.raises(UserError, match=r"ended with exit code 7 .*: out of paper$"):
            interleave.interleave([worker], "train", PLAN)
        with pytest.raises(UserError, match="worker theirs ended with exit code 7"):
            worker.ask(do="time", case="train", repeat=1)


SLOW = """
import time
from benchmarks.harness.worker import serve
def slow(case, repeat):
    time.sleep(repeat)
    return {"seconds": repeat}
serve(lambda: ({}, {"time": slow}))
"""


def test_a_late_answer_is_not_that_of_the_next_question() -> None:
    with Worker("theirs", python(SLOW)) as worker:
        worker.timeout_sec = 1
        with pytest.raises(UserError, match="did not answer within 1 s"):
            worker.ask(do="time", case="train", repeat=2)
        worker.timeout_sec = 20
        with pytest.raises(UserError, match="ended with exit code -9"):
            worker.ask(do="time", case="train", repeat=0)


def test_a_program_that_does_not_exist_is_named() -> None:
    with pytest.raises(UserError, match="worker theirs: cannot start /no/python: No such file"):
        Worker("theirs", ["/no/python"])


def test_the_program_prints_and_stores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, log = tmp_path / "new" / "figures.json", str(tmp_path / "log")
    program = tmp_path / "worker.py"
    program.write_text(f"import sys; sys.path.insert(0, '.')\n{COUNTING}")
    workers = [
        f"{name}={shlex.join([sys.executable, str(program), name, log, seconds])}"
        for name, seconds in (("ours", "1"), ("theirs", "2"))
    ]
    argv = ["--workers", *workers, "--cases", "train", "--rounds", "2", "--out", str(out)]
    assert interleave.main(argv) == 0
    printed = capsys.readouterr().out
    assert "| train | theirs | 11000 (10000 to 12000) | 2.00 (2.00 to 2.00)" in printed
    record = json.loads(out.read_text())
    assert record["cases"]["train"]["ours"]["rounds"] == [5.0, 6.0]
    assert {"cpu", "load", "git", "variables"} <= set(record["environment"])
    assert record["workers"]["ours"]["versions"] == {"python": "3"}


@pytest.mark.parametrize(
    ("worker", "message"),
    [("theirs=false", "error: worker theirs ended with exit code 1 before"), ("theirs", "error: ")],
)
def test_the_program_ends_with_2_and_leaves_nothing(
    worker: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "figures.json"
    argv = ["--workers", worker, "--cases", "train", "--out", str(out)]
    try:
        code = interleave.main(argv)
    except SystemExit as end:
        code = int(str(end.code))
    assert code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(message)
    assert not out.exists()


def test_the_layouts_have_the_published_numbers_of_parameters() -> None:
    def count(task: str, locator_hidden: int) -> int:
        shapes = parameter_shapes(TASKS[task], locator_hidden).values()
        return sum(int(np.prod(shape)) for shape in shapes)

    assert [count("mnist", 128), count("mnist", 0)] == [242_317, 209_677]
    assert [count("translated", 128), count("translated", 0)] == [289_421, 256_781]


ANSWERING = """
import numpy as np
from benchmarks.glimpse import glimpse_inputs
from benchmarks.harness.worker import serve
offset = float(sys.argv[1])
def forward(inputs, outputs):
    with np.load(inputs) as file:
        first = file["first_location"]
    np.savez(outputs, **{name: first + offset for name in glimpse_inputs.OUTPUTS})
    return {}
serve(lambda: ({}, {"forward": forward}))
"""


def test_parity_is_measured_and_demanded() -> None:
    with (
        Worker("ours", python(ANSWERING, "0")) as ours,
        Worker("near", python(ANSWERING, "2e-6")) as near,
        Worker("far", python(ANSWERING, "2e-5")) as far,
        Worker("none", python(ANSWERING, "nan")) as none,
    ):
        found = bench_glimpse.check_parity([ours, near], "mnist")
        assert found == {"near": pytest.approx(2e-6, rel=0.1)}
        for other in (far, none):
            with pytest.raises(UserError, match=rf"^{OUTPUTS[0]} of {other.name} on mnist differs"):
                bench_glimpse.check_parity([ours, near, other], "mnist")


@pytest.mark.parametrize("task", TASKS)
def test_our_worker_gives_what_the_formulas_say(task: str, tmp_path: Path) -> None:
    """One forward pass against float64 NumPy, which knows nothing of either framework."""
    from benchmarks.glimpse import mxnet_glimpse

    arrays = parity_inputs(TASKS[task])
    inputs, outputs = str(tmp_path / "in.npz"), str(tmp_path / "out.npz")
    np.savez(inputs, **arrays)
    mxnet_glimpse.forward_action(mxnet_glimpse.Config(task=task))(inputs, outputs)
    expected = by_hand(TASKS[task], {name: a.astype(np.float64) for name, a in arrays.items()})
    with np.load(outputs) as found:
        for name in OUTPUTS:
            np.testing.assert_allclose(found[name], expected[name], atol=1e-5, err_msg=name)


def by_hand(task: glimpse_inputs.Task, a: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    def layer(name: str, x: np.ndarray) -> np.ndarray:
        return np.asarray(x @ a[f"{name}.weight"].T + a[f"{name}.bias"])

    def relu(x: np.ndarray) -> np.ndarray:
        return np.maximum(x, 0)

    def look(location: np.ndarray) -> np.ndarray:
        rows = []
        for image, centre in zip(a["image"][:, 0], ((location + 1) / 2 * task.size).astype(int)):
            seen = []
            for window in (2**scale for scale in range(task.num_patches)):
                edge = task.patch_size * window
                x, y = centre
                cut = np.pad(image, edge // 2)[y : y + edge, x : x + edge]
                shape = (task.patch_size, window, task.patch_size, window)
                seen.append(cut.reshape(shape).mean(axis=(1, 3)).ravel())
            rows.append(np.concatenate(seen))
        return np.stack(rows)

    location = a["first_location"]
    hidden = np.zeros((len(location), glimpse_inputs.HIDDEN))
    means, locations, baselines = [location], [location], []
    for step in range(task.num_glimpses):
        if step:
            means.append(np.tanh(layer("locator.fc_lt", relu(layer("locator.fc", hidden)))))
            location = np.clip(means[-1] + a["noise"][:, step], -1, 1)
            locations.append(location)
        what = layer("sensor.fc3", relu(layer("sensor.fc1", look(location))))
        where = layer("sensor.fc4", relu(layer("sensor.fc2", location)))
        hidden = relu(layer("rnn.i2h", relu(what + where)) + layer("rnn.h2h", hidden))
        baselines.append(layer("baseliner.fc", hidden)[:, 0])
    return {
        "logits": layer("classifier.fc", hidden),
        "baselines": np.stack(baselines, 1),
        "means": np.stack(means, 1),
        "locations": np.stack(locations, 1),
    }


def test_pytorch_is_locked_for_the_cpu_and_alone() -> None:
    lock = Path(interleave.ROOT, "requirements/bench-torch-py311.txt").read_text()
    lines = lock.splitlines()[1:]
    packages = dict(re.findall(r"^([a-z0-9-]+)==(\S+) \\$", lock, flags=re.M))
    assert packages["torch"].endswith("+cpu")
    assert not {"mxnet", "gluoncv", "triton"} & set(packages)
    assert not [name for name in packages if name.startswith(("nvidia", "cuda"))]
    hashes = [line for line in lines if re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}", line)]
    assert len(hashes) == len(packages) == len(lines) / 2
