"""Which parameters are matrices for Muon, where several matrices are stored as one, and who works on which."""

import math
from collections.abc import Iterable, Mapping, Sequence

from minigpt.config import ModelConfig

NOT_FOR_MUON = ("value_embed.weight", "value_gate.weight", "router.weight", "shared_gate.weight")
"""Of the blocks' matrices: tables, whose rows are read one by one, and projections to a few scores or gates."""


def for_muon(name: str, shape: Sequence[int]) -> bool:
    """Whether Muon moves this parameter unless optimizer.groups says otherwise: the blocks' linear maps of features."""
    stacked = len(shape) == 3 and ".experts." in name
    return name.startswith("blocks.") and (len(shape) == 2 or stacked) and not name.endswith(NOT_FOR_MUON)


def row_sections(name: str, rows: int, config: ModelConfig | None) -> tuple[int, ...]:
    """How many of the `rows` belong to each of the matrices that parameter `name` is made of, in their order.

    Queries, keys and values, gate and up, or a latent vector and the rotary key beside it, share one product for
    speed; as maps they are separate.
    """
    if name.endswith(("gate_up.weight", "experts.gate_up")):
        return (rows // 2, rows // 2)
    if config is not None and name.endswith("attention.qkv.weight"):
        kv = config.kv_heads * config.head_size
        return (config.n_head * config.head_size, kv, kv)
    if config is not None and name.endswith("attention.kv_down.weight"):
        return (config.latent.kv_rank, config.latent.rope_dim)
    return (rows,)


def cost(shape: Sequence[int], sections: Iterable[int]) -> int:
    """Of making the matrices of a parameter orthogonal, up to a factor: products with the smaller Gram matrix."""
    stack, columns = math.prod(shape[:-2]), shape[-1]
    return stack * sum(min(rows, columns) * rows * columns for rows in sections)


def owners(costs: Mapping[str, int], processes: int) -> dict[str, int]:
    """Which process works on which parameter: the dearest first, each to the one that has least to do so far."""
    load = [0] * processes
    found: dict[str, int] = {}
    for name in sorted(costs, key=lambda name: -costs[name]):  # stable: the same on every process
        found[name] = load.index(min(load))
        load[found[name]] += costs[name]
    return {name: found[name] for name in costs}
