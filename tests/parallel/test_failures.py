"""A process that fails, is killed or hangs: what the others say, and that they end."""

import json
import os
import signal
import time
from typing import Any

import processes
import pytest
import torch
import torch.distributed as dist

from minigpt.cli import main
from minigpt.config import Config, RequestError, WorkError
from minigpt.parallel import failures
from minigpt.parallel.failures import ProcessesError, Watch, watched
from minigpt.parallel.launch import end_world, start_world
from minigpt.parallel.world import World

LOST = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4242")


@pytest.fixture
def store() -> dist.Store:
    return dist.HashStore()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "PATIENCE", 0.05)
    monkeypatch.setattr(failures, "EVERY", 0.02)


def watches(n: int, store: dist.Store) -> list[Watch]:
    """Of n processes, all of which have given a sign of life."""
    made = [Watch(World(rank=rank, size=n, step=7), 300.0, store) for rank in range(n)]
    for watch in made:
        watch._beat()
    return made


def test_the_first_failure_is_the_cause_of_all(store: dist.Store):
    first, second, third = watches(3, store)
    own = RequestError("data.train has no text")
    assert second.explain(own) is own
    assert first.explain(WorkError("the disk is full")).args == ("the disk is full",)
    for watch in (first, third):
        found = watch.explain(LOST)
        assert isinstance(found, RequestError)
        assert str(found) == "process 1 says: data.train has no text"


def test_an_error_that_nobody_foresaw_is_told_with_its_kind(store: dist.Store):
    first, second = watches(2, store)
    second.explain(IndexError("list index out of range\nand more"))
    assert str(first.explain(LOST)) == "process 1 says: IndexError: list index out of range"


def test_an_error_in_a_file_of_the_users_is_told_with_its_name(store: dist.Store, monkeypatch: pytest.MonkeyPatch):
    first, second = watches(2, store)
    monkeypatch.setattr(failures, "blamed", lambda error: "patience.py:7")
    second.explain(ValueError("boom"))
    assert str(first.explain(LOST)) == "process 1 says: patience.py:7: ValueError: boom"


def test_torchrun_does_not_end_who_is_ending_already(monkeypatch: pytest.MonkeyPatch, store: dist.Store):
    monkeypatch.setattr(failures, "Watch", lambda world, seconds: Watch(world, seconds, store))
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(RequestError), watched(World(size=2, ends_together=True), 300.0):
            raise RequestError("data.train has no text")
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_process_that_falls_silent_is_named(store: dist.Store):
    alive, _, _ = watches(3, store)
    alive.start()
    try:
        found = alive.explain(LOST)
    finally:
        alive.stop()
    assert isinstance(found, ProcessesError)
    assert str(found).startswith(
        "processes 1 and 2 are gone (killed, stopped, out of memory, or the machine is), last seen in step 7 at"
    )


def test_a_hang_is_reported_with_who_waits_where(store: dist.Store):
    some = watches(3, store)
    store.set("alive/1", json.dumps({"beat": 1, "step": 6, "where": "data.loader.next"}))
    assert "process 1 is in step 6 at data.loader.next; processes 0 and 2 are in step 7 at" in some[0]._who_waits()


@pytest.mark.parametrize("error", [RequestError("NCCL"), ValueError("gloo"), RuntimeError("shape mismatch")])
def test_errors_of_its_own_are_not_blamed_on_others(store: dist.Store, error: Exception):
    first, _ = watches(2, store)
    assert first.explain(error) is error


def test_a_lost_store_is_a_sentence(store: dist.Store):
    class Gone:
        def set(self, *_: Any) -> None:
            raise ConnectionError("Broken pipe")

        check = compare_set = get = set

    assert "connection to the machine of process 0 is lost" in str(Watch(World(size=2), 1.0, Gone()).explain(LOST))


def test_lines_say_which_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Any, capsys: pytest.CaptureFixture[str]):
    told = tmp_path / "error.json"
    for name, value in {"RANK": "1", "WORLD_SIZE": "4", "TORCHELASTIC_ERROR_FILE": str(told)}.items():
        monkeypatch.setenv(name, value)
    assert main(["train", "no-such-preset"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("minigpt[1]: ") and said.count("\n") == 1
    # what torchrun makes of it
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

    failure = ProcessFailure(1, 4242, 2, str(told))
    assert failure.message["message"] == said.removeprefix("minigpt[1]: ").rstrip("\n")
    assert failure.timestamp == pytest.approx(time.time(), abs=60)


def ending(how: str) -> str:
    """What a process says at its end, if process 1 ends or hangs."""
    world = start_world(Config.model_validate({"run": {"device": "cpu"}, "distributed": {"timeout_seconds": 3}}))
    try:
        with watched(world, 3):
            world.wait()
            world.step = 1
            if world.rank == 1:
                if how == "error":
                    raise WorkError("the disk is full")
                if how == "silence":
                    os._exit(0)
                time.sleep(12)
            world.wait()
    except WorkError as error:
        return str(error)
    return "no error"


def time_limits(mesh: dict[str, int]) -> list[float]:
    """Of every group of a process, in seconds."""
    limits = {"mesh": mesh, "timeout_seconds": 77}
    world = start_world(Config.model_validate({"run": {"device": "cpu"}, "distributed": limits}))
    assert world.control is not None
    groups = [world.control, *world.groups.values(), *(world.mesh.get_group(name) for name in mesh)]
    found = [group._get_backend(torch.device("cpu")).options._timeout.total_seconds() for group in groups]
    end_world(world)
    return found


def test_every_group_has_the_time_limit():
    for found in processes.run(2, __file__, "time_limits", {"fsdp": 2}):
        assert set(found) == {77}


def test_an_error_reaches_the_others():
    assert processes.run(2, __file__, "ending", "error") == ["process 1 says: the disk is full", "the disk is full"]


@pytest.mark.slow
def test_a_hang_ends():
    first, second = processes.run(2, __file__, "ending", "hang")
    assert "for 3 s" in first and "process 0 is in step 1 at parallel.world.wait" in first
    assert "process 1 is in step 1 at nowhere known" in first  # this file's sleep
    assert second.startswith("process 0 says: ") or "lost" in second
