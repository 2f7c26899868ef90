"""How much memory training takes at its peak, by part: from a training step that is followed, not done.

A step runs on fake tensors (`minigpt.training.planning.live`), after one that has made the optimizer's state. On a CPU
the process itself counts as well, and the copy of the state that is written to disk while training goes on.
"""

import os
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from minigpt.config import Config
from minigpt.model import GPT
from minigpt.optim import make_optimizer
from minigpt.optim.groups import parameter_groups
from minigpt.parallel.build import alone
from minigpt.training.planning.live import Storages, simulation
from minigpt.training.planning.rows import saves_amid
from minigpt.training.precision import DTYPES

PROCESS_BYTES = 300_000_000
"""Resident set of a process that has imported what training needs, where the system does not tell (torch 2.13)."""
CPU_WORK_BYTES = 78_000_000
"""What training adds to a process on a CPU besides tensors: threads, compiled kernels, text, logs. Measured."""
GAPS = 0.25
"""On a CPU, what the C library's allocator leaves between blocks, as a share of what is made and freed in a step."""
OVERLAP = 0.8
"""Share of a checkpoint's copy that is there at the peak of a step: it begins where activations were, and goes as it is
written. This and GAPS are fitted to measured runs (benchmarks/plan_memory.py)."""
CUDA_WORK_BYTES = 64 * 2**20
"""Two workspaces of cuBLAS, forward and backward, of the size that deterministic products need (:4096:8)."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one device at the moment of a run when most are in use."""

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    """What the backward pass needs, and what the pass is just working on."""
    logits: int = 0
    """The loss over the vocabulary: logits of a chunk, and the gradients that it gives."""
    copies: int = 0
    """On a CPU, the state of the checkpoint that is being written."""
    gaps: int = 0
    """On a CPU, between the blocks of the allocator."""
    communication: int = 0
    """Weights gathered and gradients exchanged between processes."""
    process: int = 0
    """The program itself: on a CPU all of the process; on a GPU what its libraries take."""

    @property
    def total(self) -> int:
        """Of all parts."""
        return sum(self.as_dict().values())

    def as_dict(self) -> dict[str, int]:
        """Bytes by part."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def estimate(config: Config, device: str, rows: int | None = None) -> Memory:
    """The memory of one process that trains alone with `rows` in a micro-batch (None: the config's).

    config: with `model.vocab_size`. device: cpu, or the kind of a GPU (cuda, mps), which need not be there.
    """
    resident = process_bytes() if device == "cpu" else 0  # before the simulation imports what training does not
    peak = simulate(config, device, cast(int, config.training.micro_batch) if rows is None else rows)
    if config.optimizer.ema_decay is not None:
        peak["optimizer"] += peak["weights"]  # their average
    if device != "cpu":
        return Memory(**peak, process=CUDA_WORK_BYTES)
    state = peak["weights"] + peak["optimizer"]
    copies = round(OVERLAP * state) if saves_amid(config) else 0
    gaps = round(GAPS * (peak["activations"] + peak["logits"]))
    return Memory(**peak, copies=copies, gaps=gaps, process=resident + CPU_WORK_BYTES)


def simulate(config: Config, device: str, rows: int) -> dict[str, int]:
    """Bytes of tensors by part (weights, gradients, optimizer, activations, logits) when most of them are alive."""
    with torch.device("meta"):
        model = GPT(config.model)
    model.train()
    plain = {"compile": False, "float8": False}  # compiled blocks keep a little less, and need minutes to be made
    held = alone(model, config.model_copy(update={"training": config.training.model_copy(update=plain)}))
    precision = DTYPES[config.training.precision]
    with simulation(on_gpu=device != "cpu") as books:
        _make_tensors(model)
        weights = {books.number(tensor) for tensor in [*model.parameters(), *model.buffers()]}
        groups = parameter_groups(model.named_parameters(), config.optimizer.weight_decay)
        optimizer = make_optimizer(groups, config.optimizer, held)
        _watch(model, books)
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter)
        optimizer.step(1.0)  # which makes its state
        if config.batch_rows == rows:  # otherwise the gradients of the micro-batches before are there
            optimizer.zero_grad()
        books.phase = "activations"
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            loss: Any = model(**_batch(config, rows))
        books.phase = "activations"
        (loss * 1.0).backward()
        loss = None
        gradients = {books.number(p.grad) for p in model.parameters() if p.grad is not None}
        optimizer.step(1.0)
        moments = {books.number(t) for state in optimizer.state.values() for t in state.values()}

        def part(number: int) -> str:
            for name, numbers in (("weights", weights), ("gradients", gradients), ("optimizer", moments)):
                if number in numbers:
                    return name
            return books.blocks[number].phase

        peak = books.peak(part)
    return {name: peak.get(name, 0) for name in ("weights", "gradients", "optimizer", "activations", "logits")}


@cache
def process_bytes() -> int:
    """Resident set of this process at the first call."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):  # not Linux
        return PROCESS_BYTES
    return pages * os.sysconf("SC_PAGE_SIZE")


def _make_tensors(model: nn.Module) -> None:
    """Give a model of the meta device tensors of the mode that is on."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                fake = torch.empty(parameter.shape, dtype=parameter.dtype)
                module._parameters[name] = nn.Parameter(fake, requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def _watch(model: GPT, books: Storages) -> None:
    """What is made after the last norm is the loss's."""
    model.norm.register_forward_hook(lambda *_: setattr(books, "phase", "logits"))


def _batch(config: Config, rows: int) -> dict[str, Tensor]:
    """A batch as the data gives it."""
    shape = rows, config.model.context_length
    batch = {name: torch.zeros(shape, dtype=torch.int64) for name in ("ids", "targets")}
    if config.data.document_mask:
        batch["document_ids"] = torch.zeros(shape, dtype=torch.int64)
        if not config.data.restart_positions:
            batch["positions"] = torch.zeros(shape, dtype=torch.int64)
    return batch
