"""How a run of several processes ends, from the real command line: every process says why, in one sentence."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import processes
import pytest
from safetensors.torch import load_file

import minigpt
from minigpt.parallel import failures

pytestmark = pytest.mark.slow

SMALL = [
    "shakespeare-char", "data.train=my.txt", "--run-dir=run", "model.n_embd=32", "model.n_layer=2", "model.dropout=0",
    "model.context_length=64", "training.batch_tokens=1024", "training.micro_batch=4", "evaluation.every_steps=null",
    "training.compile=false", "run.device=cpu", "run.threads=1", "loggers.every_steps=1", "--quiet",
]  # fmt: skip
SHORT, LONG = "training.max_steps=4", "training.max_steps=100000"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    text = "".join(f"{number} is followed by {number + 1}.\n" for number in range(4000))
    (tmp_path / "my.txt").write_text(text)
    return tmp_path


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `minigpt train` with SMALL and more words, as process `rank` of `size`; kills what is left in the end."""
    started: list[subprocess.Popen[str]] = []

    def begin(rank: int, size: int, port: int, *words: str, cwd: Path = folder) -> subprocess.Popen[str]:
        environment = environment_of(folder) | {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
        command = [sys.executable, "-m", "minigpt", "train", *SMALL, *words]
        started.append(subprocess.Popen(command, env=environment, cwd=cwd, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def pair(start: Callable[..., subprocess.Popen[str]]) -> Callable[..., list[subprocess.Popen[str]]]:
    """Starts two processes; `second`: what the second one is told besides."""

    def begin(*words: str, second: tuple[str, ...] = (), **more: Any) -> list[subprocess.Popen[str]]:
        port = processes.free_port()
        return [start(0, 2, port, *words), start(1, 2, port, *words, *second, **more)]

    return begin


def environment_of(folder: Path) -> dict[str, str]:
    source = str(Path(minigpt.__file__).parents[1])
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TORCHELASTIC", "MINIGPT"))}
    return kept | {"PYTHONPATH": source, "OMP_NUM_THREADS": "1", "MINIGPT_CACHE": str(folder / "cache")}


def ends(found: list[subprocess.Popen[str]], seconds: float = 60) -> list[tuple[int, str]]:
    """(exit status, the last line on stderr) of each; all within so many seconds."""
    deadline, results = time.monotonic() + seconds, []
    for process in found:
        _, said = process.communicate(timeout=max(0.1, deadline - time.monotonic()))
        assert "Traceback" not in said, said
        results.append((process.returncode, said.strip().rpartition("\n")[2]))
    return results


def wait_for_step(folder: Path, step: int) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        if any(json.loads(line).get("step", 0) >= step for line in lines_of(folder)):
            return
        time.sleep(0.1)
    raise TimeoutError(f"no step {step}")


def lines_of(folder: Path) -> list[str]:
    """The whole lines of metrics.jsonl."""
    file = folder / "run" / "metrics.jsonl"
    return file.read_text().split("\n")[:-1] if file.exists() else []


# ---- wrong requests --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["distributed.mesh.tp=3"], r"distributed.mesh=\{tp: 3\} needs 3 processes, and this run has 2"),
        (["distributed.mesh.pp=2", "model.n_layer=1"], "pp=2 is more stages than model.n_layer=1 has blocks"),
        (["data.train=missing.txt"], "missing.txt"),
        (["training.micro_batch=16"], "which 2 processes cannot share equally"),
    ],
)
def test_a_wrong_request(pair: Callable[..., Any], words: list[str], said: str):
    for rank, (status, line) in enumerate(ends(pair(*words, SHORT))):
        assert status == 2
        assert re.match(rf"minigpt\[{rank}\]: .*{said}", line), line


def test_other_configs_on_other_processes(pair: Callable[..., Any]):
    for status, line in ends(pair(SHORT, second=("optimizer.lr=0.5",))):
        assert status == 2
        assert "optimizer.lr" in line and "0.5" in line


def test_a_process_that_cannot_read_the_data(pair: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory):
    for status, line in ends(pair(SHORT, cwd=tmp_path_factory.mktemp("elsewhere"))):
        assert status == 2
        assert "my.txt" in line


def test_a_port_that_is_taken(start: Callable[..., Any]):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        [(status, line)] = ends([start(0, 2, other.getsockname()[1], SHORT)])
    assert status == 1
    assert "another program has that port" in line


def test_a_checkpoint_of_another_network(pair: Callable[..., Any], folder: Path):
    assert [status for status, _ in ends(pair(SHORT))] == [0, 0]
    for status, line in ends(pair("--resume=run", "--run-dir=other", SHORT, "model.n_embd=64")):
        assert status == 2
        assert "another network: model.n_embd is 32 there and 64 here" in line
    assert not (folder / "other").exists()


# ---- processes that end or hang --------------------------------------------------------------------------------------


def test_a_killed_process_ends_all(pair: Callable[..., Any], folder: Path):
    both = pair(LONG)
    wait_for_step(folder, 3)
    time.sleep(2 * failures.EVERY)  # until it has said that it is in some step
    both[1].kill()
    began = time.monotonic()
    [(status, line), _] = ends(both)
    assert time.monotonic() - began < 30
    assert status == 1
    assert re.match(r"minigpt\[0\]: process 1 is gone \(killed, .*\), last seen in step \d+ at ", line), line


def test_without_the_main_process_the_others_end(pair: Callable[..., Any], folder: Path):
    both = pair(LONG)
    wait_for_step(folder, 3)
    both[0].kill()
    [_, (status, line)] = ends(both)
    assert status == 1
    assert "process 0" in line, line


def test_a_hang_is_reported(pair: Callable[..., Any], folder: Path):
    both = pair(LONG, "distributed.timeout_seconds=4")
    wait_for_step(folder, 3)
    both[1].send_signal(signal.SIGSTOP)
    status, line = ends(both[:1])[0]
    both[1].kill()
    assert status == 1
    assert "process 1 is gone" in line, line


@pytest.mark.parametrize(("number", "rank"), [("SIGTERM", 1), ("SIGINT", 0), ("SIGUSR1", 1)])
def test_a_signal_to_one_process_saves_once(pair: Callable[..., Any], folder: Path, number: str, rank: int):
    both = pair(LONG, "checkpoint.every_steps=null", "checkpoint.every_minutes=null")
    wait_for_step(folder, 3)
    both[rank].send_signal(getattr(signal, number))
    expected = 130 if number == "SIGINT" else 143
    assert [status for status, _ in ends(both)] == [expected, expected]
    assert len(list((folder / "run" / "checkpoints").glob("step-*"))) == 1


# ---- torchrun and --nproc --------------------------------------------------------------------------------------------


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, env=environment_of(folder), capture_output=True, text=True,
        timeout=200,
    )  # fmt: skip


