"""The launcher of `dist_sync` workers: nothing is left behind, and messages say what to do."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Optional

import numpy as np
import pytest
from PIL import Image

from formats.digest import verify_digest
from formats.errors import UserError
from formats.param_file import read_params
from training.launch import __main__ as launcher
from training.launch import peers as launch_peers
from training.launch.__main__ import Supervisor, main, worker_command
from training.launch.peers import free_port, gather_machines, join_first_machine
from training.launch.processes import Crew, Ended
from training.loop.announce import python_word
from training.records.state_file import load_state

ROOT = Path(__file__).resolve().parents[3]
WAIT_SEC = 200.0  # for what takes seconds on a quiet machine


def eventually(found: Callable[[], Any], what: str) -> Any:
    end = time.monotonic() + WAIT_SEC
    while not (value := found()):
        assert time.monotonic() < end, f"no {what} within {WAIT_SEC} s"
        time.sleep(0.05)
    return value


def processes_of(mark: str) -> dict[int, dict[str, str]]:
    """Pid and environment of all running processes that have the variable MARK as `mark`."""
    found = {}
    for folder in Path("/proc").iterdir():
        try:
            words = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
            running = (folder / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
        except (OSError, IndexError):
            continue
        variables = dict(word.partition("=")[::2] for word in words if "=" in word)
        if variables.get("MARK") == mark and running:
            found[int(folder.name)] = variables
    return found


class Job:
    """A launcher with its workers; leaving the block kills whatever is left."""

    def __init__(self, command: list[str], mark: str) -> None:
        self.mark = mark
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "MARK": mark},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def worker(self, rank: int) -> Optional[int]:
        """Pid of a worker, as soon as it runs."""
        for pid, variables in processes_of(self.mark).items():
            known = variables.get("ATTENTION_RANK", variables.get("HOROVOD_RANK"))
            if known == str(rank) and variables.get("DMLC_ROLE", "worker") == "worker":
                return pid
        return None

    def end(self) -> tuple[int, str]:
        """Exit code and output, when it has ended by itself; nothing of it runs any more."""
        output, _ = self.process.communicate(timeout=WAIT_SEC)
        eventually(lambda: not processes_of(self.mark), "end of all processes")
        return self.process.returncode, output

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: Any) -> None:
        for pid in processes_of(self.mark):
            os.kill(pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()


# ------------------------------------------------------------------------------- a whole training


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: Any) -> Path:
    """A folder of small images of two classes."""
    root: Path = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for split, count in (("train", 10), ("test", 5)):
        for index, name in enumerate(("dark", "light")):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 128, (8, 8, 3)) + 100 * index
                image = Image.fromarray(pixels.astype(np.uint8))
                image.save(root / split / name / f"{number}.png")
    return root


def training_words(pictures: Path, run: Path) -> list[str]:
    """A training that takes long, saves often and is cheap."""
    words = f"--recipe quick --model resnet20_basic --depth 8 --dataset folder:{pictures} --pad 1"
    return (
        f"{words} --fused off --epochs 5000 -b 7 --checkpoint-minutes 1e-4 --run-dir {run}".split()
    )


def assert_checkpoint_is_good(run: Path) -> int:
    """Both files are whole; return the number of updates that are saved."""
    verify_digest(run / "last.param")
    assert all(np.isfinite(value).all() for value in read_params(run / "last.param").values())
    return load_state(run)[0].step


def test_a_killed_worker_ends_the_job_and_the_run_goes_on(pictures: Path, tmp_path: Path) -> None:
    run, launcher = tmp_path / "run", [sys.executable, "-m", "training.launch", "-n", "2", "--"]
    with Job([*launcher, *training_words(pictures, run)], str(run)) as job:
        code, output = killed(job, run)
    assert code == 128 + 9
    assert "error: worker 1 was ended by signal 9 (SIGKILL, as the system does when" in output
    assert f"start this command again with --resume {run} after --" in output
    step = assert_checkpoint_is_good(run)
    with Job([*launcher, "--resume", str(run)], str(run)) as job:
        code, output = stopped_after(job, run, step)
    assert code == 0, output
    assert f"saved; go on with: {python_word()} -m training.launch -n 2 -- --resume {run}" in output
    assert "warning" not in output
    assert assert_checkpoint_is_good(run) > step


def test_the_same_with_horovod(pictures: Path, tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("horovodrun")
    if not program.exists():
        pytest.skip("Horovod is not installed here: make test-distributed builds it")
    run, script = tmp_path / "run", [sys.executable, "train_cifar.py", "--distributed", "horovod"]
    launcher = [sys.executable, str(program), "-np", "2", "-H", "localhost:2", *script]
    with Job([*launcher, *training_words(pictures, run)], str(run)) as job:
        code, output = killed(job, run)
    assert code != 0
    assert "another worker of this training is no longer there" in output
    assert "Process 1 exit with status code" in output
    step = assert_checkpoint_is_good(run)
    with Job([*launcher, "--resume", str(run)], str(run)) as job:
        stopped_after(job, run, step)  # horovodrun gives its workers five seconds to save
    assert assert_checkpoint_is_good(run) > step


def killed(job: Job, run: Path) -> tuple[int, str]:
    """Kill the second worker in the middle of the training; what the launcher says."""
    eventually((run / "metrics.jsonl").exists, "epoch")
    os.kill(eventually(lambda: job.worker(1), "worker 1"), signal.SIGKILL)
    return job.end()


def step_of(run: Path) -> int:
    """Return the step of the checkpoint of a run that goes on; -1 while it is being replaced."""
    try:
        return load_state(run)[0].step
    except UserError:  # the old file beside the new digest
        return -1


def stopped_after(job: Job, run: Path, step: int) -> tuple[int, str]:
    """Ask the launcher to stop after further steps; what it says."""
    eventually(lambda: step_of(run) > step, "further checkpoint")
    job.process.send_signal(signal.SIGTERM)
    return job.end()


SLEEPER = "import time; time.sleep(600)"
PARENT = f"""
import subprocess, sys
subprocess.run([sys.executable, "-c", {SLEEPER!r}])
"""


# Only the launcher can end what a worker has started; when it is killed itself, Linux ends workers.
@pytest.mark.parametrize(("victim", "program"), [("launcher", SLEEPER), ("scheduler", PARENT)])
def test_nothing_outlives_the_job(tmp_path: Path, victim: str, program: str) -> None:
    (tmp_path / "sleeper.py").write_text(program)
    words = ["-n", "2", "--script", str(tmp_path / "sleeper.py"), "--"]
    with Job([sys.executable, "-m", "training.launch", *words], str(tmp_path)) as job:

        def of_role(role: str) -> list[int]:
            found = processes_of(str(tmp_path)).items()
            return [pid for pid, v in found if v.get("DMLC_ROLE") == role]

        count = 2 if program == SLEEPER else 4
        eventually(lambda: len(of_role("worker")) == count, "workers")
        pid = job.process.pid if victim == "launcher" else of_role("scheduler")[0]
        os.kill(pid, signal.SIGKILL)
        code, output = job.end()
    if victim == "scheduler":
        assert code == 128 + 9
        assert "error: scheduler was ended by signal 9" in output


WORKER = """
import os, pathlib, signal, sys, time
folder, code, *numbers = sys.argv[1:-2]
folder, rank = pathlib.Path(folder), os.environ["ATTENTION_RANK"]
def save(number, frame):
    (folder / f"saving-{rank}").touch()
    while not (folder / "go").exists():
        time.sleep(0.01)
    (folder / f"saved-{rank}").touch()
    sys.exit(int(code))
