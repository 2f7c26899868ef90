"""Causal attention by batched products, one block of queries at a time: in bf16 on a CPU, with windows and with caps.

PyTorch's fused kernel multiplies small tiles, which in bf16 reaches a tenth of a CPU's matrix peak, and less in the
backward pass (benchmarks/attention.py; in fp32 the two are level); it computes all that a mask then hides, and knows no
cap. Here each block of queries meets the keys up to its own end, from its window's beginning, so that most of what none
may see is never computed, in products large enough for the BLAS. As in FlashAttention (Dao et al. 2022,
arXiv:2205.14135, section 3.1) the weights are computed again in the backward pass, except in short contexts.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

KEEP_TOKENS = 512
"""Up to this context the weights, T / 2 numbers a head and token, are few enough to be kept for the backward pass."""
SMALLEST_BLOCK, LARGEST_BLOCK, BLOCKS = 64, 256, 4
"""Queries at once: a context is cut into this many blocks, within these sizes. Measured; flat around the optimum."""


def causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    documents: Tensor | None = None,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    window: int | None = None,
) -> Tensor:
    """softmax(scale q k^T) v, where each token sees itself and those before it (of its document, in its window).

    Scores are rounded to the dtype of the arguments before the softmax, which itself runs in fp32.

    Args:
        q: (B, T, H, D) queries.
        k, v: (B, T, H_kv, D) keys and (B, T, H_kv, Dv) values; each head serves H / H_kv query heads side by side.
        documents: (B, T) integers; tokens see only those of the same number. None: all are of one document.
        scale: of the scores; None means 1 / sqrt(D).
        softcap: scores become softcap * tanh(scores / softcap).
        window: number of tokens that each sees, itself included. None: all.

    Returns:
        (B, T, H, Dv), differentiable once.
    """
    B, T, H, D = q.shape
    K, G = k.size(2), H // k.size(2)
    q = q.view(B, T, K, G, D).transpose(1, 2).reshape(B * K, T * G, D)  # the G heads of a token are rows side by side
    k, v = (x.transpose(1, 2).reshape(B * K, T, x.size(-1)) for x in (k, v))
    scores = _Scores(D**-0.5 if scale is None else scale, softcap, window)
    y: Tensor = _CausalAttention.apply(q, k, v, documents, scores)
    return y.view(B, K, T, G, -1).transpose(1, 2).reshape(B, T, H, -1)


class _CausalAttention(torch.autograd.Function):
    """q: (N, T * G, D), k: (N, T, D), v: (N, T, Dv) to (N, T * G, Dv); N is B times the key heads."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None, scores: "_Scores") -> Tensor:
        y, kept = q.new_empty(*q.shape[:2], v.size(-1)), []
        for rows, keys, start in scores.blocks(q, k):
            p, slope = scores.weights(q[:, rows], k[:, keys], documents, keys, start)
            y[:, rows] = torch.bmm(p, v[:, keys])
            if slope is None and k.size(1) <= KEEP_TOKENS and ctx.needs_input_grad[0]:
                kept.append(p)
        ctx.scores = scores
        ctx.save_for_backward(q, k, v, documents, *kept)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, documents, *kept = ctx.saved_tensors
        dq, dk, dv, scores = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v), ctx.scores
        for i, (rows, keys, start) in enumerate(scores.blocks(q, k)):
            p, slope = (kept[i], None) if kept else scores.weights(q[:, rows], k[:, keys], documents, keys, start)
            dv[:, keys] += torch.bmm(p.mT, dy[:, rows])
            dp = torch.bmm(dy[:, rows], v[:, keys].mT)
            ds = torch._softmax_backward_data(dp, p, -1, p.dtype)
            if slope is not None:
                ds.mul_(slope)
            dq[:, rows] = torch.bmm(ds, k[:, keys]).mul_(scores.scale)
            dk[:, keys].add_(torch.bmm(ds.mT, q[:, rows]), alpha=scores.scale)
        return dq, dk, dv, None, None


@dataclass(frozen=True)
class _Scores:
    """How queries and keys become weights."""

    scale: float
    softcap: float | None
    window: int | None

    def blocks(self, q: Tensor, k: Tensor) -> Iterator[tuple[slice, slice, int]]:
        """(rows of q, tokens that some of them see, their first token) of each block."""
        T = k.size(1)
        G = q.size(1) // T
        size = min(LARGEST_BLOCK, max(SMALLEST_BLOCK, -(-T // BLOCKS)))
        if self.window is not None:
            size = max(SMALLEST_BLOCK, min(size, self.window))  # a large one would see much beyond its windows
        for start in range(0, T, size):
            stop = min(start + size, T)
            first = 0 if self.window is None else max(0, start + 1 - self.window)
            yield slice(start * G, stop * G), slice(first, stop), start

    def weights(
        self, q: Tensor, k: Tensor, documents: Tensor | None, keys: slice, start: int
    ) -> tuple[Tensor, Tensor | None]:
        """What the queries of a block take of each token that the block sees, and the slope of the cap if there is one.

        q: (N, block * G, D), of the tokens from number `start`. k: (N, S, D), of the tokens `keys`. documents: (B, T).
        Both results: (N, block * G, S).
        """
        first, stop = keys.start, keys.stop
        block, slope = stop - start, None
        scores = torch.baddbmm(q.new_zeros(()), q, k.mT, beta=0, alpha=self.scale)
        if self.softcap is not None:
            capped = scores.div_(self.softcap).tanh_()
            slope = 1 - capped.square()
            scores = capped.mul_(self.softcap)
        future = torch.full((block, block), -torch.inf, dtype=q.dtype, device=q.device).triu_(1)
        scores[:, :, start - first :].unflatten(1, (block, -1)).add_(future[:, None])  # a token's G rows see the same
        by_token = scores.view(len(scores), block, -1, stop - first)  # (N, block, G, S)
        if self.window is not None and stop - first > self.window:
            gone = torch.ones(block, stop - first, dtype=torch.bool, device=q.device)
            by_token.masked_fill_(gone.tril_(start - first - self.window)[:, None], -torch.inf)
        if documents is not None:
            other = documents[:, start:stop, None] != documents[:, None, keys]  # (B, block, S)
            by_token.unflatten(0, (len(documents), -1)).masked_fill_(other[:, None, :, None], -torch.inf)
        return torch.softmax(scores, dim=-1), slope
