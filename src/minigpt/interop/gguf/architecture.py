"""What an architecture of llama.cpp is to us: which options are fixed in it, and how its keys say the others.

As with Hugging Face's families (`interop.huggingface.family`), nothing is looked up in a table of what is possible:
`write` says a model as well as the architecture can, `read` understands that again, and where the two differ it does
not represent the model.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from minigpt.config import ModelConfig, RequestError
from minigpt.interop.gguf import latent, rotation
from minigpt.interop.gguf.experts import Experts
from minigpt.interop.gguf.windows import Windows
from minigpt.interop.huggingface.options import model_config

Keys = dict[str, Any]
"""Values by key, without the architecture's name before it: `attention.head_count`."""

BIASES = {"qkv_bias": "attn_q.bias", "out_bias": "attn_output.bias", "mlp_bias": "ffn_down.bias"}
"""Options of biases, and a tensor of each block (with separate queries, keys and values) that is there with them."""


@dataclass(frozen=True)
class Architecture:
    """One architecture of llama.cpp (a file in its src/models)."""

    name: str
    fixed: Mapping[str, Any]
    """What every model of it is, by keys of `ModelConfig`."""
    always: tuple[str, ...] = ()
    """Biases that must be there."""
    maybe: tuple[str, ...] = ()
    """Biases that may be there."""
    head: Literal["any", "own", "tied"] = "any"
    """Whether the head may be the embedding's matrix, must not be, or must be."""
    wide_heads: bool = False
    """Whether heads may have another width than n_embd / n_head."""
    partial: bool = False
    """Whether only a part of each head may rotate."""
    fused: bool = False
    """Queries, keys and values are one tensor."""
    interleaved: bool = False
    """Neighbouring dimensions rotate together, not those half a head apart."""
    tables: bool = False
    """Whether it divides the rotary frequencies by a table (`rope_freqs`)."""
    scaling: bool = True
    """Whether it scales rotary positions at all."""
    multi_head: bool = False
    """Each head has keys and values of its own."""
    latent: bool = False
    """Attention is latent."""
    windows: Windows | None = None
    """How it says which layers have a window, if it can."""
    scaled_embeddings: bool = False
    """Embeddings are multiplied by the square root of their width."""
    factors: Mapping[str, str] = field(default_factory=dict)
    """Its keys for factors and switches that others lack, by keys of `ModelConfig`."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What it takes for options whose keys are not there."""
    experts: Experts | None = None
    mean_width_layers: int | None = None
    """Number of layers at which it scales scores by n_embd / n_head, whatever the heads' width is."""
    other_layers: int | None = None
    """Number of layers at which it is a network that nothing here represents."""

    def write(self, config: ModelConfig) -> Keys:
        """The keys that say as much of `config` as can be said."""
        keys: Keys = {
            "context_length": config.context_length,
            "embedding_length": config.n_embd,
            "block_count": config.n_layer,
            "feed_forward_length": config.inner_size,
            "attention.head_count": config.n_head,
            "attention.head_count_kv": config.kv_heads,
            "vocab_size": config.vocab_size,
            self._eps_key: config.norm_eps,
        }
        if self.wide_heads:
            keys |= {"attention.key_length": config.head_size, "attention.value_length": config.head_size}
        if self._rotates and not self.latent:
            keys |= rotation.write(config, partial=self.partial, tables=self.tables, scaling=self.scaling)
        if self.windows is not None:
            keys |= self.windows.write(config)
        for option, key in self.factors.items():
            value = config.score_scale if option == "attention_scale" else getattr(config, option)
            if value is not None:
                keys[key] = 1 / value if option == "logit_multiplier" else value  # Granite divides
        if self.experts is not None:
            keys |= self.experts.write(config)
        if self.latent:
            keys |= latent.write(config)
        return keys

    def read(self, keys: Mapping[str, Any], tensors: Collection[str]) -> ModelConfig:
        """The configuration that a file with these keys and names of tensors has.

        RequestError: a key is missing, or of a value that no option represents.
        """
        heads, width = self._whole(keys, "attention.head_count"), self._whole(keys, "embedding_length")
        options: dict[str, Any] = {
            "n_layer": self._whole(keys, "block_count"),
            "n_head": heads,
            "n_kv_head": heads if self.multi_head else self._whole(keys, "attention.head_count_kv", heads),
            "n_embd": width,
            "head_dim": self._whole(keys, "attention.key_length", width // heads) if self.wide_heads else None,
            "n_inner": self._whole(keys, "feed_forward_length"),
            "context_length": self._whole(keys, "context_length"),
            "vocab_size": self._whole(keys, "vocab_size"),
            "norm_eps": self._number(keys, self._eps_key),
            "tie_embeddings": {"own": False, "tied": True}.get(self.head, "output.weight" not in tensors),
            **{option: self._has(option, tensors) for option in BIASES},
        }
        if self.fixed["norm"] == "layernorm":
            options["norm_bias"] = True
        if self.latent:
            options |= latent.read(keys)
        elif self._rotates:
            options |= rotation.read(keys, options["head_dim"] or width // heads, partial=self.partial)
        if self.windows is not None:
            options |= self.windows.read(keys, options)
        options |= self.defaults
        if self.scaled_embeddings:
            options["embedding_multiplier"] = math.sqrt(width)
        if options["n_layer"] == self.mean_width_layers:
            options["attention_scale"] = (width // heads) ** -0.5
        if options["n_layer"] == self.other_layers:
            raise RequestError(
                f"llama.cpp takes every {self.name} of {self.other_layers} layers for a published model, which has "
                "parts that minigpt does not have"
            )
        for option, key in self.factors.items():
            if isinstance(keys.get(key), bool):
                options[option] = keys[key]
            elif key in keys:
                value = self._number(keys, key)
                options[option] = 1 / value if option == "logit_multiplier" else value
        options |= self.fixed
        if self.experts is not None:
            options["moe"] = self.experts.read(keys, tensors)
        return model_config(f"GGUF's {self.name}", **options)

    @property
    def _rotates(self) -> bool:
        return self.fixed["position"] == "rope"

    @property
    def _eps_key(self) -> str:
        return f"attention.layer_norm_{'rms_' if self.fixed['norm'] == 'rmsnorm' else ''}epsilon"

    def _has(self, option: str, tensors: Collection[str]) -> bool:
        return option in self.always or (option in self.maybe and f"blk.0.{BIASES[option]}" in tensors)

    def _whole(self, keys: Mapping[str, Any], key: str, default: int | None = None) -> int:
        value = keys.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise RequestError(f"the GGUF file has {self.name}.{key}={value!r}: expected a whole number above 0")
        return value

    def _number(self, keys: Mapping[str, Any], key: str) -> float:
        value = keys.get(key)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise RequestError(f"the GGUF file has {self.name}.{key}={value!r}: expected a number")
        return float(value)