for number in numbers if rank == os.environ.get("SAVES", rank) else ():
    signal.signal(int(number), save)
(folder / f"begun-{rank}").touch()
time.sleep(600)
"""
HUP, INT, TERM = signal.SIGHUP, signal.SIGINT, signal.SIGTERM


@pytest.fixture
def harmless() -> Iterator[None]:
    """Signals to this process do nothing where nobody handles them; none is ignored."""
    old = {number: signal.signal(number, lambda *_: None) for number in (HUP, INT, TERM)}
    yield
    for number, handler in old.items():
        signal.signal(number, handler)


def supervised(
    folder: Path, signals: list[int], code: int, saves_at: list[int], workers: int = 1
) -> tuple[int, list[bool]]:
    """Run workers that save at some signals; what the launcher returns and tells the others.

    A second signal comes while the worker saves, which a single one does not keep it from.
    """
    (folder / "worker.py").write_text(WORKER)
    numbers = [str(int(number)) for number in saves_at]
    command = worker_command(str(folder / "worker.py"), [str(folder), str(code), *numbers])
    ends: list[bool] = []
    plan: Any = SimpleNamespace(
        first=0, servers=0, workers=workers, local=workers, first_rank=0, peers=[]
    )
    plan.variables = lambda _: {}
    plan.close = lambda done: ends.append(done)

    def send() -> None:
        eventually(lambda: len(list(folder.glob("begun-*"))) == workers, "workers")
        for number in signals:
            os.kill(os.getpid(), number)
            if saves_at:
                eventually(lambda: list(folder.glob("saving-*")), "beginning of a save")
        if signals != [INT, INT] and workers == 1:
            time.sleep(0.3)  # for the last signal to be handed on
            (folder / "go").touch()

    sender = threading.Thread(target=send)
    sender.start()
    try:
        return Supervisor(plan, command).run(), ends
    finally:
        sender.join()


@pytest.mark.parametrize(
    ("signals", "saves_at", "code", "wanted", "saved", "told"),
    [
        ([TERM], [TERM], 0, 0, True, ""),
        ([TERM, TERM], [TERM], 0, 0, True, ""),
        ([HUP], [HUP], 0, 0, True, ""),
        ([INT], [INT], 128 + INT, 128 + INT, True, ""),
        ([INT, INT], [INT], 128 + INT, 128 + INT, False, ""),
        ([TERM], [TERM], 2, 2, True, "error: worker 0 ended with exit code 2; what it said is"),
        ([TERM], [], 0, 128 + TERM, False, ""),
    ],
)
def test_signals_are_handed_on_and_the_code_says_whether_all_is_saved(
    signals: list[int],
    saves_at: list[int],
    code: int,
    wanted: int,
    saved: bool,
    told: str,
    tmp_path: Path,
    harmless: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found, ends = supervised(tmp_path, signals, code, saves_at)
    assert found == wanted
    assert (tmp_path / "saved-0").exists() == saved
    assert ends == [saved and not told]
    assert capsys.readouterr().err.startswith(told)


def test_a_worker_that_waits_for_one_that_is_gone_is_ended(
    tmp_path: Path, harmless: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal came before the training of one of them had begun."""
    monkeypatch.setattr(launcher, "GRACE_SEC", 0.5)
    monkeypatch.setenv("SAVES", "1")
    assert supervised(tmp_path, [TERM], 0, [TERM], workers=2) == (128 + TERM, [False])
    assert (tmp_path / "saving-1").exists()


