"""`minigpt train --nproc N`: what is started, and what is refused before anything is. The starting is faked."""

import logging
from collections.abc import Callable, Sequence

import pytest

from minigpt.cli import main


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, list[str]]]:
    """What was to be started; the status is 143."""
    calls: list[tuple[int, list[str]]] = []

    def run_processes(n: int, arguments: Sequence[str]) -> int:
        calls.append((n, list(arguments)))
        return 143

    monkeypatch.setattr("minigpt.parallel.nproc.run_processes", run_processes)
    monkeypatch.delenv("RANK", raising=False)
    return calls


LINE = ("train", "shakespeare-char", "data.train=x.txt", "training.micro_batch=1")


def test_the_same_request_is_started(run: Callable, started: list) -> None:
    found = run(*LINE, "--nproc=2", "--run-dir=my runs", "--resume=never", "--threads=3", "-q", "--no-wandb")
    assert (found.status, found.err) == (143, "")
    [(n, arguments)] = started
    assert n == 2
    said = {"loggers.console=quiet", "run.threads=3", "loggers.wandb.enabled=false"}
    assert set(arguments) == {"--run-dir=my runs", "--resume=never", "--", *LINE, *said}
    assert arguments[0] == "train"


def test_what_is_started_is_a_request_that_makes_sense(
    run: Callable, started: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(*LINE, "--nproc=4", "--quiet", "distributed.mesh={dp: 2, fsdp: 2}")
    [(_, arguments)] = started
    started.clear()
    at = arguments.index("--")
    assert main([*arguments[:at], "--nproc=4", *arguments[at:]]) == 143
    assert started == [(4, arguments)]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--nproc=3", "distributed.mesh.fsdp=2"], "needs a multiple of 2 processes, and this run has 3"),
        (["--nproc=1", "distributed.mesh.fsdp=2"], "needs 2 processes, and this run is one process"),
        (["--nproc=100000"], "is more processes than one machine of"),
        (["--nproc=2", "run.device=cuda:0"], "run.device=cuda:0 is one device"),
        (["--nproc=2", "distributed.mesh.tp=2", "model.n_head=3", "model.n_embd=96"], "model.n_head=3"),
    ],
)
def test_impossible_meshes_start_nothing(run: Callable, started: list, more: list[str], said: str) -> None:
    found = run(*LINE, *more)
    assert found.status == 2 and said in found.complaint
    assert started == []


def test_not_within_torchrun(run: Callable, started: list, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    found = run(*LINE, "--nproc=2")
    assert found.status == 2 and "torchrun has started this one" in found.complaint
    assert started == []


def test_a_number_that_is_none(run: Callable, started: list) -> None:
    assert run(*LINE, "--nproc=0").status == 2
    assert started == []


def test_of_several_processes_one_makes_the_dry_run(run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    found = run(*LINE, "--dry-run", "--json")
    assert (found.status, found.out, found.err) == (0, "", "")


@pytest.mark.parametrize(("exit_code", "status"), [(2, 2), (-9, 1)])
def test_torchrun_is_silent_and_a_killed_process_is_named(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], exit_code: int, status: int
) -> None:
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure, error_handler

    from minigpt.parallel.nproc import run_processes

    def failing(arguments: Sequence[str]) -> None:
        error_handler.logger.error("no error file defined for parent")
        raise ChildFailedError("minigpt", {1: ProcessFailure(1, 4242, exit_code, "no such file")})

    elastic = logging.getLogger("torch.distributed.elastic")
    monkeypatch.setattr(elastic, "propagate", True)
    monkeypatch.setattr(elastic, "handlers", [])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(torchrun, "main", failing)
    assert run_processes(2, ["train"]) == status
    said = "minigpt: process 1 was ended by SIGKILL, and with it the run\n" if status == 1 else ""
    assert capfd.readouterr().err == said
