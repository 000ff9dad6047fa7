"""The table of networks: which rows there are, what is judged, and what is kept of another run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Optional

import pytest

from benchmarks.harness.interleave import Plan
from benchmarks.harness.report import headline, machine
from benchmarks.harness.series import Series
from benchmarks.networks import bench_networks, bench_scaling, network_rows, network_workers
from benchmarks.networks.bench_networks import Config
from benchmarks.networks.network_report import judged, markdown, processor
from benchmarks.networks.network_table import Table, others, paths
from formats.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
KNOWN: dict[str, Any] = {"cpu": "A (B) 9", "usable_cores": 2, "load": [0.1], "git": None}
NO_ONE: Any = None  # a worker that is not asked
MODES = network_rows.modes_of(network_rows.NETWORKS["resnet164"])


def timing(seconds: float) -> dict[str, Any]:
    return {"median": seconds, "min": seconds, "max": 2 * seconds, "peak_mib": 1000 * seconds}


def row_of(mode: str, **seconds: float) -> dict[str, Any]:
    """Return a row as it is stored."""
    about = {"threads": 2, "quick": False, "environment": KNOWN}
    systems = {name: timing(value) for name, value in seconds.items()}
    return {"network": "resnet164", "mode": mode, "systems": systems, **about}


def record_of(*rows: dict[str, Any]) -> dict[str, Any]:
    """Return a file of figures; a step of the peak takes as long as 1 TFLOP/s allows."""
    work = 2 * 9 * network_rows.PEAK_CHANNELS**2 * network_rows.SIZE**2
    seconds = work * network_rows.PEAK_BATCH * network_rows.PEAK_LAYERS / 1e12
    found = {f"{row['network']}/{row['mode']}": row for row in rows}
    peak = {"float32/ours": 2 * seconds, "float32/nchw": seconds}
    return {"rows": found, "peak": peak, "parity": {}, "macs": {"resnet164": 250_000_000}}


def cells_of(record: dict[str, Any], mode: str) -> list[str]:
    """Return the cells of a row on the page."""
    found = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in markdown(record).splitlines()
        if line.startswith("| resnet164")
    ]
    return next(cells for cells in found if cells[1] == mode)


def test_training_is_judged_by_the_faster_eager_form() -> None:
    row = row_of("train fp32", ours=1.0, nchw=3.0, channels_last=1.5)
    record = record_of(row)
    assert judged(row, MODES["train fp32"]) == 1.5
    cells = cells_of(record, "train fp32")
    assert cells[3] == "1000 (1000 to 2000)"
    assert cells[4] == "64"  # images of a step that takes a second
    assert cells[8:10] == ["1.50", "1.50"]
    assert cells[10:12] == ["96", "10%"]  # 2 * 3 * 64 * 0.25 GMAC, of 1 TFLOP/s
    assert cells[12] == "1000 / 1500"


def test_inference_is_judged_by_the_fastest_form() -> None:
    mode = "infer fp32, batch 128"
    row = row_of(mode, ours=1.0, nchw=3.0, channels_last=1.5, compiled=1.2)
    assert judged(row, MODES[mode]) == 1.2
    assert cells_of(record_of(row), "infer fp32")[8:10] == ["1.50", "1.20"]


def test_int8_is_judged_by_our_own_float32() -> None:
    mode = MODES["infer int8, batch 1"]
    row = row_of("infer int8, batch 1", ours=1.0, float32=2.5)
    assert judged(row, mode) == 2.5
    assert cells_of(record_of(row), "infer int8")[8:10] == ["2.50", "2.50"]
    alone = row_of("infer int8, batch 1", ours=1.0)  # as older files have it
    assert judged(alone, mode) is None
    assert cells_of(record_of(alone), "infer int8")[8] == "-"


def test_int8_is_timed_in_turn_with_our_float32() -> None:
    asked: list[tuple[str, Any]] = []

    class Ours:
        name = "ours"

        def ask(self, **request: Any) -> dict[str, Any]:
            asked.append((request["do"], request.get("case", request.get("batch"))))
            return {"seconds": 0.5}

    plan = Plan(2, 0, 0.0, repeat=1)
    ours: Any = Ours()
    pair = network_workers.Inference(
        network_workers.Machines("", "", 1, plan), "resnet164", ours, NO_ONE
    )
    found, _ = pair.measure(MODES["infer int8, batch 128"])
    assert list(found) == ["ours", "float32"]
    turns = [("time", f"infer_{each}_128") for each in ("int8", "float32")]
    assert asked[-5:] == [*turns, *turns, ("describe", 128)]


@pytest.mark.parametrize(
    ("rounds", "kept", "attempts"),
    [
        ([[1, 2]], [1, 2], 1),
        ([[1, 3], [1, 1.5]], [1, 1.5], 2),
        ([[1, 5], [1, 3], [1, 4]], [1, 3], 3),
    ],
)
def test_a_row_that_was_disturbed_is_measured_again(
    rounds: list[list[float]], kept: list[float], attempts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = iter(rounds)

    def once(variants: Any, case: str, plan: Plan) -> dict[str, Series]:
        return {"a": Series([1.0, 1.0]), "b": Series(list(next(made)))}

    monkeypatch.setattr(network_workers, "interleave", once)
    found = network_workers.settled([], "case", Plan())
    assert found["b"].seconds == kept
    assert len(list(made)) == len(rounds) - attempts


def test_rows_that_are_not_steady_are_named() -> None:
    steady, other = row_of("train fp32", ours=1.0), row_of("train bf16", ours=1.0)
    other["systems"]["ours"]["max"] = 2.01
    page = markdown(record_of(steady, other))
    assert "more than 2: resnet164/train bf16\n" in page
    assert "train fp32\n" not in page


def test_further_tables_are_on_the_page() -> None:
    found = {"resnet20": {"seconds": 0.2, "seconds_alone": 0.1, "share": 0.5}}
    page = markdown({**record_of(), "epoch": {"environment": KNOWN, "found": found}})
    assert "| resnet20 | 200.0 | 100.0 | 0.500 |" in page


def test_only_rows_of_the_same_run_are_kept(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    out.write_text(json.dumps(record_of(row_of("train fp32", ours=1.0))))
    names = {}
    for threads in (1, 2):
        table = Table(Config(networks=("resnet164",), threads=threads, out=str(out)), KNOWN)
        names[threads] = [name for name, _ in table.todo("resnet164", "train")]
    assert names == {1: ["train fp32", "train bf16"], 2: ["train bf16"]}
    again = Table(Config(networks=("resnet164",), again=True, out=str(out)), KNOWN)
    assert len(again.todo("resnet164", "train")) == 2


def test_quick_figures_stay_out_of_the_published_ones() -> None:
    assert processor(KNOWN) == "a-b-9-2-cores-unknown"
    assert paths(Config(), KNOWN)[0] == "benchmarks/results/a-b-9-2-cores-unknown.json"
    assert all(path.startswith("runs/") for path in paths(Config(quick=True), KNOWN))


@pytest.mark.parametrize(
    ("isa", "variables", "ending"),
    [
        ("AVX-512 with bfloat16 and VNNI", {}, "avx512"),
        ("AVX2 with VNNI", {}, "avx2"),
        ("capped to AVX2 (ATTENTION_ISA)", {"ATTENTION_ISA": "avx2"}, "avx2"),
        ("AVX-512, libraries capped by DNNL_MAX_CPU_ISA=AVX2", {}, "avx512-capped"),
        ("AVX2", {"ATTENTION_NATIVE": "0"}, "avx2-plain"),
    ],
)
def test_files_are_named_by_processor_and_instruction_set(
    isa: str, variables: dict[str, str], ending: str
) -> None:
    known = {**KNOWN, "isa": isa, "variables": variables}
    assert processor(known) == f"a-b-9-2-cores-{ending}"
    assert isa in headline(known)
    assert ("without own operators" in headline(known)) == ending.endswith("plain")


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder of its own, as the files are named relative to it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_no_other_machines_files_are_overwritten(in_folder: Path) -> None:
    mine = {**KNOWN, "isa": "AVX2 with VNNI"}
    other = {**KNOWN, "isa": "AVX2"}
    table = Table(Config(), other)
    table.record["macs"]["resnet164"] = 1
    table.add("resnet164", "train fp32", {"ours": timing(1.0)}, None)
    Path(table.page).parent.mkdir(parents=True)
    Path(table.page).write_text(markdown(table.record))
    first = paths(Config(), other)
    assert first == (table.path, table.page)  # the same machine goes on
    assert paths(Config(), mine) == tuple(name.replace("-avx2.", "-avx2-2.") for name in first)
    # A page alone is somebody's too.
    Path(table.path).unlink()
    assert paths(Config(), mine)[1].endswith("-avx2-2.md")
    for named in (Config(page=table.page), Config(out="other.json", page=table.page)):
        with pytest.raises(UserError, match=r"another machine \(A \(B\) 9, AVX2, 2 cores\)"):
            paths(named, mine)
    assert paths(Config(page=table.page), other)[1] == table.page


def test_named_figures_of_another_machine_are_refused(in_folder: Path) -> None:
    row = row_of("train fp32", ours=1.0)
    Path("figures.json").write_text(json.dumps(record_of(row)))
    with pytest.raises(UserError, match=r"figures\.json has figures of another machine"):
        Table(Config(out="figures.json"), {**KNOWN, "cpu": "A (B) 8"})
    mine = Table(Config(out="figures.json", threads=2), KNOWN)
    assert mine.has("resnet164", "train fp32")


def test_published_files_are_one_machines_and_have_its_name() -> None:
    for path in (ROOT / "benchmarks" / "results").glob("*.json"):
        record = json.loads(path.read_text())
        known = [row["environment"] for row in record["rows"].values()]
        known += [record[name]["environment"] for name in ("glimpse", "scaling", "epoch")]
        assert {processor(each) for each in known} == {path.stem}
        assert len({machine(each) for each in known}) == 1
        page = (ROOT / "docs" / "speed_tables" / f"{path.stem}.md").read_text()
        assert f"- {machine(known[0])}; load " in page
        assert others(str(ROOT / "docs" / "speed_tables" / f"{path.stem}.md"), known[0]) is None


class Able:
    """A worker that computes what is not named in `unable`."""

    def __init__(self, name: str, unable: str = "-", asked: Optional[list[str]] = None) -> None:
        self.name, self.unable, self.asked = name, unable, [] if asked is None else asked

    def ask(self, **request: Any) -> dict[str, Any]:
        self.asked.append(f"{self.name}: {request.get('case', request['do'])}")
        if self.unable in request.get("case", ""):
            raise UserError(f"worker {self.name}: time: MXNetError: no such type\nStack trace")
        return {"seconds": 0.5}

    def __enter__(self) -> Able:
        return self

    def __exit__(self, *_: object) -> None:
        return None


class Pretended(network_workers.Machines):
    """Machines whose workers are pretended."""

    unable: tuple[str, str] = ("-", "-")  # ours, PyTorch

    def ours(self, network: str) -> Any:
        return Able("ours", self.unable[0])

    def torch(self, network: str, weights: Optional[str] = None) -> Any:
        return Able("PyTorch", self.unable[1])


def pretended(ours: str, torch: str = "-") -> Any:
    machines = Pretended("", "", 1, Plan(1, 0, 0.0, repeat=1))
    object.__setattr__(machines, "unable", (ours, torch))
    return machines


def test_a_peak_that_cannot_be_computed_is_told() -> None:
    found = network_workers.measure_peak(pretended("bfloat16"), "resnet164")
    assert set(found["peak"]) == {f"float32/{name}" for name in ("ours", "nchw", "channels_last")}
    assert found["peak_left_out"] == {"bfloat16/ours": "ours: no such type"}
    page = markdown({**record_of(), **found})
    assert "GFLOP/s in float32, bfloat16/ours left out (ours: no such type)." in page
    found = network_workers.measure_peak(pretended("-", "nchw/peak_bfloat16"), "resnet164")
    assert found["peak_left_out"] == {"bfloat16/nchw": "PyTorch: no such type"}
    assert set(found["peak"]) >= {"bfloat16/ours", "bfloat16/channels_last"}
    found = network_workers.measure_peak(pretended("-"), "resnet164")
    assert found["peak_left_out"] == {}
    assert len(found["peak"]) == 6


def test_training_that_cannot_be_computed_is_a_row(in_folder: Path) -> None:
    table = Table(Config(networks=("resnet164",), modes=("train",)), KNOWN)
    pair = network_workers.Training(pretended("bfloat16"), "resnet164")
    for name in ("train fp32", "train bf16"):
        bench_networks.measure_row(table, pair, name, MODES[name])
    assert table.lacking() == (1, 0)
    cells = cells_of({**table.record, "macs": {"resnet164": 1}}, "train bf16")
    assert cells[2:5] == ["64", "left out: ours: no such type", "-"]
    assert len(cells) == len(cells_of({**table.record, "macs": {"resnet164": 1}}, "train fp32"))


def test_rows_of_the_graph_are_named_with_the_reason() -> None:
    row = row_of("train fp32", ours=1.0)
    row["how"] = {"steps": ["MXNet's own operators (no C++ compiler)"]}
    page = markdown(record_of(row))
    assert "- MXNet's own operators (no C++ compiler): resnet164/train fp32\n" in page
    row["how"] = {"steps": ["operators in C++ (units), float32"]}
    assert "MXNet's own operators" not in markdown(record_of(row))


def test_what_cannot_be_compiled_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(network_workers, "CACHED", str(tmp_path / "cached.json"))
    monkeypatch.setenv("ATTENTION_ISA", "")
    machines = network_workers.Machines("python", "", 1, Config().plan)
    todo = [(name, MODES[name]) for name in ("infer fp32, batch 1", "infer bf16, batch 1")]
    network_workers.warm_up(machines, Able("ours"), Able("PyTorch", "float32"), "resnet164", todo)
    assert "infer fp32, batch 1: not compiled, PyTorch: no such type" in capsys.readouterr().out
    assert not machines.has_compiled("resnet164", todo[0][1])
    bfloat16 = todo[1][1]
    assert machines.has_compiled("resnet164", bfloat16)
    # A row that ours cannot compute is not measured.
    torch = Able("PyTorch")
    todo = [("infer bf16, batch 128", MODES["infer bf16, batch 128"])]
    network_workers.warm_up(machines, Able("ours", "bfloat16"), torch, "resnet164", todo)
    assert "infer bf16, batch 128: not compiled, ours: no such type" in capsys.readouterr().out
    assert torch.asked == []
    # What was compiled for other instructions is no use.
    monkeypatch.setattr(network_workers, "instructions", lambda: "another")
    assert not machines.has_compiled("resnet164", bfloat16)


def test_a_row_that_fails_is_told_and_costs_no_other(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    out.write_text(json.dumps(record_of(row_of("infer bf16, batch 1", ours=1.0))))
    table = Table(Config(networks=("resnet164",), out=str(out)), KNOWN)

    class Pair(network_workers.Inference):
        def measure(self, mode: network_rows.Mode) -> network_workers.Measured:
            if mode.precision == "bfloat16":
                raise UserError("no such type\nTraceback")
            return {"ours": timing(0.1)}, None

    pair = Pair(network_workers.Machines("", "", 1, Config().plan), "resnet164", NO_ONE, NO_ONE)
    for name in ("infer bf16, batch 1", "infer fp32, batch 1"):
        bench_networks.measure_row(table, pair, name, MODES[name])
    page = markdown(json.loads(out.read_text()))
    assert "| resnet164 | infer bf16 | 1 | left out: no such type |" in page
    assert cells_of(table.record, "infer fp32")[3] == "100 (100 to 200)"
    table.add("resnet164", "infer bf16, batch 1", {"ours": timing(1.0)}, None)
    assert "left out" not in markdown(table.record)


@pytest.mark.parametrize("content", ["", "[]", '{"rows": 3}'])
def test_another_file_is_refused(content: str, tmp_path: Path) -> None:
    out = tmp_path / "other.json"
    out.write_text(content)
    with pytest.raises(UserError, match=r"other\.json is no file of this benchmark"):
        Table(Config(out=str(out)), KNOWN)
    assert out.read_text() == content


def test_unknown_modes_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        bench_networks.main(["--modes", "fly"])
    assert caught.value.code == 2
    assert "--modes fly; there is train fp32, train bf16" in capsys.readouterr().err


def test_compiled_is_measured_only_where_it_was_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network_workers, "CACHED", str(tmp_path / "cached.json"))
    mode = MODES["infer fp32, batch 1"]
    machines = network_workers.Machines("python", "", 1, Config().plan)
    asked: list[dict[str, Any]] = []

    class Torch:
        name = "PyTorch"

        def ask(self, **request: Any) -> dict[str, Any]:
            asked.append(request)
            return {}

    assert not machines.has_compiled("resnet164", mode)
    for _ in range(2):  # the second time there is nothing to do
        network_workers.warm_up(machines, Able("ours"), Torch(), "resnet164", [("name", mode)])
    assert [request["case"] for request in asked] == ["compiled/infer_float32_1"]
    assert machines.has_compiled("resnet164", mode)
    assert not machines.has_compiled("resnet164_ram", mode)


def test_sweeps_grow() -> None:
    for sweep in bench_scaling.SWEEPS:
        found = [point for point in bench_scaling.points() if point.sweep == sweep]
        work = [bench_scaling.macs(point.model, point.size) * point.batch for point in found]
        assert work == sorted(set(work))