def test_servers_outlive_a_signal_to_all_processes() -> None:
    code = launcher.SERVER.replace("import mxnet", "print('ready', flush=True); input()")
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        for number in (HUP, INT, TERM):
            server.send_signal(number)
        time.sleep(0.2)
        assert server.poll() is None
        server.communicate("\n")
    assert server.returncode == 0


def test_a_mistake_of_the_user_is_said_once(tmp_path: Path) -> None:
    words = ["-n", "2", "--", "--model", "resnet8_nothing", "--run-dir", str(tmp_path / "run")]
    with Job([sys.executable, "-m", "training.launch", *words], str(tmp_path)) as job:
        code, output = job.end()
    assert code == 2
    assert output.count("unknown model 'resnet8_nothing'") == 1
    assert "Traceback" not in output
    assert "ended with exit code 2; what it said is above" in output


# --------------------------------------------------------------------------------------- processes


def crew_of(*programs: str) -> Crew:
    crew = Crew()
    for index, program in enumerate(programs):
        crew.start(str(index), [sys.executable, "-c", program], {"WORD": "w"}, f"[{index}] ")
    return crew


def until_one_has_ended(crew: Crew) -> list[Ended]:
    return eventually(crew.step, "end of a process")


def test_output_is_handed_on_line_by_line(capfd: pytest.CaptureFixture) -> None:
    program = "import os, sys; print('a\\n\\nb\\r', os.environ['WORD'], end='', flush=True)"
    with crew_of(program, "import sys; sys.stderr.write('c'); sys.exit(3)") as crew:
        crew.wait(WAIT_SEC)
        assert sorted(crew.ended) == [Ended("0", 0), Ended("1", 3)]
    out, err = capfd.readouterr()
    assert out == "[0] a\n[0] b\n[0]  w\n"
    assert err == "[1] c\n"


