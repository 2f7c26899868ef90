"""Mixtures of experts in GGUF's keys."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from minigpt.config import ModelConfig, RequestError

ROUTERS = {1: "softmax", 2: "sigmoid"}
"""By llama.cpp's number of them (`llama_expert_gating_func_type`)."""
BIAS = "exp_probs_b.bias"
"""Tensor of the bias on the choice."""


@dataclass(frozen=True)
class Experts:
    """What an architecture's mixture of experts is, and how a file says the rest."""

    fixed: Mapping[str, Any]
    """What every one is, by keys of `model.moe`."""
    size_key: str = "expert_feed_forward_length"
    shared: Literal["none", "wide", "counted"] = "none"
    """Shared experts: there are none; their width is said; or how many of the usual width, one at least."""
    free: bool = False
    """The kind of router, the scale of the weights, a bias on the choice and dense first layers can be said."""

    def write(self, config: ModelConfig) -> dict[str, Any]:
        """The keys."""
        moe, size = config.moe, config.expert_size
        keys = {"expert_count": moe.n_expert, "expert_used_count": moe.n_expert_used, self.size_key: size}
        if self.shared == "wide":
            keys["expert_shared_feed_forward_length"] = moe.n_shared * size
        elif self.shared == "counted":
            keys["expert_shared_count"] = moe.n_shared
        if not self.free:
            return keys
        return keys | {
            "leading_dense_block_count": moe.first_dense,
            "expert_weights_scale": moe.weight_scale,
            "expert_weights_norm": moe.normalize,
            "expert_gating_func": next(number for number, name in ROUTERS.items() if name == moe.router),
        }

    def read(self, keys: Mapping[str, Any], tensors: Collection[str]) -> dict[str, Any]:
        """The options of `model.moe`. RequestError: none represent the keys."""
        size = keys.get(self.size_key)
        if not isinstance(size, int) or size < 1:
            raise RequestError(f"the GGUF file has {self.size_key}={size!r}: expected a whole number above 0")
        shared = keys.get("expert_shared_count", 0)
        if self.shared == "wide":
            wide = keys.get("expert_shared_feed_forward_length", 0)
            if wide % size or not wide:
                raise RequestError(f"shared experts of {wide} dimensions beside experts of {size} are not represented")
            shared = wide // size
        elif self.shared == "counted":
            shared = max(shared, 1)
        options = {
            "n_expert": keys.get("expert_count"),
            "n_expert_used": keys.get("expert_used_count"),
            "n_inner": size,
            "n_shared": shared,
            "balance": "none",
            **self.fixed,
        }
        if not self.free:
            return options
        number = keys.get("expert_gating_func")
        if number not in ROUTERS:
            raise RequestError(f"the GGUF file has expert_gating_func={number!r}, which minigpt has no option for")
        return options | {
            "first_dense": keys.get("leading_dense_block_count", 0),
            "weight_scale": keys.get("expert_weights_scale") or 1.0,
            "normalize": keys.get("expert_weights_norm", False),
            "router": ROUTERS[number],
            "balance": "bias" if any(name.endswith(BIAS) for name in tensors) else "none",
        }
