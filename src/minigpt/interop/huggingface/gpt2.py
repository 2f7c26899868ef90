"""GPT-2 (Radford et al. 2019): learned positions, LayerNorm, biases everywhere, matrices saved transposed."""

from collections.abc import Mapping
from typing import Any

from minigpt.config import ModelConfig
from minigpt.interop.huggingface.common import PLAIN, activation, norm_rules, outer_rules
from minigpt.interop.huggingface.family import Family
from minigpt.interop.huggingface.options import Options, model_config
from minigpt.interop.tensors import Rule, same, transposed


class GPT2(Family):
    """`GPT2LMHeadModel`."""

    model_type = "gpt2"
    architecture = "GPT2LMHeadModel"
    prefix = "transformer."
    ignored = (r"transformer\.h\.\d+\.attn\.(bias|masked_bias)",)  # the causal mask, which old versions saved

    def read(self, hf_config: Mapping[str, Any]) -> ModelConfig:
        options = Options(hf_config, self.architecture)
        options.require("scale_attn_by_inverse_layer_idx", False)
        options.require("add_cross_attention", False)
        n_embd = options.whole("n_embd", 768)
        return model_config(
            self.architecture,
            n_layer=options.whole("n_layer", 12),
            n_head=options.whole("n_head", 12),
            n_embd=n_embd,
            n_inner=options.maybe_whole("n_inner") or 4 * n_embd,
            context_length=options.whole("n_positions", 1024),
            vocab_size=options.whole("vocab_size", 50257),
            norm="layernorm",
            norm_eps=options.number("layer_norm_epsilon", 1e-5),
            position="learned",
            qk_norm="none",
            attention_scale=None if options.flag("scale_attn_weights", True) else 1.0,
            mlp=options.one_of("activation_function", "gelu_new", PLAIN),
            tie_embeddings=options.flag("tie_word_embeddings", True),
            bias=True,
        )

    def write(self, config: ModelConfig) -> dict[str, Any]:
        return {
            "vocab_size": config.vocab_size,
            "n_positions": config.context_length,
            "n_ctx": config.context_length,  # which llama.cpp's converter reads
            "n_embd": config.n_embd,
            "n_layer": config.n_layer,
            "n_head": config.n_head,
            "n_inner": config.inner_size,
            "activation_function": activation(config, {"gelu_new": "gelu_tanh", **PLAIN}),
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
            "layer_norm_epsilon": config.norm_eps,
            "scale_attn_weights": config.attention_scale != 1.0,
            "tie_word_embeddings": config.tie_embeddings,
        }

    def rules(self, config: ModelConfig) -> list[Rule]:
        rules = outer_rules(config, "transformer.wte", "transformer.ln_f")
        rules.append(same("position.weight", "transformer.wpe.weight"))
        for i in range(config.n_layer):
            ours, theirs = f"blocks.{i}", f"transformer.h.{i}"
            rules += norm_rules(config, f"{ours}.attention_norm", f"{theirs}.ln_1")
            rules += norm_rules(config, f"{ours}.mlp_norm", f"{theirs}.ln_2")
            for mine, name in (
                ("attention.qkv", "attn.c_attn"),
                ("attention.out", "attn.c_proj"),
                ("mlp.up", "mlp.c_fc"),
                ("mlp.down", "mlp.c_proj"),
            ):
                rules.append(transposed(f"{ours}.{mine}.weight", f"{theirs}.{name}.weight"))
                rules.append(same(f"{ours}.{mine}.bias", f"{theirs}.{name}.bias"))
        return rules
