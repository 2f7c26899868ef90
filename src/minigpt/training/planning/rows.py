"""The size of a micro-batch: as many rows as there is memory for, and on a CPU no more than make it faster."""

from typing import TYPE_CHECKING

from minigpt.config import Config
from minigpt.config.mesh import Sizes
from minigpt.model.count import count_parameters
from minigpt.training.planning.limits import available_memory

if TYPE_CHECKING:
    import torch

    from minigpt.training.planning.memory import Memory

CPU_TOKENS = 8192
"""More tokens at once make a CPU no faster, only the memory larger."""
USABLE = 0.92
"""Share of a device's memory that is planned with: the rest is for the driver, and for gaps between blocks."""
ALONE: Sizes = dict.fromkeys(("pp", "dp", "fsdp", "cp", "tp"), 1)
"""The mesh of one process."""


def fitting_rows(config: Config, device: "torch.device", shares: int = 1) -> int:
    """The micro-batch that `training.micro_batch=auto` stands for on this device: it divides the batch.

    shares: processes that the micro-batches of a step are spread over equally.
    """
    rows = cpu_rows(config, shares)
    free = available_memory(device)
    if free is None or (device.type == "cpu" and _rough_bytes(config, rows) < free / 2):
        return rows  # far from tight, and following a step takes two seconds
    mesh = config.distributed.mesh
    sizes = {"pp": mesh.pp, "dp": max(1, shares // mesh.fsdp), "fsdp": mesh.fsdp, "cp": mesh.cp, "tp": mesh.tp}
    below = rows + 1 if device.type == "cpu" else None
    return largest_rows(config, device.type, USABLE * free, sizes, below=below) or 1


def cpu_rows(config: Config, shares: int = 1) -> int:
    """The largest micro-batch of at most CPU_TOKENS tokens that divides the batch."""
    most = max(1, CPU_TOKENS // config.model.context_length)
    return max(size for size in _divisors(config, shares) if size <= most)


def largest_rows(
    config: Config, device: str, limit: float, sizes: Sizes = ALONE, below: int | None = None
) -> int | None:
    """The largest micro-batch that divides the batch and is estimated to take at most `limit` bytes of each device.

    sizes: of the mesh. below: only smaller ones. None: none fits.
    """
    rows = [d for d in _divisors(config, sizes["dp"] * sizes["fsdp"]) if below is None or d < below]
    known: dict[int, Memory] = {}

    def fits(index: int) -> bool:
        known[rows[index]] = memory_on(with_rows(config, rows[index]), device, sizes)
        return known[rows[index]].total <= limit

    if not rows or not fits(0):
        return None
    low, high, at = 0, len(rows), 1  # rows[low] fits, rows[high] does not, or there is none
    while at < high:
        if fits(at):
            low = at
        else:
            high = at
        if high - low <= 1:
            break
        # memory is nearly linear in the rows: the line through two points tells where it crosses the limit
        one, other = sorted(known)[-2:] if high == len(rows) else (rows[low], rows[high])
        slope = (known[other].total - known[one].total) / (other - one)
        most = one + (limit - known[one].total) / slope if slope > 0 else rows[-1]
        at = max([i for i in range(low + 1, high) if rows[i] <= most], default=low + 1)
    return rows[low]


def memory_on(config: Config, device: str, sizes: Sizes = ALONE) -> "Memory":
    """The memory of one process of a mesh, with the config's micro-batch."""
    from minigpt.training.planning.memory import estimate  # imports the compiler: only where it is needed
    from minigpt.training.planning.mesh import share

    rows = config.training.micro_batch
    assert isinstance(rows, int)
    return share(estimate(config, device), config, sizes, config.batch_rows // rows // (sizes["dp"] * sizes["fsdp"]))


def saves_amid(config: Config) -> bool:
    """Whether a checkpoint may be on its way to disk while training goes on."""
    checkpoint = config.checkpoint
    regular = checkpoint.every_steps is not None or checkpoint.every_minutes is not None
    return checkpoint.background and (regular or (checkpoint.best and config.evaluation.every_steps is not None))


def with_rows(config: Config, rows: int) -> Config:
    """The config with this micro-batch."""
    return config.model_copy(update={"training": config.training.model_copy(update={"micro_batch": rows})})


def _divisors(config: Config, shares: int) -> list[int]:
    rows = max(1, config.batch_rows // shares)
    return [size for size in range(1, rows + 1) if rows % size == 0]


def _rough_bytes(config: Config, rows: int) -> int:
    """An upper bound of what training takes, without following it: state, a copy of it, and what autograd keeps.

    After Korthikanti et al. 2022, section 4.1, with all in fp32 and every expert's inner layer.
    """
    model = config.model
    experts = (model.moe.n_expert_used + model.moe.n_shared) * model.expert_size if model.moe.n_expert else 0
    heads = 4 * model.n_head * max(model.query_size, model.value_size)
    scores = model.n_head * model.context_length  # of those attention kernels that keep them
    token = model.n_layer * (12 * model.n_embd + 2 * heads + 6 * max(model.inner_size, experts) + scores)
    return 28 * count_parameters(model) + 4 * rows * model.context_length * token + 2**30
