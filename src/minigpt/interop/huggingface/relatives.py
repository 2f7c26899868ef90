"""Relatives of Llama: Granite (multipliers), Arcee (no gate), Phi-3 (fused matrices), NanoChat (weightless norms)."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from minigpt.config import ModelConfig
from minigpt.interop.huggingface.common import (
    PLAIN,
    SLIDING,
    norm_rules,
    plain_rules,
    read_rope,
    read_sizes,
    read_windows,
    write_rope,
    write_sizes,
)
from minigpt.interop.huggingface.llama import Llama
from minigpt.interop.huggingface.options import Options, model_config
from minigpt.interop.tensors import Change, Rule, same


class Granite(Llama):
    """`GraniteForCausalLM` (IBM 2024)."""

    model_type = "granite"
    architecture = "GraniteForCausalLM"
    divisible = False

    def read_more(self, options: Options, keys: dict[str, Any]) -> dict[str, Any]:
        return {
            **super().read_more(options, keys),
            "embedding_multiplier": options.number("embedding_multiplier", 1.0),
            "residual_multiplier": options.number("residual_multiplier", 1.0),
            "logit_multiplier": 1 / options.positive("logits_scaling", 1.0),
            "attention_scale": options.number("attention_multiplier", 1.0),
        }

    def write_more(self, config: ModelConfig) -> dict[str, Any]:
        return {
            **super().write_more(config),
            "embedding_multiplier": config.embedding_multiplier,
            "residual_multiplier": config.residual_multiplier,
            "logits_scaling": 1 / config.logit_multiplier,
            "attention_multiplier": config.score_scale,
        }


class Arcee(Llama):
    """`ArceeForCausalLM` (2025): Llama with a feed-forward layer without a gate, ReLU^2 mostly."""

    model_type = "arcee"
    architecture = "ArceeForCausalLM"
    defaults: ClassVar[dict[str, Any]] = {
        **Llama.defaults,
        "hidden_size": 2560,
        "intermediate_size": 18432,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
    }
    activations: ClassVar[Mapping[str, str]] = {"relu2": "relu2", **PLAIN}

    def mlp_rules(self, config: ModelConfig, layer: int, ours: str, theirs: str) -> list[Rule]:
        return plain_rules(config, ours, theirs, "up_proj", "down_proj")


class Phi3(Llama):
    """`Phi3ForCausalLM` (Abdin et al. 2024), of which longer contexts by LongRoPE are not read."""

    model_type = "phi3"
    architecture = "Phi3ForCausalLM"
    divisible = False
    defaults: ClassVar[dict[str, Any]] = {
        **Llama.defaults,
        "vocab_size": 32064,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
    }

    def read(self, hf_config: Mapping[str, Any]) -> ModelConfig:
        options = Options(hf_config, self.architecture)
        keys = read_sizes(options, self.activations, **self.defaults) | read_rope(options, partial=1.0)
        if "rope_scaling" in keys:
            raise options.refusal("rope_type", keys["rope_scaling"]["kind"], "the class has only LongRoPE")
        windows = read_windows([SLIDING] * keys["n_layer"], options.maybe_whole("sliding_window"), options)
        return model_config(self.architecture, **keys | windows)

    def write(self, config: ModelConfig) -> dict[str, Any]:
        original = config.rope_scaling.original_context or config.context_length
        more = {"sliding_window": config.window(0), "original_max_position_embeddings": original}
        return write_sizes(config, self.activations) | write_rope(config, partial=True) | more

    def block_rules(self, config: ModelConfig, layer: int, ours: str, theirs: str) -> list[Rule]:
        pairs = {
            "attention.qkv": "self_attn.qkv_proj",
            "attention.out": "self_attn.o_proj",
            "mlp.gate_up": "mlp.gate_up_proj",
            "mlp.down": "mlp.down_proj",
        }
        norms = [
            rule
            for mine, name in self.norms.items()
            for rule in norm_rules(config, f"{ours}.{mine}", f"{theirs}.{name}")
        ]
        return [*norms, *(same(f"{ours}.{mine}.weight", f"{theirs}.{name}.weight") for mine, name in pairs.items())]


class NanoChat(Llama):
    """`NanoChatForCausalLM` (Karpathy 2025): RMSNorm without weights everywhere, of the embeddings too.

    It turns the other way round, which exchanging the halves of each query and key makes up for, and normalises queries
    and keys after the rotation, which without weights is the same as before.
    """

    model_type = "nanochat"
    architecture = "NanoChatForCausalLM"
    divisible = False
    defaults: ClassVar[dict[str, Any]] = {
        "vocab_size": 50304,
        "hidden_size": 768,
        "intermediate_size": 8192,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
        "max_position_embeddings": 2048,
    }
    activations: ClassVar[Mapping[str, str]] = {"relu2": "relu2", **PLAIN}

    def read_more(self, options: Options, keys: dict[str, Any]) -> dict[str, Any]:
        if keys.get("rope_scaling", {}).get("kind") == "yarn":
            raise options.refusal("rope_type", "yarn", "its norms after the rotation undo a part of it")
        bias = options.flag("attention_bias", False)
        return {
            "norm_weight": False,
            "embedding_norm": True,
            "qk_norm": "head",
            "qkv_bias": bias,
            "out_bias": bias,
            "logit_softcap": options.maybe_number("final_logit_softcapping", 15.0),
        }

    def write_more(self, config: ModelConfig) -> dict[str, Any]:
        return {
            "attention_bias": config.has_qkv_bias or config.has_out_bias,
            "final_logit_softcapping": config.logit_softcap,
        }

    def block_rules(self, config: ModelConfig, layer: int, ours: str, theirs: str) -> list[Rule]:
        turned = []
        for rule in super().block_rules(config, layer, ours, theirs):
            if ".qkv." in rule.ours:  # theirs are queries, keys, values
                for index, heads in enumerate((config.n_head, config.kv_heads)):
                    rule = rule.changed(index, _exchange(heads), _exchange(heads))
            turned.append(rule)
        return turned

    def mlp_rules(self, config: ModelConfig, layer: int, ours: str, theirs: str) -> list[Rule]:
        return plain_rules(config, ours, theirs, "fc1", "fc2")


def _exchange(heads: int) -> Change:
    """Exchange the halves of each head's rows."""

    def exchange(tensor: Tensor) -> Tensor:
        head = tensor.unflatten(0, (heads, -1))
        return head.roll(head.size(1) // 2, dims=1).flatten(0, 1)

    return exchange
