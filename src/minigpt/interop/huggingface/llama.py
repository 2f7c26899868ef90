"""Llama (Touvron et al. 2023) and its closest relatives: RMSNorm, rotary positions, a gated feed-forward layer.

Mistral adds a window to all layers, Qwen2 biases of queries, keys and values, Qwen3 norms of each head's queries and
keys; both Qwens may have windows in some layers.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from minigpt.config import ModelConfig
from minigpt.interop.huggingface.common import (
    FULL,
    GATED,
    SLIDING,
    Make,
    attention_rules,
    gated_rules,
    layer_types,
    norm_rules,
    outer_rules,
    read_rope,
    read_sizes,
    read_windows,
    write_rope,
    write_sizes,
)
from minigpt.interop.huggingface.family import Family
from minigpt.interop.huggingface.options import Options, model_config
from minigpt.interop.tensors import Rule, same


class Llama(Family):
    """`LlamaForCausalLM`."""

    model_type = "llama"
    architecture = "LlamaForCausalLM"
    defaults: ClassVar[dict[str, Any]] = {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 2048,
    }
    """The sizes that the class has where config.json says nothing."""
    divisible: ClassVar[bool] = True
    """Whether the class wants the width to be a multiple of the number of heads, whatever the heads' width is."""
    norms: ClassVar[dict[str, str]] = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
    """The norms of a layer, ours and theirs."""
    activations: ClassVar[Mapping[str, str]] = GATED
    """`mlp` by the name of its activation."""
    norm: Make = staticmethod(same)
    """The rule of a norm's weight."""

    def read(self, hf_config: Mapping[str, Any]) -> ModelConfig:
        options = Options(hf_config, self.architecture)
        keys = read_sizes(options, self.activations, **self.defaults) | read_rope(options)
        if self.divisible and keys["n_embd"] % keys["n_head"]:
            raise options.refusal("hidden_size", keys["n_embd"], f"it is no multiple of {keys['n_head']} heads")
        return model_config(self.architecture, **keys | self.read_more(options, keys))

    def write(self, config: ModelConfig) -> dict[str, Any]:
        return write_sizes(config, self.activations) | write_rope(config) | self.write_more(config)

    def read_more(self, options: Options, keys: dict[str, Any]) -> dict[str, Any]:
        """What this class has besides, given the keys that are read already."""
        attention_bias = options.flag("attention_bias", False)
        return {
            "qkv_bias": attention_bias,
            "out_bias": attention_bias,
            "mlp_bias": options.flag("mlp_bias", False),
        }

    def write_more(self, config: ModelConfig) -> dict[str, Any]:
        """The inverse of `read_more`."""
        return {"attention_bias": config.has_qkv_bias or config.has_out_bias, "mlp_bias": config.has_mlp_bias}

    def rules(self, config: ModelConfig) -> list[Rule]:
        rules = self.outer_rules(config)
        for i in range(config.n_layer):
            rules += self.block_rules(config, i, f"blocks.{i}", f"model.layers.{i}")
        return rules

    def outer_rules(self, config: ModelConfig) -> list[Rule]:
        """The tensors around the blocks, the embedding first."""
        return outer_rules(config, make=self.norm)

    def block_rules(self, config: ModelConfig, layer: int, ours: str, theirs: str) -> list[Rule]:
        """The tensors of one layer."""
        return [
            *(
                rule
                for mine, name in self.norms.items()
                for rule in norm_rules(config, f"{ours}.{mine}", f"{theirs}.{name}", self.norm)
            ),
            *attention_rules(config, layer, f"{theirs}.self_attn", make=self.norm),
            *self.mlp_rules(config, layer, f"{ours}.mlp", f"{theirs}.mlp"),
        ]

    def mlp_rules(self, config: ModelConfig, layer: int, ours: str, theirs: str) -> list[Rule]:
        """The tensors of one feed-forward layer."""
        return gated_rules(config, ours, theirs)


class Mistral(Llama):
    """`MistralForCausalLM`."""

    model_type = "mistral"
    architecture = "MistralForCausalLM"
    divisible = False
    defaults: ClassVar[dict[str, Any]] = {
        **Llama.defaults,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
    }

    def read_more(self, options: Options, keys: dict[str, Any]) -> dict[str, Any]:
        window = None if options.is_null("sliding_window") else options.whole("sliding_window", 4096)
        return read_windows([SLIDING] * keys["n_layer"], window, options)

    def write_more(self, config: ModelConfig) -> dict[str, Any]:
        return {"sliding_window": config.window(0)}


class Qwen2(Llama):
    """`Qwen2ForCausalLM`."""

    model_type = "qwen2"
    architecture = "Qwen2ForCausalLM"
    divisible = False
    defaults: ClassVar[dict[str, Any]] = {
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 32768,
    }

    def read_more(self, options: Options, keys: dict[str, Any]) -> dict[str, Any]:
        return {**self.read_windows(options, keys["n_layer"]), "qkv_bias": True}

    def write_more(self, config: ModelConfig) -> dict[str, Any]:
        return self.write_windows(config)

    def read_windows(self, options: Options, n_layer: int) -> dict[str, Any]:
        """Layers from `max_window_layers` on have the window, unless `layer_types` says otherwise."""
        window = None
        if options.flag("use_sliding_window", False) and not options.is_null("sliding_window"):
            window = options.whole("sliding_window", 4096)
        first = options.count("max_window_layers", 28)
        kinds = options.words("layer_types") or [SLIDING if i >= first else FULL for i in range(n_layer)]
        return read_windows(kinds, window, options)

    def write_windows(self, config: ModelConfig) -> dict[str, Any]:
        """The inverse of `read_windows`."""
        kinds = layer_types(config)
        windowed = SLIDING in kinds
        return {
            "use_sliding_window": windowed,
            "sliding_window": config.attention_window if windowed else None,
            "max_window_layers": kinds.index(SLIDING) if windowed else config.n_layer,
            "layer_types": kinds,
        }


class Qwen3(Qwen2):
    """`Qwen3ForCausalLM`: the default family of minigpt."""

    model_type = "qwen3"
    architecture = "Qwen3ForCausalLM"
    defaults: ClassVar[dict[str, Any]] = {**Qwen2.defaults, "head_dim": 128}

    def read_more(self, options: Options, keys: dict[str, Any]) -> dict[str, Any]:
        bias = options.flag("attention_bias", False)
        return {
            **self.read_windows(options, keys["n_layer"]),
            "qk_norm": "head",
            "qkv_bias": bias,
            "out_bias": bias,
        }

    def write_more(self, config: ModelConfig) -> dict[str, Any]:
        return {**self.write_windows(config), "attention_bias": config.has_qkv_bias or config.has_out_bias}
