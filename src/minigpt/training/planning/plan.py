"""`minigpt plan`: what a run would take, from its config alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from minigpt.config import Config, RequestError
from minigpt.config.hardware import PRICE_DATE, TYPICAL_MFU, Machines, find_gpu
from minigpt.config.mesh import refuse_mesh, settle_mesh
from minigpt.config.pace import Pace
from minigpt.inference import pick_device
from minigpt.model.count import count_parameters, flops_per_token, forward_flops_per_token, kv_cache_bytes_per_token
from minigpt.training.console import amount, duration
from minigpt.training.extensions import settle_extensions
from minigpt.training.network import settle_network
from minigpt.training.planning import advice
from minigpt.training.planning.limits import available_memory
from minigpt.training.planning.memory import Memory, process_bytes
from minigpt.training.planning.rows import ALONE, USABLE, fitting_rows, largest_rows, memory_on, with_rows
from minigpt.training.setup import steps_of
from minigpt.training.telemetry import peak_flops
from minigpt.training.tokenizers import make_tokenizer

VOCABULARIES = {"gpt2": 50257, "r50k_base": 50257, "p50k_base": 50281, "cl100k_base": 100277, "o200k_base": 200019}
"""Token ids of the ready-made encodings, which need not be downloaded to be counted."""


@dataclass(frozen=True)
class Estimate:
    """A run on certain hardware."""

    hardware: str
    devices: int
    mesh: dict[str, int]
    micro_batch: int
    memory: Memory
    """Of one device."""
    limit: float | None
    """What a device has, in bytes; None if the system does not tell."""
    peak_flops: float | None
    """Of one device, in the config's arithmetic."""
    seconds: float | None
    """Of the whole run; None where its length or the peak is not known."""
    price: float | None
    """Dollars."""
    changes: list[str]
    """What to set so that it fits, if it does not."""

    @property
    def fits(self) -> bool:
        """Whether the memory is enough."""
        return self.limit is None or self.memory.total <= USABLE * self.limit


@dataclass(frozen=True)
class Plan:
    """What a run takes."""

    config: Config
    parameters: int
    active_parameters: int
    """Those that one token meets."""
    non_embedding_parameters: int
    flops_per_token: int
    """To train on it: three times the forward pass. Of the model: what is computed twice to spare memory counts once.
    """
    forward_flops_per_token: int
    kv_cache_bytes_per_token: int
    steps: int | None
    """None: the length of the text is needed to know it."""
    tokens: int | None
    mfu: float
    estimates: list[Estimate]

    @property
    def lines(self) -> list[str]:
        """For people."""
        active = f", {amount(self.active_parameters)} active" if self.active_parameters != self.parameters else ""
        length = self.config.model.context_length
        lines = [
            f"parameters {self.parameters:,} ({amount(self.parameters)}{active}); "
            f"{amount(self.non_embedding_parameters)} without embeddings",
            f"arithmetic {amount(self.flops_per_token)}FLOP a token (forward {amount(self.forward_flops_per_token)})"
            + (f", {amount(self.flops_per_token * self.tokens)}FLOP in all" if self.tokens is not None else ""),
        ]
        if self.tokens is None or self.steps is None:
            lines.append("tokens     not known before the text is read: give training.max_tokens or training.max_steps")
        else:
            lines.append(
                f"tokens     {amount(self.tokens)} in {self.steps:,} steps; "
                + advice.on_tokens(self.parameters, self.tokens)
            )
        cache = self.kv_cache_bytes_per_token
        lines.append(
            f"cache      {amount(cache)}B a token in generation, {amount(cache * length)}B a row of {length:,}"
        )
        for one in self.estimates:
            lines += ["", *self._lines_of(one)]
        return lines

    def _lines_of(self, one: Estimate) -> list[str]:
        split = {name: size for name, size in one.mesh.items() if size > 1}
        mesh = f", mesh {{{', '.join(f'{name}: {size}' for name, size in split.items())}}}" if split else ""
        of = "" if one.limit is None else f" of {amount(one.limit)}B"
        parts = ", ".join(f"{name} {amount(size)}B" for name, size in one.memory.as_dict().items() if size)
        lines = [
            f"{one.hardware}: micro-batch {one.micro_batch} ({self.config.training.precision}){mesh}",
            f"memory     {amount(one.memory.total)}B{of} a device: {parts}",
        ]
        if not one.fits:
            change = " and ".join(one.changes) or "a smaller model"
            lines.append(f"           does not fit: set {change}")
        if one.seconds is not None and one.peak_flops is not None:
            lines.append(
                f"time       {duration(one.seconds)} at {self.mfu:.0%} of {amount(one.peak_flops)}FLOP/s a device"
            )
        if one.price is not None and one.seconds is not None:
            rate = one.price / (one.seconds / 3600) / one.devices
            lines.append(f"price      ${one.price:,.2f} at ${rate:.2f} an hour and GPU (prices of {PRICE_DATE})")
        return lines

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "parameters": self.parameters,
            "active_parameters": self.active_parameters,
            "non_embedding_parameters": self.non_embedding_parameters,
            "flops_per_token": self.flops_per_token,
            "forward_flops_per_token": self.forward_flops_per_token,
            "kv_cache_bytes_per_token": self.kv_cache_bytes_per_token,
            "steps": self.steps,
            "tokens": self.tokens,
            "tokens_per_parameter": None if self.tokens is None else self.tokens / self.parameters,
            "mfu": self.mfu,
            "estimates": [
                {
                    "hardware": one.hardware,
                    "devices": one.devices,
                    "mesh": one.mesh,
                    "micro_batch": one.micro_batch,
                    "memory_bytes": one.memory.total,
                    "memory": one.memory.as_dict(),
                    "limit_bytes": one.limit,
                    "fits": one.fits,
                    "changes": one.changes,
                    "peak_flops": one.peak_flops,
                    "seconds": one.seconds,
                    "price": one.price,
                }
                for one in self.estimates
            ],
        }


