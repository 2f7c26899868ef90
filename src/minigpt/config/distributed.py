"""Several processes: how the work of a run is spread over them."""

from typing import Literal

from pydantic import Field

from minigpt.config.base import Section


class MeshConfig(Section):
    """How many processes share what; their product is the number of processes."""

    dp: int | None = Field(None, ge=1)
    """Data parallel: copies of the model that train on different rows; null means what the others leave."""
    fsdp: int = Field(1, ge=1)
    """Sharded data parallel (FSDP2): weights, gradients and optimizer state are cut into so many parts as well."""
    tp: int = Field(1, ge=1)
    """Tensor parallel: each matrix is cut, and the rows' tokens are spread between the products."""
    pp: int = Field(1, ge=1)
    """Pipeline parallel: stages of consecutive blocks."""
    cp: int = Field(1, ge=1)
    """Context parallel: the tokens of a row are spread over so many processes."""


class DistributedConfig(Section):
    """Training on several processes, started by torchrun or --nproc."""

    mesh: MeshConfig = MeshConfig()
    """What the processes share."""
    reshard: bool = True
    """fsdp: free a block's gathered weights after its forward pass, and gather them again for the backward pass."""
    gather: Literal["fp32", "bf16"] = "fp32"
    """fsdp: gather weights as they are kept, which gives a single process's numbers, or rounded: half the traffic."""
    pipeline: Literal["1f1b", "gpipe"] = "1f1b"
    """pp: order of the micro-batches: one forward, one backward (less memory), or all forward, then all backward."""
    timeout_seconds: float = Field(300.0, gt=0)
    """How long a process waits for the others before the run ends with a report of who waits where."""
