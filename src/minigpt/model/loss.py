"""The cross-entropy of a vocabulary head, a chunk of tokens at a time.

The logits are the largest tensor of a small model's training step: 8,192 tokens of GPT-2's vocabulary take 1.6 GB in
fp32, and their gradient as much again. Here only one chunk of them exists at any moment: each chunk's gradients are
computed right after its loss, in the forward pass, and the backward pass only multiplies them by the incoming number.
The idea is that of Liger Kernel's fused linear cross-entropy (Hsu et al. 2024, arXiv:2410.10989, section 3.2); see also
Wijmans et al. 2024, "Cut Your Losses" (arXiv:2411.09009). The result is the plain cross-entropy's, not an estimate.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from minigpt.model.autocast import compute_dtype, no_autocast

IGNORED = -100
"""A target of this value takes no part in the loss (PyTorch's `ignore_index`)."""

CHUNK_BYTES = {"cpu": 128 * 2**20}
CHUNK_BYTES_ELSEWHERE = 256 * 2**20
"""Memory for one chunk's logits. Smaller chunks save nothing once they are below the head's own gradient (154 MB for
GPT-2), and each chunk reads and writes all of that."""
SLICE_BYTES = {"cpu": 8 * 2**20}
"""Memory for the fp32 softmax of a slice of a chunk: on a CPU it is to stay in the cache; elsewhere a chunk is one."""


class Vocabulary:
    """Where the logits of a token are: all in one place. Processes that share a head have another one of these."""

    columns: int | None = None
    """How many there are at most, by which tokens are taken in chunks; None: as many as the head has rows."""

    def here(self, vocab_size: int, columns: int) -> int:
        """How many of the columns of the logits stand for tokens; padding comes behind them."""
        return vocab_size

    def log_softmax(self, logits: Tensor, dtype: torch.dtype) -> Tensor:
        """(n, V) logits to log-probabilities."""
        return torch.log_softmax(logits, dim=-1, dtype=dtype)

    def log_z(self, logits: Tensor, log_p: Tensor) -> Tensor:
        """(n, 1) the logarithm of what the softmax divides by, from any column."""
        return logits[:, :1] - log_p[:, :1]

    def picked(self, values: Tensor, targets: Tensor) -> Tensor:
        """(n,) the value (n, V) of each target, any where it is ignored."""
        return values.gather(1, targets.where(targets != IGNORED, 0)[:, None]).squeeze(1)

    def subtract_one(self, values: Tensor, targets: Tensor) -> None:
        """Take 1 off the value (n, V) of each target, and of any in rows that are ignored."""
        values[torch.arange(values.size(0), device=values.device), targets.clamp(min=0)] -= 1.0


WHOLE = Vocabulary()


class ZLoss:
    """What keeps the logits from drifting: weight * log(Z)^2 for each target, Z being what its softmax divides by
    (Chowdhery et al. 2022, arXiv:2204.02311, section 5). The backward pass sees it, the loss that is reported does not.
    """

    def __init__(self, weight: float = 0.0) -> None:
        self.weight = weight
        """0: there is none."""
        self.squares: Tensor | None = None
        """The sum of log(Z)^2 over the targets of the passes since `clear`."""

    def clear(self) -> None:
        """A new optimizer step begins."""
        self.squares = None

    def add(self, squares: Tensor) -> None:
        """Count the sum over the targets of a pass."""
        self.squares = squares if self.squares is None else self.squares + squares


def cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    vocab_size: int | None = None,
    softcap: float | None = None,
    chunk_tokens: int | None = None,
    z_loss: ZLoss | None = None,
    vocabulary: Vocabulary = WHOLE,
) -> Tensor:
    """Sum of the negative log-likelihoods of the targets under softmax(hidden @ weight.T), in nats.

    Under autocast the products run in its dtype; the softmax and all sums are in fp32 (fp64 for fp64 inputs).

    Args:
        hidden: (N, C) what the head reads.
        weight: (V_padded, C) the head.
        targets: (N,) int64 ids below `vocab_size`, or IGNORED.
        vocab_size: rows of `weight` that stand for tokens; the rest is padding. None: all.
        softcap: cap the logits to softcap * tanh(logits / softcap); None: do not.
        chunk_tokens: tokens whose logits exist at once; None: as many as fit CHUNK_BYTES.
        z_loss: added to the gradients, and only to them.
        vocabulary: which rows of `weight` are here; `targets` and `vocab_size` are always those of the whole head.

    Returns:
        A scalar, differentiable once with respect to `hidden` and `weight`; 0 if all targets are ignored.
    """
    vocab_size = weight.size(0) if vocab_size is None else vocab_size
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        factor = 0.0 if z_loss is None else z_loss.weight
        head = _Head(vocabulary.here(vocab_size, weight.size(0)), softcap, factor, compute_dtype(weight), vocabulary)
        loss, squares = _ChunkedCrossEntropy.apply(hidden, weight, targets, chunk_tokens, head)
        if z_loss is not None and z_loss.weight:
            z_loss.add(squares)
        summed: Tensor = loss
        return summed
    return token_losses(
        hidden,
        weight,
        targets,
        vocab_size=vocab_size,
        softcap=softcap,
        chunk_tokens=chunk_tokens,
        vocabulary=vocabulary,
    ).sum()


