"""Causal attention on the CPU, forward and backward: PyTorch's fused kernel beside minigpt's blockwise products.

    python benchmarks/attention.py

The machine must be quiet. Prints milliseconds (medians) and the ratio for shapes of the training benchmark and longer.
"""

import statistics
import time

import torch
import torch.nn.functional as F

from minigpt.model.causal_attention import causal_attention
from minigpt.training.allocator import keep_freed_memory

SHAPES = [(12, 64, 4, 32), (16, 256, 6, 64), (2, 512, 12, 64), (2, 1024, 12, 64), (1, 2048, 12, 64)]  # B, T, H, D
SECONDS = 0.5


def milliseconds(function):
    function()
    began, times = time.perf_counter(), []
    while len(times) < 5 or time.perf_counter() - began < SECONDS:
        start = time.perf_counter()
        function()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def fused(q, k, v):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


def main():
    keep_freed_memory()
    print(f"{'B':>4}{'T':>6}{'H':>4}{'D':>4} {'':8}{'fused':>18}{'blockwise':>18}{'ratio':>8}")
    for B, T, H, D in SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            inputs = [torch.randn(B, T, H, D).to(dtype).requires_grad_() for _ in range(3)]
            dy, rows = torch.randn(B, T, H, D).to(dtype), []
            for attention in (fused, causal_attention):
                y = attention(*inputs)
                there = milliseconds(lambda attention=attention, inputs=inputs: attention(*inputs))
                back = milliseconds(lambda y=y, x=inputs, dy=dy: torch.autograd.grad(y, x, dy, retain_graph=True))
                rows.append((there, back))
            cells = "".join(f"{f'{there:.1f} + {back:.1f}':>18}" for there, back in rows)
            ratio = sum(rows[0]) / sum(rows[1])
            print(f"{B:>4}{T:>6}{H:>4}{D:>4} {str(dtype).removeprefix('torch.'):8}{cells}{ratio:>8.2f}", flush=True)


if __name__ == "__main__":
    main()
