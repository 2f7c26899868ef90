"""From logits to the next token: the usual filters, and a draw that only its seed decides.

The filters mean the same as the `LogitsProcessor` classes of Hugging Face transformers and are applied in the order
of its `generate`: repetition penalty (Keskar et al. 2019, CTRL, section 4.1), temperature, top-k (Fan et al. 2018),
top-p (Holtzman et al. 2020, nucleus sampling), min-p (Nguyen et al. 2024). All take and return logits (B, V) in fp32,
in nats; a token that is filtered out has logit -inf. None changes its argument.

A draw inverts the cumulative distribution at a uniform number from the row's own CPU generator. The generator of
sample `i` is seeded from `(seed, i)`, so a sample does not depend on how many others are drawn beside it, on the
device, or on the global random state; and a rounding difference in the logits changes the token only where the
uniform number falls within that rounding.
"""

import hashlib
import math
import secrets
from collections.abc import Sequence

import torch
from torch import Tensor

from minigpt.config import GenerationConfig


def repetition_penalty(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Of the tokens in `seen` (B, V, bool), divide positive logits by `penalty` and multiply negative ones by it."""
    penalised = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(seen, penalised, logits)


def temperature(logits: Tensor, value: float) -> Tensor:
    """Logits divided by `value` > 0, shifted so that the largest is 0: then a tiny `value` cannot give inf - inf."""
    smallest = torch.finfo(logits.dtype).tiny  # below it the divisor itself would round to 0
    return (logits - logits.amax(-1, keepdim=True)) / max(value, smallest)


def top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the `k` >= 1 largest logits of each row, and any that tie with the k-th."""
    kth = logits.topk(min(k, logits.shape[-1])).values[:, -1:]
    return logits.masked_fill(logits < kth, -math.inf)


def top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the smallest set of most likely tokens whose probability reaches `p`, at least one."""
    ascending, order = logits.sort(dim=-1)
    tail = ascending.softmax(-1).cumsum(-1)  # probability of this token and of all less likely ones
    dropped = tail <= 1 - p
    dropped[:, -1] = False
    return logits.masked_fill(torch.zeros_like(dropped).scatter(-1, order, dropped), -math.inf)


def min_p(logits: Tensor, p: float) -> Tensor:
    """Keep the tokens whose probability is at least `p` (0 to 1) times that of the most likely one."""
    if p == 0:
        return logits
    return logits.masked_fill(logits < logits.amax(-1, keepdim=True) + math.log(p), -math.inf)


def filter_logits(logits: Tensor, seen: Tensor, config: GenerationConfig) -> Tensor:
    """Apply every filter that `config` asks for; with temperature 0 only the repetition penalty can matter."""
    if config.repetition_penalty != 1:
        logits = repetition_penalty(logits, seen, config.repetition_penalty)
    if config.temperature == 0:
        return logits
    if config.temperature != 1:
        logits = temperature(logits, config.temperature)
    if config.top_k is not None:
        logits = top_k(logits, config.top_k)
    if config.top_p is not None and config.top_p < 1:
        logits = top_p(logits, config.top_p)
    if config.min_p is not None:
        logits = min_p(logits, config.min_p)
    return logits


def sample_generator(seed: int, index: int) -> torch.Generator:
    """The generator of sample `index` under `seed`; different pairs give unrelated streams."""
    digest = hashlib.sha256(f"minigpt sample {seed} {index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def fresh_seed() -> int:
    """A seed from the system's entropy, for when none was given; the global random state is not touched."""
    return secrets.randbits(63)


def draw(logits: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """One token id per row (B,), int64 on the CPU, drawn from softmax(logits); row `b` uses `generators[b]` once."""
    if logits.device.type == "mps":  # has no float64
        logits = logits.cpu()
    cumulative = logits.double().softmax(-1).cumsum(-1)  # (B, V)
    total = cumulative[:, -1:].contiguous()
    uniform = torch.cat([torch.rand(1, 1, generator=generator, dtype=torch.float64) for generator in generators])
    # The first token whose cumulative probability exceeds the point, hence never one of probability 0. Where
    # rounding puts the
    # point on the total itself, the last token of positive probability.
    chosen = torch.searchsorted(cumulative, uniform.to(logits.device) * total, right=True)
    return torch.minimum(chosen, torch.searchsorted(cumulative, total)).squeeze(1).cpu()


def next_tokens(
    logits: Tensor, seen: Tensor, config: GenerationConfig, generators: Sequence[torch.Generator]
) -> Tensor:
    """The next token of each row (B,), int64 on the CPU: filtered and drawn, or at temperature 0 the most likely."""
    logits = filter_logits(logits, seen, config)
    return logits.argmax(-1).cpu() if config.temperature == 0 else draw(logits, generators)