@torch.no_grad()
def token_losses(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    vocab_size: int | None = None,
    softcap: float | None = None,
    chunk_tokens: int | None = None,
    vocabulary: Vocabulary = WHOLE,
) -> Tensor:
    """(N,) negative log-likelihood of each target in nats, 0 where ignored. Arguments as above; no gradient."""
    vocab_size = weight.size(0) if vocab_size is None else vocab_size
    dtype = compute_dtype(weight)
    hidden, weight = hidden.to(dtype), weight.to(dtype)
    losses = torch.zeros(hidden.size(0), dtype=_wide(dtype), device=hidden.device)
    here = vocabulary.here(vocab_size, weight.size(0))
    for rows in _chunks(hidden, weight, chunk_tokens, vocabulary):
        log_p, _ = _normalised(F.linear(hidden[rows], weight)[:, :here], softcap, vocabulary)
        losses[rows] = _nll(log_p, targets[rows], vocabulary)
    return losses


@dataclass(frozen=True)
class _Head:
    """How hidden states become a loss."""

    vocab_size: int
    """Columns of the logits that stand for tokens."""
    softcap: float | None
    z_loss: float
    dtype: torch.dtype
    """Of the products."""
    vocabulary: Vocabulary


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Forward computes the loss (and the sum of log(Z)^2) and both gradients of it; backward scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        chunk_tokens: int | None,
        head: _Head,
    ) -> tuple[Tensor, Tensor]:
        ctx.dtypes = hidden.dtype, weight.dtype
        hidden, weight = hidden.to(head.dtype), weight.to(head.dtype)
        wide = _wide(head.dtype)
        losses = torch.zeros(hidden.size(0), dtype=wide, device=hidden.device)
        squares = torch.zeros(hidden.size(0) if head.z_loss else 0, dtype=wide, device=hidden.device)
        # the gradients stay wide until they are multiplied by the incoming number: in fp16 that is the loss scale, and
        # rounding before it would lose what it is there to keep
        grad_hidden = torch.empty_like(hidden, dtype=wide) if ctx.needs_input_grad[0] else None
        grad_weight: Tensor | None = None
        with no_autocast(hidden.device):  # every product below names its dtype itself
            for rows in _chunks(hidden, weight, chunk_tokens, head.vocabulary):
                h, target = hidden[rows], targets[rows]
                grad = F.linear(h, weight)  # (n, V_padded): the logits, which their gradient replaces slice by slice
                for part in _slices(grad, head.vocabulary):
                    losses[rows][part] = _to_gradient(grad[part], target[part], head, squares[rows][part])
                # ignored rows are zeroed here, C numbers each, rather than in the gradient of the logits, V each
                kept = (target != IGNORED)[:, None]
                if grad_hidden is not None:
                    grad_hidden[rows] = _wide_mm(grad, weight) * kept
                if ctx.needs_input_grad[1]:
                    grad_weight = _add_mm(grad_weight, grad.t(), h * kept)
        if ctx.needs_input_grad[1] and grad_weight is None:  # no tokens
            grad_weight = torch.zeros_like(weight, dtype=wide)
        ctx.gradients = [grad_hidden, grad_weight]
        summed = squares.sum()
        ctx.mark_non_differentiable(summed)
        return losses.sum(), summed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.gradients
        if torch._C._autograd._get_current_graph_task_keep_graph():  # backward will be called again
            gradients = [None if grad is None else grad * scale for grad in gradients]
        else:  # in place: the head's is the largest tensor there is
            ctx.gradients = None
            for grad in gradients:
                if grad is not None:
                    grad.mul_(scale)
        scaled = (None if g is None else g.to(dtype) for g, dtype in zip(gradients, ctx.dtypes, strict=True))
        return (*scaled, None, None, None)


