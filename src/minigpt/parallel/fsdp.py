"""Sharded data parallel: PyTorch's FSDP2 (`fully_shard`; Zhao et al. 2023, arXiv:2304.11277; ZeRO, Rajbhandari et al.
2020). Weights, gradients and optimizer state are cut by rows over the processes, and a block's weights are gathered
just before it computes. With a data-parallel dimension besides (HSDP), each of its copies is sharded alike.

Context-parallel processes have the same weights and other tokens, so weights are sharded over them as well.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from minigpt.config.distributed import DistributedConfig
from minigpt.model import GPT
from minigpt.parallel.parallel import Batch, Pass
from minigpt.parallel.replicated import SpreadParallel
from minigpt.parallel.world import DIMENSIONS, World
from minigpt.storage.parts import Part


def shard(model: GPT, config: DistributedConfig, world: World) -> None:
    """Cut the weights of each block, and the rest together; the model may be on the meta device."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = _mesh(world)
    kept = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    rounded = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in model.blocks:
        policy = rounded if config.gather == "bf16" else kept
        fully_shard(block, mesh=mesh, reshard_after_forward=config.reshard, mp_policy=policy)
    # the embedding and the head's matrix stay as they are kept: the residual stream has their width
    fully_shard(model, mesh=mesh, mp_policy=kept)
    for module in _sharded_modules(model):  # gradients are summed, not averaged
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)


def shard_part(part: Part, world: World) -> Part:
    """The rows that FSDP leaves this process of its part: as `torch.chunk` cuts them, the last ones may be empty."""
    rows, shards, number = part.local[0], _shards(world), _shard_number(world)
    size = -(-rows // shards)
    return part.rows(min(rows, number * size), min(rows, (number + 1) * size))


class ShardedParallel(SpreadParallel):
    """A model that `shard` has cut."""

    def __init__(self, model: GPT, world: World, summed: frozenset[str] = frozenset(), *, reshard: bool = True) -> None:
        super().__init__(model, world, summed)
        self.reshard = reshard
        self._fsdp: Any = model  # `fully_shard` gives it the class FSDPModule besides
        self._sharded = _sharded_modules(model)

    @contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        """Gradients are cut and summed in each backward pass, over the copies (HSDP) in the last one only."""
        self._fsdp.set_is_last_backward(last)
        self._fsdp.set_requires_all_reduce(last)
        self._fsdp.set_reshard_after_backward(last or self.reshard)
        yield

    def forward(self, numbers: Sequence[int], batches: Sequence[Batch], run: Pass) -> Tensor:
        """The sum of the losses without gradients."""
        total = super().forward(numbers, batches, run)
        for module in self._sharded:  # what the backward pass does otherwise
            module.reshard()
        return total

    def local(self, tensor: Tensor) -> Tensor:
        """The rows on this process."""
        from torch.distributed.tensor import DTensor

        return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _sharded_modules(model: GPT) -> list[Any]:
    """The blocks and the model itself."""
    from torch.distributed.fsdp import FSDPModule

    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def _shards(world: World) -> int:
    return world.sizes["fsdp"] * world.sizes["cp"]


def _shard_number(world: World) -> int:
    return world.place["fsdp"] * world.sizes["cp"] + world.place["cp"]


def _mesh(world: World) -> Any:
    """The processes with the same stage and the same cut of the matrices: (shards), or with copies (dp, shards)."""
    from torch.distributed.device_mesh import DeviceMesh

    shards, copies = world.group("fsdp", "cp"), world.group("dp")
    assert shards is not None
    kind = world.mesh.device_type
    if copies is None:
        return DeviceMesh.from_group(shards, kind, mesh_dim_names=("shard",))
    place = tuple(slice(None) if name in ("dp", "fsdp", "cp") else world.place[name] for name in DIMENSIONS)
    ranks = world.mesh.mesh[place].reshape(world.sizes["dp"], -1)
    return DeviceMesh.from_group([copies, shards], kind, mesh=ranks, mesh_dim_names=("copy", "shard"))
