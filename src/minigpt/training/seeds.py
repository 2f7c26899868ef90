"""Seeds that follow from what they are for, so that nothing depends on what was drawn before."""

import hashlib

import torch


def derived_seed(*parts: int | str) -> int:
    """A 63-bit number from any parts, the same on every platform."""
    name = "/".join(str(part) for part in parts).encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little") >> 1


def seed_step(seed: int, step: int, micro_batch: int, rank: int = 0) -> None:
    """Seed the global generators (dropout) for one micro-batch of one step."""
    number = derived_seed("step", seed, step, micro_batch, rank)
    if torch.accelerator.is_available():
        torch.manual_seed(number)
    else:  # the same for the one generator there is, without looking for others: ten times as fast
        torch.default_generator.manual_seed(number)
