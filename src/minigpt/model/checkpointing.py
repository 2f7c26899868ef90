"""Activation checkpointing: a block's inner results are dropped after its forward pass, and computed again in the
backward pass (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174).

`full` keeps what goes into each block, and makes one more forward pass of it: a third more arithmetic. `selective`
keeps the results of the large matrix products and of attention besides (after Korthikanti et al. 2022,
arXiv:2205.05198, section 5), so that only what is cheap is made twice: norms, activations, rotations, casts.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from minigpt.config import ModelConfig
from minigpt.config.extension import Extension

Recompute = Callable[..., Tensor]
"""(function, arguments) to its value, of whose making less is kept."""


def recompute(level: str, config: ModelConfig) -> Recompute | None:
    """What a block's pass goes through at a level of `training.activation_checkpointing`; None for none."""
    if level == "none":
        return None
    from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

    draws = config.dropout > 0 or isinstance(config.mlp, Extension)
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": draws}
    if level == "selective":
        kept = _large_products(attention=config.dropout == 0)
        options["context_fn"] = partial(create_selective_checkpoint_contexts, partial(_policy, kept))
    return partial(checkpoint, **options)


def _large_products(attention: bool) -> frozenset[Any]:
    """Operations whose results are kept. Attention that draws dropout is not: it has to draw again, and no more."""
    aten = torch.ops.aten
    products = {aten.mm.default, aten.addmm.default, aten._scaled_mm.default, aten._grouped_mm.default}
    fused = {
        aten._scaled_dot_product_flash_attention_for_cpu.default,
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_efficient_attention.default,
        aten._scaled_dot_product_cudnn_attention.default,
    }
    return frozenset(products | fused if attention else products)


def _policy(kept: frozenset[Any], ctx: Any, op: Any, *args: Any, **kwargs: Any) -> bool:
    """Whether to keep the result of an operation."""
    if op is torch.ops.aten.bmm.default:  # of attention's two, weights times values: it sums over more than it gives
        return bool(args[0].size(-1) > args[1].size(-1))
    return op in kept
