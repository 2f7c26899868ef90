"""Gemma (Google 2024, 2025): scaled embeddings, norms that multiply by 1 + weight, GeGLU.

Gemma 2 normalises before and behind each sub-layer, caps scores and logits, and has a window in every second layer;
Gemma 3 has norms of each head's queries and keys in place of the cap of scores, and another base where the window is.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from minigpt.config import ModelConfig
from minigpt.interop.huggingface.common import (
    FULL,
    GATED,
    SLIDING,
    activation,
    layer_types,
    read_layered_rope,
    read_rope,
    read_sizes,
    read_windows,
    some_window,
    write_layered_rope,
    write_rope,
    write_sizes,
)
from minigpt.interop.huggingface.llama import Llama
from minigpt.interop.huggingface.options import Options, model_config
from minigpt.interop.tensors import offset


class Gemma(Llama):
    """`GemmaForCausalLM`."""

    model_type = "gemma"
    architecture = "GemmaForCausalLM"
    defaults: ClassVar[dict[str, Any]] = {
        "vocab_size": 256000,
        "hidden_size": 3072,
        "intermediate_size": 24576,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 256,
        "hidden_act": "gelu_pytorch_tanh",
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    }
    norm = staticmethod(offset)

    def read_more(self, options: Options, keys: dict[str, Any]) -> dict[str, Any]:
        # Old files say hidden_act="gelu" and mean the approximation, as hidden_activation then says or leaves out.
        options.require("use_bidirectional_attention", False)
        bias = options.flag("attention_bias", False)
        multiplier = math.sqrt(keys["n_embd"])
        return {"embedding_multiplier": multiplier, "qkv_bias": bias, "out_bias": bias}

    def write_more(self, config: ModelConfig) -> dict[str, Any]:
        return {"attention_bias": config.has_qkv_bias or config.has_out_bias}


class Gemma2(Gemma):
    """`Gemma2ForCausalLM`."""

    model_type = "gemma2"
    architecture = "Gemma2ForCausalLM"
    defaults: ClassVar[dict[str, Any]] = {
        **Gemma.defaults,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    }
    norms: ClassVar[dict[str, str]] = {
        "attention_norm": "input_layernorm",
        "attention_post_norm": "post_attention_layernorm",
        "mlp_norm": "pre_feedforward_layernorm",
        "mlp_post_norm": "post_feedforward_layernorm",
    }
    caps: ClassVar[tuple[float | None, float | None]] = (50.0, 30.0)
    """The class's caps of scores and of logits."""

    def read(self, hf_config: Mapping[str, Any]) -> ModelConfig:
        options = Options(hf_config, self.architecture)
        keys = read_sizes(options, **self.defaults) | self.read_rope(options)
        if keys["n_embd"] % keys["n_head"]:
            raise options.refusal("hidden_size", keys["n_embd"], f"it is no multiple of {keys['n_head']} heads")
        return model_config(self.architecture, **keys | self.read_more(options, keys))

    def read_rope(self, options: Options) -> dict[str, Any]:
        """Rotary positions."""
        return read_rope(options)

    def read_more(self, options: Options, keys: dict[str, Any]) -> dict[str, Any]:
        window = None if options.is_null("sliding_window") else options.whole("sliding_window", 4096)
        kinds = options.words("layer_types") or self.usual_kinds(options, keys["n_layer"])
        score_cap, logit_cap = self.caps
        return {
            **super().read_more(options, keys),
            **read_windows(kinds, window, options),
            "mlp": options.one_of("hidden_activation", "gelu_pytorch_tanh", GATED),
            "norm_place": "sandwich",
            "attention_scale": options.positive("query_pre_attn_scalar", 256) ** -0.5,
            "attention_softcap": options.maybe_number("attn_logit_softcapping", score_cap),
            "logit_softcap": options.maybe_number("final_logit_softcapping", logit_cap),
        }

    def usual_kinds(self, options: Options, n_layer: int) -> list[str]:
        """Each layer's kind where `layer_types` does not say it."""
        return [FULL if i % 2 else SLIDING for i in range(n_layer)]

    def write(self, config: ModelConfig) -> dict[str, Any]:
        scalar = config.score_scale**-2
        whole = round(scalar)  # which it must be
        return {
            **write_sizes(config),
            **self.write_rope(config),
            **self.write_more(config),
            "hidden_activation": activation(config, {"gelu_pytorch_tanh": "geglu_tanh", **GATED}),
            "query_pre_attn_scalar": whole if math.isclose(whole, scalar, rel_tol=1e-12) else config.head_size,
            "sliding_window": some_window(config),
            "layer_types": layer_types(config),
            "attn_logit_softcapping": config.attention_softcap,
            "final_logit_softcapping": config.logit_softcap,
        }

    def write_rope(self, config: ModelConfig) -> dict[str, Any]:
        """The inverse of `read_rope`."""
        return write_rope(config)


class Gemma3(Gemma2):
    """`Gemma3ForCausalLM`: the models without pictures."""

    model_type = "gemma3_text"
    architecture = "Gemma3ForCausalLM"
    defaults: ClassVar[dict[str, Any]] = {
        **Gemma2.defaults,
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
    }
    caps = (None, None)

    def read_rope(self, options: Options) -> dict[str, Any]:
        return read_layered_rope(options, 1e6, 1e4, "rope_local_base_freq")

    def read_more(self, options: Options, keys: dict[str, Any]) -> dict[str, Any]:
        options.require("attn_logit_softcapping")
        return {**super().read_more(options, keys), "qk_norm": "head"}

    def usual_kinds(self, options: Options, n_layer: int) -> list[str]:
        period = options.whole("sliding_window_pattern", 6)
        return [SLIDING if (i + 1) % period else FULL for i in range(n_layer)]

    def write(self, config: ModelConfig) -> dict[str, Any]:
        return {**super().write(config), "attn_logit_softcapping": None}

    def write_rope(self, config: ModelConfig) -> dict[str, Any]:
        return write_layered_rope(config, "rope_local_base_freq")
