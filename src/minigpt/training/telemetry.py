"""How fast training goes: tokens per second, step-time percentiles, model FLOPs utilisation, memory."""

import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from minigpt.config.hardware import find_gpu


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Peak FLOP/s of a known GPU; of a CPU, what a matrix product reaches here (measured in about 0.1 s); else None."""
    if device.type == "cuda":
        gpu = find_gpu(torch.cuda.get_device_name(device))
        return None if gpu is None else gpu.peak(precision, torch.backends.cuda.matmul.allow_tf32)
    if device.type != "cpu" or precision == "fp16":
        return None
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    size = 1024
    a, b = torch.ones(size, size, dtype=dtype), torch.ones(size, size, dtype=dtype)
    best, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < 0.1:
        t = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - t)
    return 2 * size**3 / best


def peak_memory_mb(device: torch.device) -> float:
    """Most memory used so far, in MB (10^6 bytes): the GPU's, or the process's resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    try:  # getrusage's also counts what the program that started this one had taken by then
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    except (OSError, StopIteration):  # not Linux
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most * (1 if sys.platform == "darwin" else 1024) / 1e6


class Speedometer:
    """Step times since the last report, and what they mean."""

    def __init__(self, flops_per_token: float, measure_peak: Callable[[], float | None]) -> None:
        self.flops_per_token, self._measure_peak = flops_per_token, measure_peak
        self.peak = measure_peak()
        self._steps: list[float] = []
        self._waits: list[float] = []
        self._tokens = 0

    def step(self, seconds: float, wait_ms: float, tokens: int) -> None:
        """One step took `seconds`, `wait_ms` milliseconds of which it waited for data, and trained on `tokens`."""
        self._steps.append(seconds)
        self._waits.append(wait_ms)
        self._tokens += tokens

    def report(self) -> dict[str, float]:
        """`perf/*` of the steps since the last report."""
        if not self._steps:
            return {}
        speed = self._tokens / sum(self._steps)
        ordered = sorted(self._steps)
        report = {
            "perf/tokens_per_second": speed,
            "perf/step_ms": 1000 * statistics.median(ordered),
            "perf/step_ms_p90": 1000 * ordered[(9 * (len(ordered) - 1) + 9) // 10],
            "perf/data_wait_ms": statistics.fmean(self._waits),
        }
        if self.peak is not None:
            if speed * self.flops_per_token > self.peak:  # the machine was busy when the peak was measured
                self.peak = max(self.peak, self._measure_peak() or 0.0)
            report["perf/mfu"] = speed * self.flops_per_token / self.peak
        self._steps, self._waits, self._tokens = [], [], 0
        return {key: float(f"{value:.6g}") for key, value in report.items()}
