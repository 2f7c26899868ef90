"""A small model of each family learns tiny Shakespeare, letter by letter, with one recipe for all."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minigpt.config import load_config
from minigpt.training import train

TOKENS = 2_000_000
RECIPE: dict[str, Any] = {
    "run": {"device": "cpu", "threads": 1},
    "model": {
        "n_layer": 4, "n_head": 4, "n_embd": 96, "context_length": 64, "vocab_multiple": 1, "vocab_size": None,
        "init_std": round(0.02 * math.sqrt(768 / 96), 3),
    },
    "tokenizer": {"kind": "char"},
    "optimizer": {"lr": 3e-3, "betas": [0.9, 0.98], "weight_decay": 0.1},
    "schedule": {"kind": "linear", "warmup_steps": 50, "min_lr": 0.0},
    "training": {"max_tokens": TOKENS, "batch_tokens": 1024, "micro_batch": 16, "precision": "bf16", "compile": False},
    "evaluation": {"every_steps": None, "max_tokens": None},
    "checkpoint": {"every_steps": None, "every_minutes": None, "best": False},
    "loggers": {"console": "quiet"},
}  # fmt: skip
# What makes each preset small besides: widths and windows in proportion.
SIZES: dict[str, dict[str, Any]] = {
    "gpt2-124m": {},
    "default-124m": {"n_kv_head": 2},
    "llama-style": {"n_kv_head": 2},
    "qwen3-style": {"n_kv_head": 2, "head_dim": 32, "n_inner": 288},
    "olmo2-style": {},
    "gemma-style": {"n_kv_head": 2, "attention_window": 16, "embedding_multiplier": math.sqrt(96)},
    "mixtral-style": {"n_kv_head": 2, "moe": {"n_expert": 8, "n_expert_used": 2, "n_inner": 128}},
    "qwen3-moe-style": {"n_kv_head": 2, "moe": {"n_expert": 16, "n_expert_used": 4, "n_inner": 64}},
    "deepseek-style": {
        "head_dim": 24, "latent": {"q_rank": 48, "kv_rank": 32, "rope_dim": 8},
        "moe": {"n_expert": 16, "n_expert_used": 3, "n_inner": 64},
    },
    "speed": {"attention_window": 16},
    "cramming-100m": {"embedding_size": 48, "n_inner": 288},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("preset", SIZES)
def test_a_small_one_learns(preset: str, test_data: Callable[[str], Path], tmp_path: Path) -> None:
    text = test_data("tinyshakespeare/input.txt")
    sizes = RECIPE["model"] | SIZES[preset]
    config, _ = load_config(preset, RECIPE | {"model": sizes, "data": {"train": str(text), "val_fraction": 0.1}})
    train(config, run_dir=tmp_path / "run")
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["tokens"] >= TOKENS
    assert [line["val/loss"] for line in metrics if "val/loss" in line][-1] < 2.2