def _chunks(hidden: Tensor, weight: Tensor, chunk_tokens: int | None, vocabulary: Vocabulary) -> Iterator[slice]:
    """Slices of the N tokens."""
    n_tokens = hidden.size(0)
    if chunk_tokens is None:
        budget = CHUNK_BYTES.get(hidden.device.type, CHUNK_BYTES_ELSEWHERE)
        chunk_tokens = max(1, budget // (weight.element_size() * (vocabulary.columns or weight.size(0))))
    for start in range(0, n_tokens, chunk_tokens):
        yield slice(start, min(start + chunk_tokens, n_tokens))


def _slices(logits: Tensor, vocabulary: Vocabulary) -> Iterator[slice]:
    """Slices of the n rows of a chunk whose softmax is taken at once."""
    budget = SLICE_BYTES.get(logits.device.type)
    size = logits.size(0) if budget is None else max(1, budget // (4 * (vocabulary.columns or logits.size(1))))
    for start in range(0, logits.size(0), max(1, size)):
        yield slice(start, start + size)


def _normalised(logits: Tensor, softcap: float | None, vocabulary: Vocabulary) -> tuple[Tensor, Tensor]:
    """Wide log-probabilities (n, V) of logits, and the (capped) logits."""
    wide = _wide(logits.dtype)
    if softcap is not None:
        logits = logits.to(wide).div_(softcap).tanh_().mul_(softcap)
    return vocabulary.log_softmax(logits, wide), logits


def _nll(log_p: Tensor, targets: Tensor, vocabulary: Vocabulary) -> Tensor:
    """(n,) minus the log-probability of each target, 0 where ignored."""
    return torch.where(targets != IGNORED, -vocabulary.picked(log_p, targets), 0.0)


def _to_gradient(logits: Tensor, targets: Tensor, head: _Head, squares: Tensor) -> Tensor:
    """(n,) losses of logits (n, V_padded), which become their gradient (meaningless in rows that are ignored).

    squares: (n,) what log(Z)^2 is written to, if there is a z-loss.
    """
    vocabulary = head.vocabulary
    log_p, capped = _normalised(logits[:, : head.vocab_size], head.softcap, vocabulary)
    losses = _nll(log_p, targets, vocabulary)
    log_z = vocabulary.log_z(capped, log_p) if head.z_loss else None
    grad = log_p.exp_()
    if log_z is not None:
        squares.copy_(torch.where(targets != IGNORED, log_z.squeeze(1).square(), 0.0))
        grad.mul_(1.0 + 2.0 * head.z_loss * log_z)  # the gradient of log(Z) is the softmax
    vocabulary.subtract_one(grad, targets)
    if head.softcap is not None:
        grad.mul_(1.0 - (capped / head.softcap).square_())  # tanh' = 1 - tanh^2
    logits[:, : head.vocab_size] = grad
    logits[:, head.vocab_size :] = 0.0
    return losses


def _wide(dtype: torch.dtype) -> torch.dtype:
    """fp32, or fp64 for fp64."""
    return torch.promote_types(dtype, torch.float32)


def _wide_mm(a: Tensor, b: Tensor) -> Tensor:
    """a @ b, summed and returned wide: an fp16 result could overflow, since these gradients carry no scale yet."""
    wide = _wide(a.dtype)
    if a.dtype == wide:
        return a @ b
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=wide)
    if a.dtype == torch.float16:
        return a.to(wide) @ b.to(wide)
    return (a @ b).to(wide)


def _add_mm(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """total + a @ b, wide, in place; None stands for zero."""
    if total is None:
        return _wide_mm(a, b)
    if a.dtype == total.dtype:
        return total.addmm_(a, b)
    return total.add_(a @ b if a.dtype == torch.bfloat16 and not a.is_cuda else _wide_mm(a, b))
