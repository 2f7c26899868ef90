"""Causal attention in bf16 on a CPU: batched products by the BLAS, one block of queries at a time.

PyTorch's fused kernel multiplies small tiles, which in bf16 reaches a tenth of a CPU's matrix peak, and less in the
backward pass (benchmarks/attention.py; in fp32 the two are level). Here each block of queries meets the keys up to its
own end, so that most of the upper triangle is never computed, in products large enough for the BLAS. As in
FlashAttention (Dao et al. 2022, arXiv:2205.14135, section 3.1) the weights are computed again in the backward pass,
except in short contexts.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

KEEP_TOKENS = 512
"""Up to this context the weights, T / 2 numbers a head and token, are few enough to be kept for the backward pass."""
SMALLEST_BLOCK, LARGEST_BLOCK, BLOCKS = 64, 256, 4
"""Queries at once: a context is cut into this many blocks, within these sizes. Measured; flat around the optimum."""


def causal_attention(q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(D)) v, where each token sees itself and those before it (of its document).

    Scores are rounded to the dtype of the arguments before the softmax, which itself runs in fp32.

    Args:
        q: (B, T, H, D) queries.
        k, v: (B, T, H_kv, D) keys and values; each head of them serves H / H_kv query heads that stand together.
        documents: (B, T) integers; tokens see only those of the same number. None: all are of one document.

    Returns:
        (B, T, H, D), differentiable once.
    """
    B, T, H, D = q.shape
    K, G = k.size(2), H // k.size(2)
    q = q.view(B, T, K, G, D).transpose(1, 2).reshape(B * K, T * G, D)  # the G heads of a token are rows side by side
    k, v = (x.transpose(1, 2).reshape(B * K, T, D) for x in (k, v))
    y: Tensor = _CausalAttention.apply(q, k, v, documents)
    return y.view(B, K, T, G, D).transpose(1, 2).reshape(B, T, H, D)


class _CausalAttention(torch.autograd.Function):
    """q: (N, T * G, D), k and v: (N, T, D), documents: (B, T) or None, to (N, T * G, D); N is B times the key heads."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None) -> Tensor:
        y, kept = torch.empty_like(q), []
        for rows, start, stop in _blocks(q, k):
            p = _weights(q, k, documents, rows, start, stop)
            y[:, rows] = torch.bmm(p, v[:, :stop])
            if k.size(1) <= KEEP_TOKENS and ctx.needs_input_grad[0]:
                kept.append(p)
        ctx.save_for_backward(q, k, v, documents, *kept)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, documents, *kept = ctx.saved_tensors
        dq, dk, dv, scale = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v), q.size(-1) ** -0.5
        for i, (rows, start, stop) in enumerate(_blocks(q, k)):
            p = kept[i] if kept else _weights(q, k, documents, rows, start, stop)
            dv[:, :stop] += torch.bmm(p.mT, dy[:, rows])
            dp = torch.bmm(dy[:, rows], v[:, :stop].mT)
            ds = torch._softmax_backward_data(dp, p, -1, p.dtype)
            dq[:, rows] = torch.bmm(ds, k[:, :stop]).mul_(scale)
            dk[:, :stop].add_(torch.bmm(ds.mT, q[:, rows]), alpha=scale)
        return dq, dk, dv, None


def _blocks(q: Tensor, k: Tensor) -> Iterator[tuple[slice, int, int]]:
    """(rows of q, first token, token after the last) of each block."""
    T = k.size(1)
    G = q.size(1) // T
    size = min(LARGEST_BLOCK, max(SMALLEST_BLOCK, -(-T // BLOCKS)))
    for start in range(0, T, size):
        stop = min(start + size, T)
        yield slice(start * G, stop * G), start, stop


def _weights(q: Tensor, k: Tensor, documents: Tensor | None, rows: slice, start: int, stop: int) -> Tensor:
    """(N, block * G, stop) what the queries of a block take of each token up to its end."""
    block = stop - start
    scores = torch.baddbmm(q.new_zeros(()), q[:, rows], k[:, :stop].mT, beta=0, alpha=q.size(-1) ** -0.5)
    future = torch.full((block, block), -torch.inf, dtype=q.dtype, device=q.device).triu_(1)
    scores[:, :, start:].unflatten(1, (block, -1)).add_(future[:, None])  # the G rows of a token see the same keys
    if documents is not None:
        other = documents[:, start:stop, None] != documents[:, None, :stop]  # (B, block, stop)
        by_token = scores.view(len(documents), -1, block, q.size(1) // k.size(1), stop)  # (B, K, block, G, stop)
        by_token.masked_fill_(other[:, None, :, None], -torch.inf)
    return torch.softmax(scores, dim=-1)
