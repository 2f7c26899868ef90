"""The whole network and whole tensors where processes hold pieces of them: for whatever looks at a run."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minigpt.model import GPT
from minigpt.model.routing import Routers
from minigpt.parallel.exchange import whole_state, whole_tensors
from minigpt.parallel.parallel import Parallel
from minigpt.parallel.world import World

WORST_LOAD = "train/moe_max_load"
"""The metric that is not a mean over layers."""

if TYPE_CHECKING:
    from minigpt.training.trainer import Trainer


def whole_model(trainer: "Trainer") -> GPT | None:
    """The network on the main process, None on the others. Every process must call it.

    It is the one that is trained, or where that is spread over processes a copy of it on the CPU.
    """
    parallel, world = trainer.parallel, trainer.world
    if world.has_whole_network:
        return trainer.model if world.is_main else None
    state = {name: tensor.clone() for name, tensor in whole_state(parallel)}
    if not world.is_main:
        return None
    with torch.device("meta"):
        model = GPT(trainer.config.model)
    model.load_state_dict(state, assign=True)
    return model


def whole_of(parallel: Parallel, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Parameters, or what belongs to them (gradients), whole, by name on the main process; nothing on the others.

    Every process must call it and go to its end.
    """
    world = parallel.world
    if world.has_whole_network:
        yield from tensors.items() if world.is_main else ()
        return
    somewhere = {name for names in world.collect(list(tensors)) for name in names}
    names = [name for name in parallel.shapes if name in somewhere]
    yield from whole_tensors(world, parallel.parts, {n: parallel.local(t) for n, t in tensors.items()}, names)


def routing_metrics(world: World, routers: Routers) -> dict[str, float]:
    """`Routers.metrics`, of the experts of all pipeline stages. Every process must call it."""
    mine = routers.metrics()
    if world.sizes["pp"] == 1:
        return mine
    found = [(layers, metrics) for layers, metrics in world.collect((len(routers.layers), mine)) if metrics]
    total = sum(layers for layers, _ in found)
    means = {name: sum(n * metrics[name] for n, metrics in found) / total for name in (found[0][1] if found else {})}
    worst = {name: max(metrics[name] for _, metrics in found) for name in means if name == WORST_LOAD}
    return means | worst
