"""DeepSeek's mixtures: shared experts that every token goes to, and the first layers dense.

DeepSeek-V3 (DeepSeek-AI 2024) scores experts by sigmoids and chooses with a bias that keeps them equally busy; Dots1
and GLM-4.5 have the same experts beside ordinary attention. DeepSeek-V2 has a softmax router. Both of DeepSeek's have
latent attention, whose rotary rows come in interleaved pairs in files, ours in halves.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from minigpt.config import ModelConfig, RequestError
from minigpt.interop.huggingface.common import (
    FULL,
    SLIDING,
    gated_rules,
    layer_types,
    read_rope,
    read_sizes,
    read_windows,
    write_rope,
)
from minigpt.interop.huggingface.llama import Llama
from minigpt.interop.huggingface.mixtures import expert_rules, require_experts
from minigpt.interop.huggingface.options import Options, model_config
from minigpt.interop.tensors import Rule, half_from_interleaved, interleaved_from_half, same

LATENT_EPS = 1e-6
"""What the classes add to the variance in the norms of latent vectors, whatever config.json says of the others."""


class SigmoidMixture(Llama):
    """What DeepSeek-V3, Dots1 and GLM-4.5 share: the section `moe`."""

    divisible = False

    def read_experts(self, options: Options) -> dict[str, Any]:
        """The section `moe` of DeepSeek-V3 without groups of experts."""
        options.require("quantization_config")
        options.require("scoring_func", "sigmoid")
        options.require("topk_method", "noaux_tc")
        options.require("moe_layer_freq", 1)
        groups = options.whole("n_group", 1)
        if options.whole("topk_group", 1) != groups:
            raise options.refusal("n_group", groups, "minigpt chooses among all experts, not among groups of them")
        return {
            "n_expert": options.whole("n_routed_experts"),
            "n_expert_used": options.whole("num_experts_per_tok"),
            "n_inner": options.whole("moe_intermediate_size"),
            "n_shared": options.whole("n_shared_experts"),
            "router": "sigmoid",
            "balance": "bias",
            "normalize": options.flag("norm_topk_prob", True),
            "weight_scale": options.number("routed_scaling_factor", 1.0),
            "first_dense": options.count("first_k_dense_replace", 0),
        }

    def write_experts(self, config: ModelConfig) -> dict[str, Any]:
        """The inverse of `read_experts`."""
        require_experts(config, self.architecture, least=2)  # a group is judged by its two best experts
        moe = config.moe
        return {
            "n_routed_experts": moe.n_expert,
            "num_experts_per_tok": moe.n_expert_used,
            "moe_intermediate_size": config.expert_size,
            "n_shared_experts": max(1, moe.n_shared),
            "n_group": 1,
            "topk_group": 1,
            "scoring_func": "sigmoid",
            "topk_method": "noaux_tc",
            "moe_layer_freq": 1,
            "norm_topk_prob": moe.normalize,
            "routed_scaling_factor": moe.weight_scale,
            "first_k_dense_replace": moe.first_dense,
            "num_nextn_predict_layers": 0,
            "output_router_logits": False,
        }

    def mlp_rules(self, config: ModelConfig, layer: int, ours: str, theirs: str) -> list[Rule]:
        if not config.has_experts(layer):
            return gated_rules(config, ours, theirs)
        rules = expert_rules(ours, theirs, config.moe.n_expert)
        if config.moe.balance == "bias":
            rules.append(same(f"{ours}.balance_bias", f"{theirs}.gate.e_score_correction_bias"))
        shared = config.moe.n_shared * config.expert_size
        return [*rules, *gated_rules(config, f"{ours}.shared", f"{theirs}.shared_experts", shared)]


class Dots1(SigmoidMixture):
    """`Dots1ForCausalLM`: attention as Qwen3's, with norms of each head's queries and keys."""

    model_type = "dots1"
    architecture = "Dots1ForCausalLM"

    def read_more(self, options: Options, keys: dict[str, Any]) -> dict[str, Any]:
        bias = options.flag("attention_bias", False)
        window = None if options.is_null("sliding_window") else options.whole("sliding_window", 4096)
        first = options.count("max_window_layers", 62)
        default = [SLIDING if i >= first else FULL for i in range(keys["n_layer"])]
        return {
            "moe": self.read_experts(options),
            "qk_norm": "head",
            "qkv_bias": bias,
            "out_bias": bias,
            **read_windows(options.words("layer_types") or default, window, options),
        }

    def write_more(self, config: ModelConfig) -> dict[str, Any]:
        kinds = layer_types(config)
        return {
            **self.write_experts(config),
            "attention_bias": config.has_qkv_bias or config.has_out_bias,
            "sliding_window": config.attention_window if SLIDING in kinds else None,
            "max_window_layers": config.n_layer,
            "layer_types": kinds,
        }


class Glm4Moe(SigmoidMixture):
    """`Glm4MoeForCausalLM`: partial rotary positions, norms of queries and keys if wanted, no bias behind attention."""

    model_type = "glm4_moe"
    architecture = "Glm4MoeForCausalLM"
    ignored = (*Llama.ignored, r"model\.layers\.(46|92)\..*")  # the module that predicts a second token

    def read(self, hf_config: Mapping[str, Any]) -> ModelConfig:
        options = Options(hf_config, self.architecture)
        keys = read_sizes(options, **self.defaults) | read_rope(options, partial=0.5)
        return model_config(self.architecture, **keys | self.read_more(options, keys))

    def write(self, config: ModelConfig) -> dict[str, Any]:
        return super().write(config) | write_rope(config, partial=True)

    def read_more(self, options: Options, keys: dict[str, Any]) -> dict[str, Any]:
        return {
            "moe": self.read_experts(options),
            "qk_norm": "head" if options.flag("use_qk_norm", False) else "none",
            "qkv_bias": options.flag("attention_bias", False),
        }

    def write_more(self, config: ModelConfig) -> dict[str, Any]:
        return {
            **self.write_experts(config),
            "use_qk_norm": config.qk_norm != "none",
            "attention_bias": config.has_qkv_bias,
        }


class DeepseekV3(SigmoidMixture):
    """`DeepseekV3ForCausalLM`."""

    model_type = "deepseek_v3"
    architecture = "DeepseekV3ForCausalLM"
    ignored = (*Llama.ignored, r"model\.layers\.61\..*")  # the module that predicts a second token

    def read(self, hf_config: Mapping[str, Any]) -> ModelConfig:
        # head_dim, where it stands, is the width of the rotary part, and num_key_value_heads says nothing
        return super().read({**hf_config, "head_dim": hf_config.get("qk_nope_head_dim"), "num_key_value_heads": None})

    def read_more(self, options: Options, keys: dict[str, Any]) -> dict[str, Any]:
        options.require("rope_interleave", True)
        return {"moe": self.read_experts(options), **self.read_latent(options, keys)}

    def write_more(self, config: ModelConfig) -> dict[str, Any]:
        return {**self.write_experts(config), **self.write_latent(config), "rope_interleave": True}

    def read_latent(self, options: Options, keys: dict[str, Any]) -> dict[str, Any]:
        """Latent attention, with the factor of its scores that comes with yarn."""
        options.require("rms_norm_eps", LATENT_EPS)  # our config has one number for all norms
        bias = options.flag("attention_bias", False)
        nope, rope = options.whole("qk_nope_head_dim", 128), options.whole("qk_rope_head_dim", 64)
        scaling = options.section("rope_scaling") or options.section("rope_parameters")
        all_dim = scaling.maybe_number("mscale_all_dim") if scaling else None
        scale = None
        if scaling and all_dim and "factor" in scaling:
            scale = (nope + rope) ** -0.5 * _mscale(scaling.number("factor"), all_dim) ** 2
        return {
            "attention": "latent",
            "latent": {
                "kv_rank": options.whole("kv_lora_rank", 512),
                "q_rank": None if options.is_null("q_lora_rank") else options.whole("q_lora_rank", 1536),
                "rope_dim": rope,
                "value_dim": options.whole("v_head_dim", 128),
            },
            "n_kv_head": None,
            "head_dim": nope,
            "attention_scale": scale,
            "qkv_bias": bias,
            "out_bias": bias,
        }

    def write_latent(self, config: ModelConfig) -> dict[str, Any]:
        """The inverse of `read_latent`."""
        latent = config.latent
        said: dict[str, Any] = {
            "rms_norm_eps": LATENT_EPS,
            "num_key_value_heads": config.n_head,
            "head_dim": latent.rope_dim,  # of what rotates: transformers computes frequencies from it
            "qk_nope_head_dim": config.head_size,
            "qk_rope_head_dim": latent.rope_dim,
            "v_head_dim": config.value_size,
            "kv_lora_rank": latent.kv_rank,
            "q_lora_rank": latent.q_rank,
            "attention_bias": config.has_qkv_bias or config.has_out_bias,
        }
        kind, factor = config.rope_scaling.kind, config.rope_scaling.factor
        if config.attention_scale is not None and kind not in ("none", "ntk") and factor > 1:
            said["mscale_all_dim"] = (math.sqrt(config.score_scale * math.sqrt(config.query_size)) - 1) / (
                0.1 * math.log(factor)
            )
        return said

    def write(self, config: ModelConfig) -> dict[str, Any]:
        said = super().write(config)
        all_dim = said.pop("mscale_all_dim", None)
        if all_dim is not None:
            for key in ("rope_scaling", "rope_parameters"):
                said[key] = {**said[key], "mscale_all_dim": all_dim}
        return said

    def block_rules(self, config: ModelConfig, layer: int, ours: str, theirs: str) -> list[Rule]:
        mine, attention = f"{ours}.attention", f"{theirs}.self_attn"
        rules = [
            rule for rule in super().block_rules(config, layer, ours, theirs) if not rule.ours.startswith(f"{mine}.")
        ]
        names = {"kv_down": "kv_a_proj_with_mqa", "kv_up": "kv_b_proj", "out": "o_proj"}
        names |= {"q": "q_proj"} if config.latent.q_rank is None else {"q_down": "q_a_proj", "q_up": "q_b_proj"}
        biased = {"q_down": config.has_qkv_bias, "kv_down": config.has_qkv_bias, "out": config.has_out_bias}
        for name, other in names.items():
            for kind in ("weight", "bias") if biased.get(name) else ("weight",):
                rules.append(self.turned(same(f"{mine}.{name}.{kind}", f"{attention}.{other}.{kind}"), name, config))
        if config.norm_weight:
            rules.append(same(f"{mine}.kv_norm.weight", f"{attention}.kv_a_layernorm.weight"))
            if config.latent.q_rank is not None:
                rules.append(same(f"{mine}.q_norm.weight", f"{attention}.q_a_layernorm.weight"))
        return rules

    def turned(self, rule: Rule, name: str, config: ModelConfig) -> Rule:
        """The rule with the rotary rows of queries, or those of the shared key, in the other order."""
        heads = {"q": config.n_head, "q_up": config.n_head, "kv_down": 1}.get(name)
        if heads is None:
            return rule
        dim = config.latent.rope_dim

        def turn(tensor: Tensor, change: Callable[[Tensor, int], Tensor]) -> Tensor:
            head = tensor.unflatten(0, (heads, -1))  # (heads, others + rotary, ...)
            rotary = change(head[:, -dim:].flatten(0, 1), heads).unflatten(0, (heads, -1))
            return torch.cat([head[:, :-dim], rotary], dim=1).flatten(0, 1)

        return rule.changed(0, lambda t: turn(t, half_from_interleaved), lambda t: turn(t, interleaved_from_half))


class DeepseekV2(DeepseekV3):
    """`DeepseekV2ForCausalLM`: a softmax router whose weights are not made to sum to one."""

    model_type = "deepseek_v2"
    architecture = "DeepseekV2ForCausalLM"
    divisible = True
    ignored = Llama.ignored

    def read_more(self, options: Options, keys: dict[str, Any]) -> dict[str, Any]:
        options.require("scoring_func", "softmax")
        options.require("topk_method", "greedy")
        options.require("norm_topk_prob", False)
        options.require("moe_layer_freq", 1)
        moe = {
            "n_expert": options.whole("n_routed_experts", 64),
            "n_expert_used": options.whole("num_experts_per_tok"),
            "n_inner": options.whole("moe_intermediate_size", 1407),
            "n_shared": options.whole("n_shared_experts", 2),
            "normalize": False,
            "weight_scale": options.number("routed_scaling_factor", 1.0),
            "first_dense": options.count("first_k_dense_replace", 0),
        }
        return {"moe": moe, **self.read_latent(options, keys)}

    def write_more(self, config: ModelConfig) -> dict[str, Any]:
        require_experts(config, self.architecture)
        if config.head_size % 2 or config.latent.kv_rank % 2:
            raise RequestError(f"{self.architecture} needs even qk_nope_head_dim and kv_lora_rank")
        return {
            "n_routed_experts": config.moe.n_expert,
            "num_experts_per_tok": config.moe.n_expert_used,
            "moe_intermediate_size": config.expert_size,
            "n_shared_experts": max(1, config.moe.n_shared),
            "topk_method": "greedy",
            "scoring_func": "softmax",
            "moe_layer_freq": 1,
            "norm_topk_prob": False,
            "routed_scaling_factor": config.moe.weight_scale,
            "first_k_dense_replace": config.moe.first_dense,
            "output_router_logits": False,
            **self.write_latent(config),
        }


def _mscale(factor: float, all_dim: float) -> float:
    """Yarn's factor of both queries and keys, as DeepSeek-V2's published model has it."""
    return 0.1 * all_dim * math.log(factor) + 1.0 if factor > 1 else 1.0
