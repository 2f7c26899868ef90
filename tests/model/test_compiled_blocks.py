"""Compiled blocks compute what they do without a compiler, with every option, and are never left uncompiled."""

from typing import Any

import pytest
import torch
from torch import Tensor

from minigpt.config import ModelConfig
from minigpt.model import GPT

SMALL: dict[str, Any] = {
    "n_layer": 4, "n_head": 4, "n_kv_head": 2, "n_embd": 32, "n_inner": 24, "context_length": 16, "vocab_size": 29,
    "init_std": 0.2,
}  # fmt: skip
EXPERTS = {"n_expert": 4, "n_shared": 1, "shared_gate": True, "period": 2, "z_loss_weight": 0.01}
SPEED = {"value_embeddings": "alternate", "residual_scalars": True, "smear": True, "backout": True}
OPTIONS: dict[str, dict[str, Any]] = {
    "post": {"norm_place": "post", "qk_norm": "full", "norm": "layernorm", "bias": True, "mlp": "gelu_tanh"},
    "sandwich": {
        "norm_place": "sandwich", "mlp": "geglu_tanh", "attention_softcap": 2.0, "logit_softcap": 3.0,
        "attention_window": 5, "window_pattern": "SL", "rope_local_theta": 100.0,
    },
    "parallel": {"parallel_residual": True, "partial_rotary_factor": 0.5, "mlp": "relu2", "norm_weight": False},
    "multipliers": {"residual_multiplier": 0.3, "embedding_multiplier": 3.0, "logit_multiplier": 0.5,
                    "attention_scale": 0.2, "embedding_norm": True, "embedding_size": 8},
    "latent": {"attention": "latent", "latent": {"kv_rank": 8, "q_rank": 12, "rope_dim": 4, "value_dim": 6}},
    "experts": {"moe": EXPERTS},
    "sigmoid": {"moe": EXPERTS | {"router": "sigmoid", "balance": "bias"}, "mlp": "relu2"},
    "speed": {"speed": SPEED, "tie_embeddings": False, "mlp": "relu2"},
    "many kinds of blocks": {
        "n_layer": 8, "speed": SPEED, "moe": EXPERTS | {"period": 3}, "attention_window": 5, "window_pattern": "SSSL",
        "rope_local_theta": 100.0,
    },
}  # fmt: skip


def build(options: dict[str, Any]) -> GPT:
    model = GPT(ModelConfig.model_validate(SMALL | options), generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(8))
    return model


def step(model: GPT, ids: Tensor, targets: Tensor, document_ids: Tensor | None) -> Tensor:
    loss: Tensor = model(ids, targets=targets, document_ids=document_ids)
    loss.backward()
    return loss.detach()


def check(name: str, backend: str) -> None:
    torch.compiler.reset()
    generator = torch.Generator().manual_seed(0)
    ids, targets = torch.randint(29, (2, 2, 16), generator=generator)
    documents = (torch.arange(16) // 7).expand(2, 16)
    plain, compiled = build(OPTIONS[name]), build(OPTIONS[name])
    names = list(compiled.state_dict())
    compiled.compile_blocks(backend)
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for document_ids in (None, documents):
            torch.testing.assert_close(
                step(compiled, ids, targets, document_ids), step(plain, ids, targets, document_ids)
            )
            for (key, parameter), other in zip(compiled.named_parameters(), plain.parameters(), strict=True):
                torch.testing.assert_close(
                    parameter.grad, other.grad, atol=1e-4, rtol=1e-4, msg=lambda m, k=key: f"{k}: {m}"
                )
        assert list(compiled.state_dict()) == names
        compiled.eval()
        plain.eval()
        torch.testing.assert_close(compiled.token_losses(ids, targets), plain.token_losses(ids, targets))
        if backend == "inductor":  # each shape below would be compiled anew, for a minute in all
            return
        with torch.inference_mode():
            torch.testing.assert_close(compiled(ids[:1, :9]), plain(ids[:1, :9]), atol=1e-4, rtol=1e-4)
            cache = compiled.make_cache(2, 16)
            logits = torch.cat([compiled(piece, cache=cache) for piece in ids.split([7, 1, 8], dim=1)], dim=1)
            torch.testing.assert_close(logits, plain(ids), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_traced_blocks_equal_plain_ones(name: str) -> None:
    check(name, "aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sandwich", "latent", "sigmoid", "speed"])
def test_compiled_blocks_equal_plain_ones(name: str) -> None:
    check(name, "inductor")
