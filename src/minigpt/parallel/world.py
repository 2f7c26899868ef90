"""The processes of a run: who this one is, which groups it is in, and what all of them agree on.

Data travels by the device's backend (nccl or gloo); what is agreed on (losses, counts, requests to stop) by gloo, in
float64, summed in the order of the ranks, so that every process has the same bits.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

DIMENSIONS = ("pp", "dp", "fsdp", "cp", "tp")
"""Of the mesh, the outermost first: neighbours in the last ones talk most, so they are to be on one machine."""


@dataclass
class World:
    """One process's view. A run of one process has neither groups nor `torch.distributed`."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Among the processes of this machine."""
    local_size: int = 1
    """How many of them there are."""
    sizes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(DIMENSIONS, 1))
    """Of the mesh."""
    place: dict[str, int] = field(default_factory=lambda: dict.fromkeys(DIMENSIONS, 0))
    """This process's coordinates in the mesh."""
    groups: "dict[str, ProcessGroup]" = field(default_factory=dict)
    """By dimension, and by several as in "dp+cp": the processes that differ from this one in these alone."""
    control: "ProcessGroup | None" = None
    """All processes, over gloo."""
    mesh: Any = None
    """The `DeviceMesh` of torch, of the dimensions in `DIMENSIONS`."""
    step: int = 0
    """The step that is being made, for reports of who waits where."""
    ends_together: bool = False
    """Whether every process knows why the run ends, so that they can part in good order."""
    _waits: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this is the process that logs and writes."""
        return self.rank == 0

    @property
    def data_size(self) -> int:
        """How many processes (or groups of them) train on different rows."""
        return self.sizes["dp"] * self.sizes["fsdp"]

    @property
    def data_rank(self) -> int:
        """Which share of the rows is this process's: micro-batches number `data_rank`, + `data_size`, ... of a step."""
        return self.place["dp"] * self.sizes["fsdp"] + self.place["fsdp"]

    @property
    def counts_loss(self) -> bool:
        """Whether this process's part of the loss is one that no other process has as well."""
        return self.place["tp"] == 0 and self.place["pp"] == self.sizes["pp"] - 1

    @property
    def speaks(self) -> bool:
        """Whether this process is the one that counts the rows of those that train on the same ones."""
        return self.place["tp"] == self.place["pp"] == self.place["cp"] == 0

    @property
    def has_whole_network(self) -> bool:
        """Whether each process has the whole network to itself, and can compute with it alone."""
        return self.size == self.sizes["dp"]

    def group(self, *dimensions: str) -> "ProcessGroup | None":
        """The processes that differ from this one in these dimensions alone; None if that is this process alone."""
        if all(self.sizes[name] == 1 for name in dimensions):
            return None
        return self.groups["+".join(name for name in DIMENSIONS if name in dimensions)]

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sums over all processes, float64, the same bits everywhere. Every process must call it."""
        if self.size == 1:
            return [float(value) for value in values]
        import torch.distributed as dist

        mine = torch.tensor(list(values), dtype=torch.float64)
        all_values = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(all_values, mine, group=self.control)
        total = torch.zeros_like(mine)
        for one in all_values:
            total += one
        return [float(value) for value in total]

    def tell(self, value: Any) -> Any:
        """The main process's `value`, on every process."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def collect(self, value: Any) -> list[Any]:
        """Every process's `value`, in the order of the ranks, on every process."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            import torch.distributed as dist

            dist.barrier(group=self.control)

    def wait_long(self) -> None:
        """The same for work that may take hours: no message is under way meanwhile, whose time could be over."""
        if self.size == 1:
            return
        from torch.distributed.distributed_c10d import _get_default_store

        store = _get_default_store()
        self._waits += 1
        key, pause = f"minigpt/wait/{self._waits}", 0.001
        store.add(key, 1)
        while store.add(key, 0) < self.size:
            time.sleep(pause)
            pause = min(2 * pause, 0.25)