def children_of(process: subprocess.Popen[Any]) -> list[int]:
    return [int(number) for number in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def test_nproc_gives_the_status_and_the_sentence(folder: Path):
    found = run(folder, "minigpt", "train", "--nproc=2", *SMALL, SHORT, "data.train=missing.txt")
    assert found.returncode == 2
    assert found.stderr.count("missing.txt") == 2 and "Traceback" not in found.stderr


def test_nproc_passes_signals_on(folder: Path):
    command = [sys.executable, "-m", "minigpt", "train", "--nproc=2", *SMALL, LONG]
    process = subprocess.Popen(command, cwd=folder, env=environment_of(folder), stderr=subprocess.PIPE, text=True)
    wait_for_step(folder, 3)
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "Traceback" not in said
    assert len(list((folder / "run" / "checkpoints").glob("step-*"))) == 1


def test_torchrun_repeats_the_cause(folder: Path):
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "minigpt", "train")
    found = run(folder, *torchrun, *SMALL, SHORT, "data.train=missing.txt")
    assert found.returncode == 1
    cause = found.stderr[found.stderr.index("Root Cause") :]
    assert re.search(r"exitcode +: 2", cause)
    assert "missing.txt" in cause


def test_without_torchrun_the_processes_save_and_end(folder: Path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "minigpt"]
    words = [*command, "train", *SMALL, LONG, "checkpoint.every_steps=null", "checkpoint.every_minutes=null"]
    torchrun = subprocess.Popen(words, cwd=folder, env=environment_of(folder), stderr=subprocess.DEVNULL)
    wait_for_step(folder, 3)
    left = children_of(torchrun)
    torchrun.kill()
    torchrun.wait()
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{number}").exists() for number in left) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{number}").exists() for number in left)
    assert len(list((folder / "run" / "checkpoints").glob("step-*"))) == 1


def test_restarts_lose_no_token(folder: Path):
    steps = ("training.max_steps=60", "checkpoint.every_steps=7")
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=2", "-m", "minigpt"]
    assert run(folder, "minigpt", "train", "--nproc=2", *SMALL, *steps, "--run-dir=undisturbed").returncode == 0
    process = subprocess.Popen(
        [sys.executable, "-m", *torchrun, "train", *SMALL, *steps], cwd=folder, env=environment_of(folder),
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for_step(folder, 20)
    os.kill(children_of(process)[-1], signal.SIGKILL)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "is gone" in said
    model = [load_file(folder / name / "model" / "model.safetensors") for name in ("undisturbed", "run")]
    assert model[0].keys() == model[1].keys()
    assert all(model[0][name].equal(model[1][name]) for name in model[0])
    assert json.loads(lines_of(folder)[-1])["tokens"] == 60 * 1024