def plan(config: Config, gpus: Sequence[Machines] = (), mfu: float = TYPICAL_MFU, price: float | None = None) -> Plan:
    """Plan a run on each of `gpus`, or, without them, on this machine.

    mfu: model FLOPs utilisation: the share of the peak that training reaches. price: dollars an hour and GPU instead of
    the listed ones. The text is read only where the size of its vocabulary depends on it. Raises RequestError for a
    config that cannot be trained so.
    """
    process_bytes()  # before anything else grows it
    config = with_vocabulary(settle_extensions(settle_network(config)))
    steps = _steps(config)
    tokens = None if steps is None else Pace(config).tokens_before(steps + 1)
    wanted = [_on_gpus(config, machines, tokens, mfu, price) for machines in gpus]
    return Plan(
        config=config,
        parameters=count_parameters(config.model),
        active_parameters=count_parameters(config.model, active=True),
        non_embedding_parameters=count_parameters(config.model, embeddings=False),
        flops_per_token=flops_per_token(config.model),
        forward_flops_per_token=forward_flops_per_token(config.model),
        kv_cache_bytes_per_token=kv_cache_bytes_per_token(
            config.model, 4 if config.training.precision == "fp32" else 2
        ),
        steps=steps,
        tokens=tokens,
        mfu=mfu,
        estimates=wanted or [_here(config, tokens, mfu, price)],
    )


def with_vocabulary(config: Config) -> Config:
    """The config with `model.vocab_size`: from the tokenizer's name if it says so, else from the tokenizer itself."""
    if config.model.vocab_size is not None:
        return config
    tokenizer = config.tokenizer
    if tokenizer.kind in ("bpe", "unigram", "sentencepiece-bpe"):
        size = tokenizer.vocab_size
    elif tokenizer.kind in ("gpt2", "tiktoken"):
        size = VOCABULARIES[tokenizer.encoding if tokenizer.kind == "tiktoken" else "gpt2"]
    else:
        if tokenizer.kind == "char" and config.data.train is None:
            raise RequestError(
                "how many characters there are depends on the text: give data.train, or model.vocab_size"
            )
        size = make_tokenizer(config).vocab_size
    return config.model_copy(update={"model": config.model.model_copy(update={"vocab_size": size})})


def _steps(config: Config) -> int | None:
    """Steps of the run; None if that takes reading the text."""
    training = config.training
    if training.max_steps is None and training.max_tokens is None and training.epochs is not None:
        return None
    return steps_of(config, None)


def _on_gpus(config: Config, machines: Machines, tokens: int | None, mfu: float, price: float | None) -> Estimate:
    gpu, count = machines.gpu, machines.count
    sizes = settle_mesh(config, count)
    if isinstance(config.training.micro_batch, int):
        refuse_mesh(config, sizes)
    rows = config.training.micro_batch
    if not isinstance(rows, int):
        rows = largest_rows(config, "cuda", USABLE * gpu.memory, sizes) or 1
        config = with_rows(config, rows)
        refuse_mesh(config, sizes)
    return _estimate(
        config, str(machines), sizes, "cuda", gpu.memory, gpu.peak(config.training.precision, config.training.tf32),
        tokens, mfu, gpu.price if price is None else price,
    )  # fmt: skip


def _here(config: Config, tokens: int | None, mfu: float, price: float | None) -> Estimate:
    device = pick_device(config.run.device)
    mesh = config.distributed.mesh
    sizes = ALONE | {name: size or 1 for name, size in mesh}  # as many processes as the mesh has
    count = math.prod(sizes.values())
    limit = available_memory(device)
    if not isinstance(config.training.micro_batch, int):
        config = with_rows(config, fitting_rows(config, device, sizes["dp"] * sizes["fsdp"]))
    refuse_mesh(config, sizes)
    name = "this machine's CPU"
    if device.type != "cpu":
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    gpu = find_gpu(name) if device.type == "cuda" else None
    peak = gpu.peak(config.training.precision, config.training.tf32) if gpu else None
    if peak is None:
        peak = peak_flops(device, config.training.precision)
    if price is None and gpu is not None:
        price = gpu.price
    if count > 1 and device.type == "cpu":  # they share what there is
        name, limit, peak = f"{name}, {count} processes", limit and limit / count, peak and peak / count
    return _estimate(config, name, sizes, device.type, limit, peak, tokens, mfu, price)


def _estimate(
    config: Config, hardware: str, sizes: dict[str, int], device: str, limit: float | None, peak: float | None,
    tokens: int | None, mfu: float, price: float | None,
) -> Estimate:  # fmt: skip
    rows = config.training.micro_batch
    assert isinstance(rows, int)
    devices = math.prod(sizes.values())
    memory = memory_on(config, device, sizes)
    changes: list[str] = []
    if limit is not None and memory.total > USABLE * limit:
        changes = advice.to_fit(config, device, USABLE * limit, sizes)
    seconds = None
    if tokens is not None and peak:
        seconds = tokens * flops_per_token(config.model) / (devices * peak * mfu)
    cost = None if seconds is None or price is None else devices * price * seconds / 3600
    return Estimate(hardware, devices, sizes, rows, memory, limit, peak, seconds, cost, changes)
