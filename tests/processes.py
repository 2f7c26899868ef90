"""Runs a function of a test file on several processes that know each other, as torchrun would start them.

The processes are forked from a server that has imported PyTorch already, so that starting them takes no three seconds
each. Each has one thread.
"""

import importlib.util
import multiprocessing
import os
import queue
import socket
import time
import traceback
from typing import Any

SECONDS = 120.0


def run(n: int, file: str, function: str, *args: Any, seconds: float = SECONDS, **env: str) -> list[Any]:
    """What `function(*args)` of the Python file `file` returns in each of `n` processes, by rank.

    The arguments and what comes back must be picklable (tensors are, as numpy arrays). RANK, WORLD_SIZE, LOCAL_RANK,
    MASTER_ADDR and MASTER_PORT are set, and `env` besides. An exception in one process ends all and is raised here.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["minigpt.training", "minigpt.parallel.build", "torch.distributed.fsdp"])
    results: Any = context.Queue()
    port = free_port()
    environment = {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)} | dict(env)
    if "MINIGPT_CACHE" in os.environ:
        environment["MINIGPT_CACHE"] = os.environ["MINIGPT_CACHE"]
    started = [
        context.Process(target=_child, args=(rank, n, file, function, args, environment, results), daemon=True)
        for rank in range(n)
    ]
    for process in started:
        process.start()
    found: dict[int, Any] = {}
    deadline = time.monotonic() + seconds
    try:
        while len(found) < n:
            try:
                rank, value, error = results.get(timeout=0.2)
            except queue.Empty:
                dead = [r for r, process in enumerate(started) if r not in found and process.exitcode not in (None, 0)]
                if dead and results.empty():
                    raise RuntimeError(f"process {dead[0]} ended with {started[dead[0]].exitcode}") from None
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{n - len(found)} of {n} processes did not end in {seconds} s") from None
                continue
            if error is not None:
                raise RuntimeError(f"process {rank}:\n{error}")
            found[rank] = value
    finally:
        for process in started:
            process.join(2 if len(found) == n else 0)
            process.kill()
    return [found[rank] for rank in range(n)]


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _child(
    rank: int, n: int, file: str, function: str, args: tuple[Any, ...], env: dict[str, str], results: Any
) -> None:
    try:
        os.environ.update(env, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(n), LOCAL_WORLD_SIZE=str(n))
        import torch

        torch.set_num_threads(1)
        spec = importlib.util.spec_from_file_location("worker_of_a_test", file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        results.put((rank, getattr(module, function)(*args), None))
    except BaseException:
        results.put((rank, None, traceback.format_exc()))