def test_leaving_a_crew_kills_whole_groups() -> None:
    sleep = "import time; time.sleep(1000)"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {sleep!r}])"
    with crew_of(program) as crew:
        group = crew.running["0"].pid
        members = f"/proc/{group}/task/{group}/children"
        child = int(eventually(lambda: Path(members).read_text(), "child").split()[0])
    assert crew.ended == [Ended("0", -9)]

    def is_gone() -> bool:
        try:
            return Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
        except OSError:
            return True

    eventually(is_gone, "end of the child")


def test_how_an_end_is_told() -> None:
    assert str(Ended("worker 1", 2)) == "worker 1 ended with exit code 2"
    assert str(Ended("server 0", -15)) == "server 0 was ended by signal 15 (SIGTERM)"
    assert "when memory runs out" in str(Ended("worker 1", -9))


def test_a_program_that_is_not_there() -> None:
    with Crew() as crew, pytest.raises(UserError, match="cannot start nothing-here: No such file"):
        crew.start("a", ["nothing-here"], {})


# ----------------------------------------------------------------------------------- command lines


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_port_in_use(taken: int, capsys: pytest.CaptureFixture) -> None:
    assert main(["-n", "2", "--port", str(taken), "--"]) == 2
    message = capsys.readouterr().err
    assert f"--port {taken}: Address already in use" in message
    assert "name another, or leave --port out" in message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-n", "2", "--local", "3"], "-n 2 --local 3 --servers 1: give at least one server"),
        (["-n", "0"], "-n 0 --local 0"),
        (["-n", "2", "--servers", "0"], "--servers 0: give at least one server"),
        (["-n", "2", "--script", "nothing.py"], "--script nothing.py: there is no such file"),
        (["-n", "2", "--address", "192.0.2.1"], "must be one of this machine"),
        (["-n", "2", "--address", "no..where"], "must be one of this machine"),
        (
            ["-n", "2", "--local", "1", "--join", "a:9", "--port", "9", "--servers", "2"],
            "--port, --servers with --join: the first machine says that",
        ),
        (["-n", "2", "--local", "1", "--join", "host"], "--join host: give the first machine as"),
        (["-n", "2", "--local", "1", "--join", "no..where:9"], "Start the first machine's"),
        (["-n", "2", "--port", "99999"], "--port 99999"),
    ],
)
def test_a_wrong_command(words: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert main([*words, "--", "--epochs", "1"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_the_engine_is_named_for_the_worker() -> None:
    assert worker_command("train_cifar.py", ["--lr", "1"])[-3:] == [
        "1",
        "--distributed",
        "dist_sync",
    ]
    named = worker_command("train_cifar.py", ["--distributed=dist_sync"])
    assert named[-1] == "--distributed=dist_sync"
    with pytest.raises(UserError, match="leave --distributed out"):
        worker_command("train_cifar.py", ["--distributed", "horovod"])


# ---------------------------------------------------------------------------------- other machines


def listens(port: int) -> bool:
    """Return whether a process of this machine waits for others at a port."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return any(
        words[1].endswith(f":{port:04X}") and words[3] == "0A" for words in map(str.split, lines)
    )


def plans_of(total: int, first: int, others: list[tuple[int, int]]) -> list[Any]:
    """What the first machine and the others get: a plan, or the message of the error."""
    port = free_port("127.0.0.1")
    found: list[Any] = [None] * (1 + len(others))

    def run(place: int, action: Callable[[], Any]) -> None:
        try:
            found[place] = action()
        except UserError as error:
            found[place] = str(error)

    where = f"127.0.0.1:{port}"
    gather = lambda: gather_machines("127.0.0.1", port, total, first, 1)  # noqa: E731
    actions = [gather, *(lambda o=o: join_first_machine(where, *o) for o in others)]
    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(actions)]
    for number, thread in enumerate(threads):
        thread.start()
        if not number:
            eventually(lambda: listens(port), "the first machine")
        time.sleep(0.2)  # the machines come in order
    for thread in threads:
        thread.join(WAIT_SEC)
    return found


def test_machines_find_each_other_and_notice_an_end() -> None:
    first, *others = plans_of(4, 1, [(4, 2), (4, 1)])
    assert [plan.first_rank for plan in (first, *others)] == [0, 1, 3]
    assert [(plan.first, plan.servers, plan.all_servers) for plan in others] == [(0, 0, 1)] * 2
    assert len({plan.scheduler for plan in (first, *others)}) == 1
    variables = others[0].variables("worker")
    assert variables["DMLC_NUM_WORKER"] == "4"
    assert variables["DMLC_PS_ROOT_PORT"] == str(first.scheduler[1])
    others[0].close(done=True)
    others[1].close()
    assert [first.hear(peer) for peer in first.peers] == [b"done\n", None]
    first.close()


@pytest.mark.parametrize("victim", ["launcher", "worker"])
def test_the_end_of_one_machine_ends_the_others(tmp_path: Path, victim: str) -> None:
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    port = str(free_port("127.0.0.1"))
    words = ["-m", "training.launch", "-n", "2", "--local", "1"]
    places = (["--port", port], ["--join", f"127.0.0.1:{port}"])
    script = ["--script", str(tmp_path / "sleeper.py"), "--"]
    commands = [[sys.executable, *words, *place, *script] for place in places]
    marks = [str(tmp_path / name) for name in ("first", "second")]
    with Job(commands[0], marks[0]) as first, Job(commands[1], marks[1]) as second:
        eventually(lambda: first.worker(0), "worker of the first machine")
        pid = eventually(lambda: second.worker(1), "worker of the second machine")
        os.kill(pid if victim == "worker" else second.process.pid, signal.SIGKILL)
        told = second.end()[1]
        code, output = first.end()
    assert code == 1
    assert "error: the launcher on 127.0.0.1 is gone or has failed; all workers were" in output
    if victim == "worker":
        assert "error: worker 1 was ended by signal 9" in told


def test_machines_of_another_size_are_told() -> None:
    first, *others = plans_of(2, 1, [(3, 1), (2, 2), (2, 1)])
    assert "-n 3 there, -n 2 here; all machines need the same" in others[0]
    assert "--local 2, but only 1 of 2 workers are missing" in others[1]
    assert others[2].first_rank == 1
    for plan in (first, others[2]):
        plan.close()


def test_machines_that_do_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch_peers, "WAIT_SEC", 0.3)
    with pytest.raises(UserError, match=r"1 of 2 workers were there.*start the others with --join"):
        gather_machines("127.0.0.1", free_port("127.0.0.1"), 2, 1, 1)


def test_a_first_machine_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch_peers, "CONNECT_SEC", 0.1)
    port = free_port("127.0.0.1")
    with pytest.raises(UserError, match=rf"127.0.0.1:{port}: Connection refused. Start the first"):
        join_first_machine(f"127.0.0.1:{port}", 2, 1)
