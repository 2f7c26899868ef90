"""Joining and leaving the processes of a run, as `torchrun` starts them (or Slurm, or anything that sets the same
environment variables: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT).
"""

import os
import threading
from datetime import timedelta
from itertools import combinations, product
from typing import TYPE_CHECKING, Any

import torch

from minigpt.config import Config, RequestError, WorkError, resolved
from minigpt.config.mesh import refuse_mesh, settle_mesh
from minigpt.parallel.agreement import require_same
from minigpt.parallel.restarts import of_this_start
from minigpt.parallel.world import DIMENSIONS, World

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def start_world(config: Config) -> World:
    """Meet the other processes, if the environment speaks of any. Every process must call it; `end_world` at the end.

    Raises RequestError, on every process alike, if the mesh cannot be or their configs differ, and WorkError if the
    processes cannot meet.
    """
    rank, size, local_rank = (_number(name, default) for name, default in _VARIABLES.items())
    if size == 1:
        _settled_mesh(config, 1)
        return World()
    cuda = _uses_cuda(config, local_rank)
    _meet(config, rank, size, cuda)
    local_size = _number("LOCAL_WORLD_SIZE", size)
    world = World(rank=rank, size=size, local_rank=local_rank, local_size=local_size)
    timeout = timedelta(seconds=config.distributed.timeout_seconds)
    world.control = _all_over_gloo(timeout)
    try:
        require_same(world, resolved(config), "start all of them with the same config")
        world.sizes = _settled_mesh(config, size)
    except RequestError:
        end_world(world)
        raise
    coordinates = list(product(*(range(world.sizes[name]) for name in DIMENSIONS)))  # of each rank
    world.place = dict(zip(DIMENSIONS, coordinates[rank], strict=True))
    _make_groups(world, coordinates, cuda)
    _limit(world, timeout)
    return world


def _settled_mesh(config: Config, size: int) -> dict[str, int]:
    sizes = settle_mesh(config, size)
    if config.model.init_from is None:  # otherwise once that model's architecture is known
        refuse_mesh(config, sizes)
    return sizes


def _all_over_gloo(timeout: timedelta) -> "torch.distributed.ProcessGroup":
    """For what processes agree on."""
    import torch.distributed as dist

    return dist.new_group(backend="gloo", timeout=timeout)


def end_world(world: World) -> None:
    """Leave the others: after the last thing that is done together."""
    if world.size == 1:
        return
    import torch.distributed as dist

    if dist.is_initialized():
        world.wait()  # a process that is gone while others still talk to it takes them down with it
        dist.destroy_process_group()


def device_of(config: Config, world: World) -> str:
    """The device of this process, as `run.device` names one: of several processes on a machine each has its own."""
    if world.size > 1 and _uses_cuda(config, world.local_rank):
        return f"cuda:{world.local_rank}"
    return "cpu" if world.size > 1 else config.run.device


MARGIN_SECONDS = 1.0
"""How much longer than PyTorch itself to wait until it gives up."""

_VARIABLES = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise RequestError(f"the environment variable {name}={text} is no number: leave starting to torchrun")
    return int(text)


def _uses_cuda(config: Config, local_rank: int) -> bool:
    """Whether the processes compute on GPUs."""
    asked = config.run.device.startswith("cuda")
    if not asked and (config.run.device != "auto" or not torch.cuda.is_available()):
        return False
    here, there = _number("LOCAL_WORLD_SIZE", local_rank + 1), torch.cuda.device_count()
    if here > there:
        raise RequestError(
            f"{here} processes of this machine need a GPU each, and there are {there}: start fewer processes, or set "
            "run.device=cpu"
        )
    return True


def _meet(config: Config, rank: int, size: int, cuda: bool) -> None:
    """Make the group of all processes."""
    import torch.distributed as dist

    where = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
    timeout = timedelta(seconds=config.distributed.timeout_seconds)
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    try:
        store = _store(rank, size, timeout)
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            store = of_this_start(store, rank, size, timeout)
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    except ValueError as error:  # a variable that is missing
        raise RequestError(f"process {rank} of {size} does not know where to meet: {error}") from error
    except (dist.DistError, RuntimeError, TimeoutError) as error:
        taken = "EADDRINUSE" in str(error) or "address already in use" in str(error)
        hint = (
            "another program has that port: choose another (torchrun --master-port, or MASTER_PORT)"
            if taken
            else "are all of them started, and can they reach that machine and port?"
        )
        raise WorkError(f"process {rank} of {size} could not meet the others at {where}: {hint}") from error


def _store(rank: int, size: int, timeout: timedelta) -> Any:
    """Where the processes find each other."""
    from torch.distributed.rendezvous import rendezvous

    found: list[Any] = []
    errors: list[Exception] = []

    def connect() -> None:
        try:
            found.append(next(rendezvous("env://", rank, size, timeout=timeout))[0])
        except Exception as error:  # raised again below
            errors.append(error)

    # In a thread, since PyTorch waits without end for the answer of another program that listens on the port.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(timeout.total_seconds() + MARGIN_SECONDS)
    if errors:
        raise errors[0]
    if not found:
        raise RuntimeError("no answer")
    return found[0]


def _make_groups(world: World, coordinates: list[tuple[int, ...]], cuda: bool) -> None:
    """The groups of all dimensions, alone and together, of which this process is one."""
    from torch.distributed.device_mesh import init_device_mesh

    sizes = tuple(world.sizes[name] for name in DIMENSIONS)
    world.mesh = init_device_mesh("cuda" if cuda else "cpu", sizes, mesh_dim_names=DIMENSIONS)
    wide = {name for name in DIMENSIONS if world.sizes[name] > 1}
    made: dict[frozenset[str], ProcessGroup] = {}
    for n in range(1, len(DIMENSIONS) + 1):
        for names in combinations(DIMENSIONS, n):
            varied = frozenset(names) & wide
            if not varied:
                continue
            if varied not in made:
                made[varied] = _group(world, varied, coordinates)
            world.groups["+".join(names)] = made[varied]


def _limit(world: World, timeout: timedelta) -> None:
    """How long a message within a group may take: new groups take PyTorch's half an hour, not the whole one's."""
    from torch.distributed.distributed_c10d import _set_pg_timeout

    for group in {id(group): group for group in world.groups.values()}.values():
        _set_pg_timeout(timeout, group)


def _group(world: World, varied: frozenset[str], coordinates: list[tuple[int, ...]]) -> "ProcessGroup":
    """The processes that differ from this one in the dimensions `varied` alone."""
    import torch.distributed as dist

    if len(varied) == 1:
        alone: ProcessGroup = world.mesh.get_group(next(iter(varied)))
        return alone
    mine = coordinates[world.rank]
    fixed = [i for i, name in enumerate(DIMENSIONS) if name not in varied]
    ranks = [rank for rank, place in enumerate(coordinates) if all(place[i] == mine[i] for i in fixed)]
    if len(ranks) == world.size and dist.group.WORLD is not None:
        return dist.group.WORLD
    together: ProcessGroup = dist.new_group(ranks, use_local_synchronization=True)
    return together
