"""The network against Hugging Face's models with the same weights: logits, losses and gradients."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from minigpt.config import ModelConfig
from minigpt.model import GPT, count_parameters

transformers = pytest.importorskip("transformers")

Weights = dict[str, torch.Tensor]
SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 61}
LLAMA = {
    **SIZES,
    "intermediate_size": 48,
    "num_key_value_heads": 2,
    "max_position_embeddings": 24,
    "rms_norm_eps": 1e-5,
}
OURS: dict[str, Any] = {
    "n_layer": 2,
    "n_head": 4,
    "n_embd": 32,
    "n_inner": 48,
    "context_length": 24,
    "vocab_size": 61,
    "norm_eps": 1e-5,
    "qk_norm": False,
}


def rename(weights: Weights, table: dict[str, str]) -> Weights:
    """Rename by replacing parts of names, in order."""
    renamed = {}
    for name, tensor in weights.items():
        for old, new in table.items():
            name = name.replace(old, new)
        renamed[name] = tensor
    return renamed


def join(weights: Weights, joined: str, *parts: str) -> Weights:
    """Replace tensors that differ only in one part of their name by their concatenation over rows."""
    result = dict(weights)
    for name in [name for name in weights if parts[0] in name]:
        result[name.replace(parts[0], joined)] = torch.cat([result.pop(name.replace(parts[0], part)) for part in parts])
    return result


def from_gpt2(weights: Weights) -> Weights:
    weights = {
        name: tensor.t() if "c_" in name and name.endswith("weight") else tensor  # Conv1D is a transposed Linear
        for name, tensor in weights.items()
        if name != "lm_head.weight"
    }
    return rename(
        weights,
        {
            "transformer.": "",
            "wte": "embed",
            "wpe": "position",
            "h.": "blocks.",
            "ln_1": "attention_norm",
            "ln_2": "mlp_norm",
            "ln_f": "norm",
            "attn.c_attn": "attention.qkv",
            "attn.c_proj": "attention.out",
            "mlp.c_fc": "mlp.up",
            "mlp.c_proj": "mlp.down",
        },
    )


def from_llama(weights: Weights) -> Weights:
    """Llama and Qwen3."""
    renamed = rename(
        weights,
        {
            "lm_head": "head",
            "model.embed_tokens": "embed",
            "model.layers": "blocks",
            "model.norm": "norm",
            "input_layernorm": "attention_norm",
            "post_attention_layernorm": "mlp_norm",
            "self_attn": "attention",
            "o_proj": "out",
            "down_proj": "down",
        },
    )
    return join(join(renamed, "qkv", "q_proj", "k_proj", "v_proj"), "gate_up", "gate_proj", "up_proj")


def from_neox(weights: Weights) -> Weights:
    def heads_apart(tensor: torch.Tensor) -> torch.Tensor:
        """Rows (head, q/k/v, dim) to (q/k/v, head, dim)."""
        return tensor.view(4, 3, 8, -1).transpose(0, 1).reshape(tensor.shape)

    weights = {name: heads_apart(t) if "query_key_value" in name else t for name, t in weights.items()}
    return rename(
        weights,
        {
            "gpt_neox.embed_in": "embed",
            "gpt_neox.layers": "blocks",
            "gpt_neox.final_layer_norm": "norm",
            "embed_out": "head",
            "lm_head": "head",  # its name in newer releases
            "input_layernorm": "attention_norm",
            "post_attention_layernorm": "mlp_norm",
            "attention.query_key_value": "attention.qkv",
            "attention.dense": "attention.out",
            "dense_h_to_4h": "up",
            "dense_4h_to_h": "down",
        },
    )


def gpt2_config(activation: str) -> Any:
    return transformers.GPT2Config(
        n_embd=32, n_layer=2, n_head=4, n_inner=48, n_positions=24, vocab_size=61, activation_function=activation,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip


def llama_config(**options: Any) -> Any:
    return transformers.LlamaConfig(
        **LLAMA, rope_theta=1000.0, bos_token_id=0, eos_token_id=0, **{"tie_word_embeddings": False, **options}
    )


GPT2: dict[str, Any] = {**OURS, "norm": "layernorm", "position": "learned", "bias": True}
LLAMA_OURS: dict[str, Any] = {**OURS, "n_kv_head": 2, "tie_embeddings": False, "rope_theta": 1000.0}
CASES: dict[str, tuple[str, Callable[[], Any], Callable[[Weights], Weights], dict[str, Any]]] = {
    "gpt2": ("GPT2LMHeadModel", lambda: gpt2_config("gelu_new"), from_gpt2, {**GPT2, "mlp": "gelu_tanh"}),
    "gpt2-erf": ("GPT2LMHeadModel", lambda: gpt2_config("gelu"), from_gpt2, {**GPT2, "mlp": "gelu"}),
    "gpt2-relu2": ("GPT2LMHeadModel", lambda: gpt2_config("relu2"), from_gpt2, {**GPT2, "mlp": "relu2"}),
    "llama": ("LlamaForCausalLM", llama_config, from_llama, LLAMA_OURS),
    "llama-biases-tied-geglu": (
        "LlamaForCausalLM",
        lambda: llama_config(attention_bias=True, mlp_bias=True, hidden_act="gelu", tie_word_embeddings=True),
        from_llama,
        {**LLAMA_OURS, "bias": True, "mlp": "geglu", "tie_embeddings": True},
    ),
    "qwen3": (
        "Qwen3ForCausalLM",
        lambda: transformers.Qwen3Config(
            **LLAMA, rope_theta=1000.0, head_dim=16, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0
        ),
        from_llama,
        {**LLAMA_OURS, "qk_norm": True, "head_dim": 16, "tie_embeddings": True},
    ),
    "gptneox-partial-rotary": (
        "GPTNeoXForCausalLM",
        lambda: transformers.GPTNeoXConfig(
            **SIZES,
            intermediate_size=48,
            max_position_embeddings=24,
            rotary_pct=0.5,
            rotary_emb_base=1000,
            use_parallel_residual=False,
            hidden_act="gelu",
            tie_word_embeddings=False,
            attention_bias=True,
            bos_token_id=0,
            eos_token_id=0,
        ),
        from_neox,
        {
            **OURS,
            "norm": "layernorm",
            "bias": True,
            "mlp": "gelu",
            "partial_rotary_factor": 0.5,
            "rope_theta": 1000.0,
            "tie_embeddings": False,
        },
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_logits_loss_and_gradients_equal_hugging_face(case: str) -> None:
    kind, their_config, convert, our_options = CASES[case]
    theirs = getattr(transformers, kind)._from_config(their_config(), attn_implementation="eager")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():  # everything random, biases and norms included
            around = 1.0 if parameter.ndim == 1 and name.endswith("weight") else 0.0
            parameter.copy_(around + 0.15 * torch.randn(parameter.shape, generator=generator))
    theirs.eval()
    ours = GPT(ModelConfig(**our_options)).eval()
    ours.load_state_dict(convert({n: p.detach() for n, p in theirs.named_parameters()}))
    assert ours.num_parameters() == theirs.num_parameters()

    ids = torch.randint(61, (3, 24), generator=generator)
    targets = torch.randint(61, (3, 24), generator=generator)
    targets[1, :9] = -100
    # fp32 sums of a few dozen terms in another order: 1e-5
    logits = theirs(ids).logits
    torch.testing.assert_close(ours(ids), logits, atol=1e-5, rtol=1e-5)

    their_loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    loss = ours(ids, targets=targets)
    torch.testing.assert_close(loss, their_loss)
    torch.testing.assert_close(
        ours.token_losses(ids, targets).flatten(),
        F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none"),
        atol=1e-5, rtol=1e-5,
    )  # fmt: skip
    their_loss.backward()
    loss.backward()
    expected = convert({n: p.grad for n, p in theirs.named_parameters() if p.grad is not None})
    gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        scale = expected[name].abs().max().item()
        torch.testing.assert_close(gradient, expected[name], atol=1e-5 * scale, rtol=1e-4, msg=lambda m, n=name: n + m)


def test_golden_logits_of_a_published_gpt2(test_data: Callable[[str], Path]) -> None:
    folder = test_data("weights/loractl_tiny_gpt2")
    from safetensors.torch import load_file

    golden = json.loads((folder / "gpt2_tiny_golden.json").read_text())
    their = golden["config"]
    model = GPT(
        ModelConfig(
            n_layer=their["n_layer"],
            n_head=their["n_head"],
            n_embd=their["n_embd"],
            n_inner=their["n_inner"],
            context_length=their["n_positions"],
            vocab_size=their["vocab_size"],
            norm="layernorm",
            norm_eps=their["layer_norm_epsilon"],
            position="learned",
            mlp="gelu_tanh",
            bias=True,
            qk_norm=False,
        )
    ).eval()
    model.load_state_dict(from_gpt2(load_file(folder / "model.safetensors")))
    ids = torch.tensor([golden["input_ids"]])
    expected = torch.tensor(golden["logits"]).view(1, *golden["logits_shape"])
    torch.testing.assert_close(model(ids), expected, atol=1e-5, rtol=0)
    hidden = torch.tensor(golden["hidden_after_lnf"]).view(1, *golden["hidden_shape"])
    torch.testing.assert_close(model.hidden_states(ids), hidden, atol=1e-5, rtol=0)


def test_gpt2_sizes() -> None:
    """GPT-2's four published sizes, as Hugging Face counts them."""
    published = {(12, 12, 768): 124_439_808, (24, 16, 1024): 354_823_168, (36, 20, 1280): 774_030_080,
                 (48, 25, 1600): 1_557_611_200}  # fmt: skip
    for (n_layer, n_head, n_embd), parameters in published.items():
        config = ModelConfig(
            n_layer=n_layer,
            n_head=n_head,
            n_embd=n_embd,
            context_length=1024,
            vocab_size=50257,
            norm="layernorm",
            position="learned",
            mlp="gelu_tanh",
            bias=True,
            qk_norm=False,
        )
        assert count_parameters(config) == parameters
