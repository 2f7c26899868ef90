"""Families with LayerNorm and rotary positions: GPT-NeoX (Black et al. 2022), StarCoder2 (2024), StableLM (2023)."""

from collections.abc import Mapping
from typing import Any, ClassVar

from minigpt.config import ModelConfig
from minigpt.interop.huggingface.common import (
    PLAIN,
    SLIDING,
    norm_rules,
    outer_rules,
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


class GPTNeoX(Llama):
    """`GPTNeoXForCausalLM`, also Pythia: a fused projection with each head's query, key and value together."""

    model_type = "gpt_neox"
    architecture = "GPTNeoXForCausalLM"
    prefix = "gpt_neox."
    head = "embed_out.weight"
    ignored = (r".*\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",)
    defaults: ClassVar[dict[str, Any]] = {
        "vocab_size": 50432,
        "hidden_size": 6144,
        "intermediate_size": 24576,
        "num_hidden_layers": 44,
        "num_attention_heads": 64,
        "max_position_embeddings": 2048,
        "hidden_act": "gelu",
    }
    norms: ClassVar[dict[str, str]] = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
    activations = PLAIN

    def read(self, hf_config: Mapping[str, Any]) -> ModelConfig:
        options = Options({"rope_theta": hf_config.get("rotary_emb_base"), **hf_config}, self.architecture)
        keys = read_sizes(options, self.activations, **self.defaults)
        own_heads(options, keys)
        rope = read_rope(options, partial=options.number("rotary_pct", 0.25))
        bias = options.flag("attention_bias", True)
        return model_config(
            self.architecture,
            **keys | rope | layer_norm(options, "layer_norm_eps"),
            parallel_residual=options.flag("use_parallel_residual", True),
            bias=True,
            qkv_bias=bias,
            out_bias=bias,
        )

    def write(self, config: ModelConfig) -> dict[str, Any]:
        said = without_heads(write_sizes(config, self.activations)) | write_rope(config, partial=True)
        return {
            **said,
            "layer_norm_eps": config.norm_eps,
            "rotary_pct": config.partial_rotary_factor,
            "rotary_emb_base": config.rope_theta,
            "attention_bias": config.has_qkv_bias or config.has_out_bias,
            "use_parallel_residual": config.parallel_residual,
            "hidden_dropout": 0.0,
        }

    def rules(self, config: ModelConfig) -> list[Rule]:
        rules = outer_rules(config, "gpt_neox.embed_in", "gpt_neox.final_layer_norm", "embed_out")
        heads, width = config.n_head, config.head_size
        for i in range(config.n_layer):
            ours, theirs = f"blocks.{i}", f"gpt_neox.layers.{i}"
            for mine, name in self.norms.items():
                rules += norm_rules(config, f"{ours}.{mine}", f"{theirs}.{name}")
            for mine, name, there in (
                ("qkv", "query_key_value", config.has_qkv_bias),
                ("out", "dense", config.has_out_bias),
            ):
                for kind in ("weight", "bias") if there else ("weight",):
                    rule = same(f"{ours}.attention.{mine}.{kind}", f"{theirs}.attention.{name}.{kind}")
                    rules.append(
                        rule.changed(0, _by_kind(heads, width), _by_head(heads, width)) if mine == "qkv" else rule
                    )
            rules += plain_rules(config, f"{ours}.mlp", f"{theirs}.mlp", "dense_h_to_4h", "dense_4h_to_h")
        return rules


class Starcoder2(Llama):
    """`Starcoder2ForCausalLM`."""

    model_type = "starcoder2"
    architecture = "Starcoder2ForCausalLM"
    divisible = False
    defaults: ClassVar[dict[str, Any]] = {
        "vocab_size": 49152,
        "hidden_size": 3072,
        "intermediate_size": 12288,
        "num_hidden_layers": 30,
        "num_attention_heads": 24,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "hidden_act": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
    }
    activations: ClassVar[Mapping[str, str]] = {"gelu_pytorch_tanh": "gelu_tanh", **PLAIN}

    def read_more(self, options: Options, keys: dict[str, Any]) -> dict[str, Any]:
        bias = options.flag("use_bias", True)
        return {
            **layer_norm(options, "norm_epsilon"),
            **read_windows([SLIDING] * keys["n_layer"], options.maybe_whole("sliding_window"), options),
            "bias": bias,
            "norm_bias": True,
        }

    def write_more(self, config: ModelConfig) -> dict[str, Any]:
        return {
            "norm_epsilon": config.norm_eps,
            "use_bias": config.has_qkv_bias or config.has_out_bias or config.has_mlp_bias,
            "sliding_window": config.window(0),
            "residual_dropout": 0.0,
            "embedding_dropout": 0.0,
        }

    def mlp_rules(self, config: ModelConfig, layer: int, ours: str, theirs: str) -> list[Rule]:
        return plain_rules(config, ours, theirs, "c_fc", "c_proj")


class StableLm(Llama):
    """`StableLmForCausalLM`."""

    model_type = "stablelm"
    architecture = "StableLmForCausalLM"
    defaults: ClassVar[dict[str, Any]] = {
        "vocab_size": 50304,
        "hidden_size": 2560,
        "intermediate_size": 6912,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
    }

    def read(self, hf_config: Mapping[str, Any]) -> ModelConfig:
        options = Options(hf_config, self.architecture)
        options.require("qk_layernorm", False)
        options.require("use_parallel_residual", False)
        keys = read_sizes(options, self.activations, **self.defaults)
        own_heads(options, keys)
        return model_config(
            self.architecture,
            **keys | read_rope(options, partial=0.25) | layer_norm(options, "layer_norm_eps"),
            qkv_bias=options.flag("use_qkv_bias", False),
            norm_bias=True,
        )

    def write(self, config: ModelConfig) -> dict[str, Any]:
        return {
            **without_heads(write_sizes(config, self.activations)),
            **write_rope(config, partial=True),
            "layer_norm_eps": config.norm_eps,
            "use_qkv_bias": config.has_qkv_bias,
            "qk_layernorm": False,
            "use_parallel_residual": False,
            "hidden_dropout": 0.0,
        }


def layer_norm(options: Options, eps: str) -> dict[str, Any]:
    """Keys of LayerNorm, whose `eps` these classes call differently."""
    return {"norm": "layernorm", "norm_eps": options.number(eps, 1e-5)}


def own_heads(options: Options, keys: dict[str, Any]) -> None:
    """`RequestError` for heads of another width than these classes make them, which is width / heads."""
    if keys["n_embd"] % keys["n_head"]:
        raise options.refusal("hidden_size", keys["n_embd"], f"it is no multiple of {keys['n_head']} heads")
    options.require("head_dim", keys["n_embd"] // keys["n_head"])


def without_heads(said: dict[str, Any]) -> dict[str, Any]:
    """What is written for a class that has no `head_dim`."""
    return {key: value for key, value in said.items() if key not in ("head_dim", "rms_norm_eps")}


def _by_kind(heads: int, width: int) -> Change:
    """Rows of each head's query, key and value to rows of all queries, all keys, all values."""
    return lambda tensor: tensor.unflatten(0, (heads, 3, width)).transpose(0, 1).flatten(0, 2)


def _by_head(heads: int, width: int) -> Change:
    """The inverse of `_by_kind`."""
    return lambda tensor: tensor.unflatten(0, (3, heads, width)).transpose(0, 1).flatten(0, 2)
