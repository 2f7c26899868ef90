"""What a run would be, without running it: config, size, memory, time, and one batch as text."""

import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch

from minigpt.config import Config, config_yaml, resolved
from minigpt.config.mesh import settle_mesh
from minigpt.config.pace import Pace
from minigpt.model.count import (
    backward_flops_per_token,
    count_parameters,
    flops_per_token,
    forward_flops_per_token,
    kv_cache_bytes_per_token,
)
from minigpt.objectives import stack, valid_targets
from minigpt.parallel.world import World
from minigpt.training.console import amount, duration
from minigpt.training.planning.rows import memory_on
from minigpt.training.precision import autocast
from minigpt.training.setup import Parts, assemble

SHOWN_ROWS = 2
TIMED = 5  # micro-batches


@dataclass(frozen=True)
class DryRun:
    """The estimate of a run."""

    config: Config
    parameters: int
    active_parameters: int
    """Those that one token meets: not all, in a mixture of experts."""
    flops_per_token: int
    """To train on it, forward and backward."""
    forward_flops_per_token: int
    backward_flops_per_token: int
    kv_cache_bytes_per_token: int
    """By which a row's cache grows with a token in generation, in the numbers of `training.precision`."""
    memory_bytes: int
    """Weights, gradients, optimizer state and activations, of each process: an estimate."""
    processes: int
    steps: int
    tokens: int
    seconds: float
    """Training time, from a few measured micro-batches; several processes are each taken to be as fast as one alone."""
    batch_text: str
    """The first rows of the first batch, decoded."""

    @property
    def config_yaml(self) -> str:
        """The resolved config."""
        return config_yaml(self.config)

    @property
    def lines(self) -> list[str]:
        """The estimate for people."""
        active = f", {amount(self.active_parameters)} active" if self.active_parameters != self.parameters else ""
        forward, backward = amount(self.forward_flops_per_token), amount(self.backward_flops_per_token)
        return [
            f"parameters {self.parameters:,} ({amount(self.parameters)}{active})",
            f"arithmetic {amount(self.flops_per_token)}FLOP a token (forward {forward}, backward {backward}), "
            f"{amount(self.flops_per_token * self.tokens)}FLOP in all",
            f"memory     about {amount(self.memory_bytes)}B{' a process' if self.processes > 1 else ''}; generating, "
            f"{amount(self.kv_cache_bytes_per_token)}B of cache a token",
            f"length     {self.steps:,} steps, {self.tokens:,} tokens",
            f"time       about {duration(self.seconds)}, without evaluations"
            + (f", if each of {self.processes} processes is as fast as one alone" if self.processes > 1 else ""),
        ]

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "config": resolved(self.config),
            "parameters": self.parameters,
            "active_parameters": self.active_parameters,
            "flops_per_token": self.flops_per_token,
            "forward_flops_per_token": self.forward_flops_per_token,
            "backward_flops_per_token": self.backward_flops_per_token,
            "kv_cache_bytes_per_token": self.kv_cache_bytes_per_token,
            "memory_bytes": self.memory_bytes,
            "processes": self.processes,
            "steps": self.steps,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "batch": self.batch_text,
        }


def dry_run(config: Config, processes: int = 1) -> DryRun:
    """Settle the config, open the data, and measure one micro-batch. Writes no run folder (the cache is filled)."""
    sizes = settle_mesh(config, processes)
    parts = assemble(config, world=World(sizes=sizes))
    config = parts.config
    parameters = count_parameters(config.model)
    rows = config.training.micro_batch
    assert isinstance(rows, int)
    total = Pace(config).first_row(parts.max_steps + 1)  # rows of all steps
    seconds = _micro_batch_seconds(parts, rows) * total / rows / processes
    return DryRun(
        config=config,
        parameters=parameters,
        active_parameters=count_parameters(config.model, active=True),
        flops_per_token=flops_per_token(config.model),
        forward_flops_per_token=forward_flops_per_token(config.model),
        backward_flops_per_token=backward_flops_per_token(config.model),
        kv_cache_bytes_per_token=kv_cache_bytes_per_token(
            config.model, 4 if config.training.precision == "fp32" else 2
        ),
        memory_bytes=memory_on(config, parts.device.type, sizes).total,
        processes=processes,
        steps=parts.max_steps,
        tokens=total * config.model.context_length,
        seconds=seconds,
        batch_text=_first_rows(parts),
    )


def _micro_batch_seconds(parts: Parts, rows: int) -> float:
    """Time of a forward and a backward pass: the median of a few, after one that warms up."""
    model, objective = parts.model(), parts.objective()
    parts.initialise(model)
    batch = stack([objective.row(i) for i in range(rows)])
    batch = {name: tensor.to(parts.device) for name, tensor in batch.items()}
    seconds = []
    for _ in range(TIMED + 1):
        began = time.perf_counter()
        with autocast(parts.config.training.precision, parts.device):
            loss, count, _ = objective.training_step(model, batch)
        (loss / count).backward()
        if parts.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


def _first_rows(parts: Parts) -> str:
    objective = parts.objective()
    rows = range(min(SHOWN_ROWS, parts.config.batch_rows))
    texts = []
    for number in rows:
        row = objective.row(number)
        kept = valid_targets(stack([row]))
        texts.append(
            f"row {number}, {kept} targets: {parts.tokenizer.decode([*row['ids'].tolist(), int(row['targets'][-1])])!r}"
        )
    return "\n".join(texts)
