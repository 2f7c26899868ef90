"""From a config and the processes to a model spread over them.

The order matters: a stage is cut out before its matrices are, hooks of tensor parallel are inside of what is compiled,
and FSDP's outside; only then is memory taken, so that no process ever holds the whole of a model that is cut.
"""

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from minigpt.config import Config
from minigpt.config.mesh import refuse_mesh
from minigpt.model import GPT
from minigpt.model.float8 import use_float8
from minigpt.parallel.parallel import Parallel
from minigpt.parallel.world import World
from minigpt.storage.parts import Part


def parallelise(config: Config, world: World, device: torch.device) -> Parallel:
    """The network of `config`, spread over the processes and compiled if it is to be. Its weights mean nothing yet.

    config: the resolved one. Raises RequestError if it cannot be trained on this mesh.
    """
    refuse_mesh(config, world.sizes)
    with torch.device("meta"):
        model = GPT(config.model)
    if world.size > 1:
        return _spread(model, config, world, device)
    _prepare(model, config)
    return Parallel(model.to_empty(device=device), world)


def alone(model: GPT, config: Config) -> Parallel:
    """A network that is on its device already, on one process."""
    _prepare(model, config)
    return Parallel(model)


@torch.no_grad()
def fill(parallel: Parallel, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Set the weights: each process takes its part of the whole tensors, which come one by one. Buffers become zero."""
    for buffer in parallel.model.buffers():
        buffer.zero_()
    own = parallel.model.state_dict()
    for name, whole in tensors:
        if name in own:
            local = parallel.local(own[name])
            local.copy_(parallel.parts[name].cut(whole))


def _spread(whole: GPT, config: Config, world: World, device: torch.device) -> Parallel:
    """The same on several processes. whole: the network on the meta device."""
    from minigpt.parallel import fsdp, replicated

    sizes, shapes = world.sizes, {name: tuple(tensor.shape) for name, tensor in whole.state_dict().items()}
    model, parts = whole, {name: Part.whole(shape) for name, shape in shapes.items()}
    cut: set[str] = set()
    summed: frozenset[str] = frozenset()
    if sizes["pp"] > 1:
        from minigpt.parallel.pipeline import Stage

        with torch.device("meta"):
            model = Stage(config.model, world.place["pp"], sizes["pp"])
        parts = dict(model.parts)
    if sizes["tp"] * sizes["cp"] > 1:
        from minigpt.parallel import context, tensor

        split = tensor.split(model, world)
        cut, summed = set(split.parts), split.summed
        for name, part in split.parts.items():
            parts[name] = replace(part, copy=parts[name].copy, copies=parts[name].copies)
        context.spread(model, world)
    _prepare(model, config)
    rows = {name for name, _ in model.named_parameters()} if sizes["fsdp"] > 1 else set()
    if rows:
        fsdp.shard(model, config.distributed, world)
    model.to_empty(device=device)
    parallel: Parallel
    if rows:
        parallel = fsdp.ShardedParallel(model, world, summed, reshard=config.distributed.reshard)
    elif sizes["pp"] > 1:  # which sums gradients after all passes
        parallel = replicated.SpreadParallel(model, world, summed)
    else:
        parallel = replicated.ReplicatedParallel(model, world, summed)
    parallel.shapes = shapes
    parallel.parts = {
        name: _here(part, world, cut_rows=name in rows, cut_matrix=name in cut) for name, part in parts.items()
    }
    if sizes["pp"] > 1:
        from minigpt.parallel.pipeline import PipelineParallel

        parallel = PipelineParallel(parallel, config.distributed.pipeline)
    return parallel


def _prepare(model: GPT, config: Config) -> None:
    """What the blocks do beside their equations."""
    model.set_checkpointing(config.training.activation_checkpointing)
    if config.training.float8:
        use_float8(model.blocks)
    if config.training.compile:
        stages = [len(steps) for steps in (config.schedule.context_length, config.schedule.window) if steps is not None]
        model.compile_blocks(stages=1 + sum(stages))


def _here(part: Part, world: World, *, cut_rows: bool, cut_matrix: bool) -> Part:
    """The part with FSDP's cut, and with the number of the processes that hold the same."""
    alike = ["dp", *([] if cut_rows else ["fsdp", "cp"]), *([] if cut_matrix else ["tp"])]
    copy, copies = part.copy, part.copies  # of the stages
    for name in alike:
        copy, copies = copy * world.sizes[name] + world.place[name], copies * world.sizes[name]
    part = replace(part, copy=copy, copies=copies)
    if cut_rows:
        from minigpt.parallel.fsdp import shard_part

        part = shard_part(part, world)
    return part
