"""Mixtures of experts with a softmax router: Mixtral (Jiang et al. 2024), Qwen2-MoE, Qwen3-MoE and OLMoE.

All are Llama with experts in place of feed-forward layers. They differ in whether the weights of the chosen experts are
made to sum to one, in norms of queries and keys, in biases, and in Qwen2-MoE's shared expert behind a gate. Files have
each expert's matrices one by one; ours are stacked.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from minigpt.config import ModelConfig, RequestError
from minigpt.interop.huggingface.common import FULL, SLIDING, gated_rules, layer_types, read_windows
from minigpt.interop.huggingface.llama import Llama
from minigpt.interop.huggingface.options import Options
from minigpt.interop.tensors import Rule, same, stacked


def expert_rules(
    ours: str, theirs: str, n_expert: int, names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
) -> list[Rule]:
    """The router and the experts of one layer; names: an expert's matrices for gate, up and down."""
    gate, up, down = names
    experts = [f"{theirs}.experts.{i}" for i in range(n_expert)]
    return [
        same(f"{ours}.router.weight", f"{theirs}.gate.weight"),
        stacked(f"{ours}.experts.gate_up", [f"{e}.{name}.weight" for e in experts for name in (gate, up)], parts=2),
        stacked(f"{ours}.experts.down", [f"{e}.{down}.weight" for e in experts]),
    ]


def require_experts(config: ModelConfig, architecture: str, least: int = 1) -> None:
    """RequestError for a dense model, which none of these classes is meant for."""
    if config.moe.n_expert < least:
        raise RequestError(f"{architecture} has experts, {least} or more, and this model has {config.moe.n_expert}")


class Mixtral(Llama):
    """`MixtralForCausalLM`: every layer has experts, two of which a token goes to, weighted to sum to one."""

    model_type = "mixtral"
    architecture = "MixtralForCausalLM"
    divisible = False
    defaults: ClassVar[dict[str, Any]] = {
        **Llama.defaults,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
    }

    def read(self, hf_config: Mapping[str, Any]) -> ModelConfig:
        return super().read({"rope_theta": 1e6, **hf_config})

    def read_more(self, options: Options, keys: dict[str, Any]) -> dict[str, Any]:
        moe = {
            "n_expert": options.whole("num_local_experts", 8),
            "n_expert_used": options.whole("num_experts_per_tok", 2),
            "n_inner": keys["n_inner"],
            "normalize": True,
        }
        return {"moe": moe, **read_windows([SLIDING] * keys["n_layer"], options.maybe_whole("sliding_window"), options)}

    def write_more(self, config: ModelConfig) -> dict[str, Any]:
        require_experts(config, self.architecture)
        return {
            "intermediate_size": config.expert_size,
            "num_local_experts": config.moe.n_expert,
            "num_experts_per_tok": config.moe.n_expert_used,
            "output_router_logits": False,
            "sliding_window": config.window(0),
        }

    def mlp_rules(self, config: ModelConfig, layer: int, ours: str, theirs: str) -> list[Rule]:
        return expert_rules(
            ours, theirs.removesuffix("mlp") + "block_sparse_moe", config.moe.n_expert, ("w1", "w3", "w2")
        )


class Qwen3Moe(Llama):
    """`Qwen3MoeForCausalLM`: norms of each head's queries and keys; some layers may be dense."""

    model_type = "qwen3_moe"
    architecture = "Qwen3MoeForCausalLM"
    divisible = False
    defaults: ClassVar[dict[str, Any]] = {
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
    }

    def read_more(self, options: Options, keys: dict[str, Any]) -> dict[str, Any]:
        bias = options.flag("attention_bias", False)
        window = options.maybe_whole("sliding_window") if options.flag("use_sliding_window", False) else None
        return {
            "moe": self.read_experts(options, keys["n_layer"], used=8, count=128, inner=768),
            "qk_norm": "head",
            "qkv_bias": bias,
            "out_bias": bias,
            **read_windows([SLIDING] * keys["n_layer"], window, options),
        }

    def write_more(self, config: ModelConfig) -> dict[str, Any]:
        window = config.window(0)
        return {
            **self.write_experts(config),
            "attention_bias": config.has_qkv_bias or config.has_out_bias,
            "use_sliding_window": window is not None,
            "sliding_window": window,
        }

    def read_experts(self, options: Options, n_layer: int, used: int, count: int, inner: int) -> dict[str, Any]:
        """The section `moe`, given the class's defaults."""
        dense = options.whole_numbers("mlp_only_layers") or []
        step = options.whole("decoder_sparse_step", 1)
        layers = [i not in dense and (i + 1) % step == 0 for i in range(n_layer)]
        first, period = read_pattern(layers, options, "mlp_only_layers", dense)
        return {
            "n_expert": options.maybe_whole("num_local_experts") or options.whole("num_experts", count),
            "n_expert_used": options.whole("num_experts_per_tok", used),
            "n_inner": options.whole("moe_intermediate_size", inner),
            "normalize": options.flag("norm_topk_prob", False),
            "first_dense": first,
            "period": period,
        }

    def write_experts(self, config: ModelConfig) -> dict[str, Any]:
        """The inverse of `read_experts`."""
        require_experts(config, self.architecture)
        return {
            "num_experts": config.moe.n_expert,
            "num_local_experts": config.moe.n_expert,  # as transformers 5 calls it
            "num_experts_per_tok": config.moe.n_expert_used,
            "moe_intermediate_size": config.expert_size,
            "norm_topk_prob": config.moe.normalize,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [i for i in range(config.n_layer) if not config.has_experts(i)],
            "output_router_logits": False,
        }

    def mlp_rules(self, config: ModelConfig, layer: int, ours: str, theirs: str) -> list[Rule]:
        if not config.has_experts(layer):
            return gated_rules(config, ours, theirs)
        return expert_rules(ours, theirs, config.moe.n_expert)


