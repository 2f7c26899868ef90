"""OLMo (Groeneveld et al. 2024): norms without weights; OLMo 2: norms behind the sub-layers and of queries and keys.

EXAONE 4 is OLMo 2 with norms of each head.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from minigpt.config import ModelConfig
from minigpt.interop.huggingface.common import (
    FULL,
    SLIDING,
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

_POST = {"attention_post_norm": "post_attention_layernorm", "mlp_post_norm": "post_feedforward_layernorm"}


class Olmo(Llama):
    """`OlmoForCausalLM`."""

    model_type = "olmo"
    architecture = "OlmoForCausalLM"
    divisible = False
    defaults: ClassVar[dict[str, Any]] = {**Llama.defaults, "vocab_size": 50304}

    def read_more(self, options: Options, keys: dict[str, Any]) -> dict[str, Any]:
        options.require("clip_qkv")
        bias = options.flag("attention_bias", False)
        return {"norm": "layernorm", "norm_eps": 1e-5, "norm_weight": False, "qkv_bias": bias, "out_bias": bias}

    def write_more(self, config: ModelConfig) -> dict[str, Any]:
        return {"attention_bias": config.has_qkv_bias or config.has_out_bias, "clip_qkv": None}


class Olmo2(Llama):
    """`Olmo2ForCausalLM` (Walsh et al. 2025)."""

    model_type = "olmo2"
    architecture = "Olmo2ForCausalLM"
    divisible = False
    defaults: ClassVar[dict[str, Any]] = {**Llama.defaults, "vocab_size": 50304, "rms_norm_eps": 1e-5}
    norms = _POST

    def read_more(self, options: Options, keys: dict[str, Any]) -> dict[str, Any]:
        bias = options.flag("attention_bias", False)
        return {"norm_place": "post", "qk_norm": "full", "qkv_bias": bias, "out_bias": bias}

    def write_more(self, config: ModelConfig) -> dict[str, Any]:
        return {"attention_bias": config.has_qkv_bias or config.has_out_bias}


class Olmo3(Olmo2):
    """`Olmo3ForCausalLM`: OLMo 2 with windows in three layers of four, whose rotary positions are not scaled."""

    model_type = "olmo3"
    architecture = "Olmo3ForCausalLM"

    def read(self, hf_config: Mapping[str, Any]) -> ModelConfig:
        options = Options(hf_config, self.architecture)
        keys = read_sizes(options, **self.defaults)
        keys |= read_layered_rope(options, 500000.0, None, "rope_theta") | self.read_more(options, keys)
        window = None if options.is_null("sliding_window") else options.whole("sliding_window", 4096)
        n_layer = keys["n_layer"]
        kinds = options.words("layer_types") or [SLIDING if (i + 1) % 4 else FULL for i in range(n_layer)]
        return model_config(self.architecture, **keys | read_windows(kinds, window, options))

    def write(self, config: ModelConfig) -> dict[str, Any]:
        more = {"sliding_window": some_window(config), "layer_types": layer_types(config)}
        return write_sizes(config) | write_layered_rope(config) | self.write_more(config) | more


class Exaone4(Llama):
    """`Exaone4ForCausalLM`: with windows its other layers would not know positions, so it is read without them."""

    model_type = "exaone4"
    architecture = "Exaone4ForCausalLM"
    divisible = False
    defaults: ClassVar[dict[str, Any]] = {
        **Llama.defaults,
        "vocab_size": 102400,
        "intermediate_size": 16384,
        "num_key_value_heads": 32,
        "rms_norm_eps": 1e-5,
    }
    norms = _POST

    def read(self, hf_config: Mapping[str, Any]) -> ModelConfig:
        options = Options(hf_config, self.architecture)
        if not options.is_null("sliding_window"):
            window = options.whole("sliding_window", 4096)
            raise options.refusal("sliding_window", window, "minigpt has no layers that know no positions")
        keys = read_sizes(options, **self.defaults) | read_rope(options)
        return model_config(self.architecture, **keys | {"norm_place": "post", "qk_norm": "head"})

    def write(self, config: ModelConfig) -> dict[str, Any]:
        windows = {"sliding_window": None, "sliding_window_pattern": None, "layer_types": [FULL] * config.n_layer}
        return write_sizes(config) | write_rope(config) | windows
