"""The depth dial: `d12` is a preset of 12 layers whose other sizes and settings all follow from that number.

The idea is nanochat's (github.com/karpathy/nanochat). The rules, for a depth of L:
    network     the default family, 64 L wide with L heads of 64, 2,048 tokens long, 32,768 token ids
    weights     begin with 0.02 * sqrt(768 / width): GPT-2's 0.02 at its width, elsewhere in proportion to
                1 / sqrt(width), which keeps the size of what a layer gives (Glorot and Bengio 2010, section 4.2.1)
    tokens      20 for each parameter, embeddings included (Hoffmann et al. 2022, "Chinchilla", table 3)
    rate        0.3118 C^-0.125  and
    batch       0.2920 C^0.3271 tokens, a power of two, where C is the operations of the whole run, embeddings left out
                (DeepSeek-AI 2024, "DeepSeek LLM", arXiv:2401.02954, equation 1; fitted for C from 1e17 to 2e19, which
                is d8 to d18 here)
    schedule    linear from the peak to zero (Bergsma et al. 2025, "Straight to Zero", arXiv:2502.15938) after a
                warm-up of 2 % of the steps
"""

import math
import re
from typing import Any

SHALLOWEST, DEEPEST = 2, 64
HEAD = 64
CONTEXT = 2048
VOCABULARY = 32768
TOKENS_PER_PARAMETER = 20
WARMUP_SHARE = 0.02

_NAME = re.compile(r"d([1-9][0-9]*)")


def depth_of(name: str) -> int | None:
    """The depth that a preset's name dials (`d12`: 12), or None if it dials none."""
    found = _NAME.fullmatch(name)
    depth = int(found[1]) if found else 0
    return depth if SHALLOWEST <= depth <= DEEPEST else None


def depth_preset(depth: int) -> dict[str, Any]:
    """The values of the preset of this depth, as a file would give them."""
    width = HEAD * depth
    network = 12 * depth * width**2  # Kaplan et al. 2020, table 1: attention 4, feed-forward layer 8 matrices' worth
    tokens = TOKENS_PER_PARAMETER * (network + VOCABULARY * width)
    operations = tokens * (6 * network + 12 * depth * width * CONTEXT)
    batch = 2 ** round(math.log2(0.2920 * operations**0.3271))
    steps = math.ceil(tokens / batch)
    return {
        "model": {
            "n_layer": depth,
            "n_head": depth,
            "n_embd": width,
            "context_length": CONTEXT,
            "vocab_multiple": 128,
            "init_std": _rounded(0.02 * math.sqrt(768 / width)),
        },
        "tokenizer": {"kind": "bpe", "vocab_size": VOCABULARY, "pattern": "llama3"},
        "optimizer": {"lr": _rounded(0.3118 * operations**-0.125), "betas": [0.9, 0.95], "weight_decay": 0.1},
        "schedule": {"kind": "linear", "warmup_steps": max(1, round(WARMUP_SHARE * steps)), "min_lr": 0.0},
        "training": {"max_steps": steps, "batch_tokens": batch, "precision": "bf16", "compile": True},
        "evaluation": {"every_steps": 250, "max_tokens": 10 * 2**20},
        "checkpoint": {"every_steps": 1000},
    }


def _rounded(value: float) -> float:
    """To two significant digits, as a person would write it."""
    return float(f"{value:.2g}")