class Qwen2Moe(Qwen3Moe):
    """`Qwen2MoeForCausalLM`: a shared expert behind a gate, biases of queries, keys and values, windows by layer."""

    model_type = "qwen2_moe"
    architecture = "Qwen2MoeForCausalLM"
    defaults: ClassVar[dict[str, Any]] = {
        **Qwen3Moe.defaults,
        "intermediate_size": 5632,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
    }

    def read_more(self, options: Options, keys: dict[str, Any]) -> dict[str, Any]:
        moe = self.read_experts(options, keys["n_layer"], used=4, count=60, inner=1408)
        shared = options.whole("shared_expert_intermediate_size", 5632)
        if shared % moe["n_inner"]:
            why = f"minigpt has only multiples of moe_intermediate_size={moe['n_inner']}"
            raise options.refusal("shared_expert_intermediate_size", shared, why)
        window = options.whole("sliding_window", 4096) if options.flag("use_sliding_window", False) else None
        last = options.count("max_window_layers", 28)
        default = [SLIDING if i < last and (i + 1) % 2 else FULL for i in range(keys["n_layer"])]
        return {
            "moe": {**moe, "n_shared": shared // moe["n_inner"], "shared_gate": True},
            "qkv_bias": options.flag("qkv_bias", True),
            **read_windows(options.words("layer_types") or default, window, options),
        }

    def write_more(self, config: ModelConfig) -> dict[str, Any]:
        kinds = layer_types(config)
        windowed = SLIDING in kinds
        return {
            **self.write_experts(config),
            "shared_expert_intermediate_size": max(1, config.moe.n_shared) * config.expert_size,
            "qkv_bias": config.has_qkv_bias,
            "use_sliding_window": windowed,
            "sliding_window": config.attention_window if windowed else None,
            "max_window_layers": config.n_layer,
            "layer_types": kinds,
        }

    def mlp_rules(self, config: ModelConfig, layer: int, ours: str, theirs: str) -> list[Rule]:
        rules = super().mlp_rules(config, layer, ours, theirs)
        if not config.has_experts(layer):
            return rules
        return [
            *rules,
            *gated_rules(config, f"{ours}.shared", f"{theirs}.shared_expert", config.moe.n_shared * config.expert_size),
            same(f"{ours}.shared_gate.weight", f"{theirs}.shared_expert_gate.weight"),
        ]


class Olmoe(Llama):
    """`OlmoeForCausalLM` (Muennighoff et al. 2024): norms over all heads' queries and keys at once."""

    model_type = "olmoe"
    architecture = "OlmoeForCausalLM"
    divisible = False
    defaults: ClassVar[dict[str, Any]] = {
        "vocab_size": 50304,
        "hidden_size": 2048,
        "intermediate_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
    }

    def read_more(self, options: Options, keys: dict[str, Any]) -> dict[str, Any]:
        options.require("clip_qkv")
        head_dim = keys["n_embd"] // keys["n_head"]
        options.require("head_dim", head_dim)
        bias = options.flag("attention_bias", False)
        moe = {
            "n_expert": options.whole("num_experts", 64),
            "n_expert_used": options.whole("num_experts_per_tok", 8),
            "n_inner": keys["n_inner"],
            "normalize": options.flag("norm_topk_prob", False),
        }
        return {"moe": moe, "head_dim": head_dim, "qk_norm": "full", "qkv_bias": bias, "out_bias": bias}

    def write_more(self, config: ModelConfig) -> dict[str, Any]:
        require_experts(config, self.architecture)
        return {
            "intermediate_size": config.expert_size,
            "num_experts": config.moe.n_expert,
            "num_experts_per_tok": config.moe.n_expert_used,
            "norm_topk_prob": config.moe.normalize,
            "attention_bias": config.has_qkv_bias or config.has_out_bias,
            "head_dim": config.n_embd // config.n_head,  # the width of its norms allows no other
            "clip_qkv": None,
            "output_router_logits": False,
        }

    def mlp_rules(self, config: ModelConfig, layer: int, ours: str, theirs: str) -> list[Rule]:
        return expert_rules(ours, theirs, config.moe.n_expert)


def read_pattern(layers: list[bool], options: Options, key: str, value: Any) -> tuple[int, int]:
    """`first_dense` and `period` of the layers that have experts; RequestError naming the key if nothing says them."""
    n = len(layers)
    for first in range(n):
        for period in range(1, n - first + 1):
            if layers == [i >= first and (i - first + 1) % period == 0 for i in range(n)]:
                return first, period
    raise options.refusal(key, value, "minigpt has experts in every so many-th layer after the first few")
