"""GPUs: how fast their makers say they are, how much memory they have, and what they cost to rent.

Peaks are dense (no sparsity), from NVIDIA's data sheets; memory is what is sold, in bytes. Prices are dollars an hour
of one GPU on demand, without commitment, as listed by RunPod (Secure Cloud; the A10: Lambda) in autumn 2026; elsewhere
they are a third to three times that, and they move: give your own with `minigpt plan --price`.
"""

import re
from dataclasses import dataclass

from minigpt.config.errors import RequestError

PRICE_DATE = "September to November 2026"
"""When the prices below were read."""
TYPICAL_MFU = 0.40
"""Share of the peak that a dense model's training reaches on one machine, compiled, in bf16: PaLM's 46 % (Chowdhery et
al. 2022, table 3) and nanoGPT's 35 to 50 % are on both sides of it."""


@dataclass(frozen=True)
class GPU:
    """One kind of GPU."""

    name: str
    half: float
    """Peak of bf16 (where there is none: fp16) matrix products, FLOP/s."""
    single: float
    """Peak of fp32 without TF32, FLOP/s."""
    memory: float
    """Bytes."""
    price: float | None = None
    """Dollars an hour; None: not in the list that was read."""
    tf32: bool = True
    """Whether it rounds fp32 products to TF32 if it is allowed to, at half of the peak of bf16."""

    def peak(self, precision: str, tf32: bool = False) -> float:
        """FLOP/s in this arithmetic."""
        if precision == "fp32":
            return self.half / 2 if tf32 and self.tf32 else self.single
        return self.half


# A name that begins another's comes after it: names are looked for in this order.
GPUS = (
    GPU("B300", 2250e12, 75e12, 288e9, 7.89),
    GPU("B200", 2250e12, 75e12, 180e9, 6.79),
    GPU("H200", 989e12, 67e12, 141e9, 4.59),
    GPU("H100 NVL", 835e12, 60e12, 94e9, 3.19),
    GPU("H100 PCIe", 756e12, 51e12, 80e9, 2.89),
    GPU("H100", 989e12, 67e12, 80e9, 3.99),
    GPU("A100 40GB", 312e12, 19.5e12, 40e9),
    GPU("A100", 312e12, 19.5e12, 80e9, 1.79),
    GPU("L40S", 362e12, 91.6e12, 48e9, 1.09),
    GPU("L40", 181e12, 90.5e12, 48e9),
    GPU("L4", 121e12, 30.3e12, 24e9),
    GPU("A10G", 70e12, 35e12, 24e9),
    GPU("A10", 125e12, 31.2e12, 24e9, 1.29),
    GPU("V100", 125e12, 15.7e12, 32e9, tf32=False),
    GPU("T4", 65e12, 8.1e12, 16e9, tf32=False),
    GPU("RTX 5090", 209.5e12, 104.8e12, 32e9),
    GPU("RTX 4090", 165e12, 82.6e12, 24e9, 0.74),
    GPU("RTX 3090", 71e12, 35.6e12, 24e9),
)


@dataclass(frozen=True)
class Machines:
    """Several GPUs of a kind."""

    gpu: GPU
    count: int

    def __str__(self) -> str:
        return self.gpu.name if self.count == 1 else f"{self.count} x {self.gpu.name}"


def find_gpu(name: str) -> GPU | None:
    """The GPU that a driver's or a person's name means: `NVIDIA A100-SXM4-40GB`, `h100`, `4090`."""
    wanted = name.lower()
    for gpu in GPUS:
        words = gpu.name.lower().removeprefix("rtx ").split()
        if all(re.search(rf"{re.escape(word)}(?!\d)", wanted) for word in words):
            return gpu
    return None


def parse_machines(text: str) -> list[Machines]:
    """`H100x8,A100` to 8 H100 and one A100. Raises RequestError for what is no GPU of the list."""
    found = []
    for part in text.split(","):
        count = re.fullmatch(r"\s*(?:(\d+)\s*x\s*)?(.*?)(?:\s*x\s*(\d+))?\s*", part, re.IGNORECASE)
        gpu = None if count is None else find_gpu(count[2])
        if count is None or gpu is None or (count[1] and count[3]):
            known = ", ".join(gpu.name for gpu in GPUS)
            raise RequestError(f"--gpus {part.strip()!r} is none of the GPUs that are known ({known}), as in H100x8")
        number = int(count[1] or count[3] or 1)
        if number < 1:
            raise RequestError(f"--gpus {part.strip()!r} has no GPU: write {gpu.name.replace(' ', '-')}x1 or more")
        found.append(Machines(gpu, number))
    return found
