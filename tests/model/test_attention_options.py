"""Every option of attention against the definition, written out for one query at a time in float64; and gradients."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from minigpt.config import ModelConfig
from minigpt.model.attend import Attend
from minigpt.model.attention import Attention, build_attention
from minigpt.model.latent_attention import LatentAttention
from minigpt.model.position import Rotation, build_positions, rotate
from minigpt.model.span import Span, plan_pass

T = 11
SMALL: dict[str, Any] = {
    "n_layer": 3, "n_head": 4, "n_kv_head": 2, "n_embd": 12, "head_dim": 4, "context_length": 16, "vocab_size": 9,
    "init_std": 0.5,
}  # fmt: skip
LATENT = {"attention": "latent", "latent": {"kv_rank": 5, "rope_dim": 2, "value_dim": 3}}
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "multi-query": {"n_kv_head": 1},
    "multi-head": {"n_kv_head": None},
    "learned": {"position": "learned"},
    "partial": {"partial_rotary_factor": 0.5},
    "no norm": {"qk_norm": "none"},
    "full norm": {"qk_norm": "full"},
    "weightless": {"norm_weight": False},
    "qkv bias": {"qkv_bias": True},
    "out bias": {"out_bias": True},
    "scale": {"attention_scale": 0.9},
    "softcap": {"attention_softcap": 1.5, "attention_scale": 2.0},
    "window": {"attention_window": 3},
    "window, softcap": {"attention_window": 4, "attention_softcap": 1.5},
    "window of one": {"attention_window": 1},
    "local theta": {"attention_window": 5, "rope_local_theta": 50.0, "rope_theta": 7.0},
    "long layer": {"attention_window": 3, "window_pattern": "L", "rope_local_theta": 50.0},
    "value embeddings": {"speed": {"value_embeddings": "all"}},
    "yarn": {"rope_scaling": {"kind": "yarn", "factor": 4.0, "original_context": 4}},
    "latent": LATENT,
    "latent, query": {**LATENT, "latent": {"kv_rank": 5, "rope_dim": 4, "q_rank": 6}},
    "latent, all": {
        **LATENT, "attention_window": 3, "attention_softcap": 2.0, "attention_scale": 0.7, "bias": True,
        "latent": {"kv_rank": 5, "rope_dim": 4, "q_rank": 6, "value_dim": 2},
    },
}  # fmt: skip


def layer(name: str, number: int = 0, **more: Any) -> tuple[ModelConfig, nn.Module]:
    """An attention in float64 with every parameter random."""
    config = ModelConfig(**{**SMALL, **OPTIONS[name], **more})
    attention = build_attention(config, number).double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return config, attention


def inputs(config: ModelConfig, documents: Tensor | None = None) -> tuple[Tensor, Span, Rotation | None]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(2, T, config.n_embd, generator=generator, dtype=torch.float64)
    span = plan_pass(T, x.device, config.context_length, config.attention_window, document_ids=documents)
    span.ids = torch.randint(9, (2, T), generator=generator)
    position = build_positions(config)
    span.local_rotation = position.local_rotation(span.positions, x.dtype)
    return x, span, position.rotation(span.positions, x.dtype)


def rms(x: Tensor, norm: Any) -> Tensor:
    if isinstance(norm, nn.Identity):
        return x
    y = x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    return y if norm.weight is None else y * norm.weight


def heads_of(attention: nn.Module, config: ModelConfig, x: Tensor, span: Span, rotation: Rotation | None) -> list:
    """Queries (B, T, H, D), keys and values (B, T, H, ...): one for each query head."""
    B, D = len(x), config.head_size
    if isinstance(attention, LatentAttention):
        q = (
            attention.q(x)
            if config.latent.q_rank is None
            else attention.q_up(rms(attention.q_down(x), attention.q_norm))
        )
        q = q.view(B, T, config.n_head, D + config.latent.rope_dim)
        down = attention.kv_down(x)
        latent = rms(down[..., : config.latent.kv_rank], attention.kv_norm)
        made = attention.kv_up(latent).view(B, T, config.n_head, D + config.value_size)
        shared = rotate(down[..., None, config.latent.kv_rank :], rotation).expand(-1, -1, config.n_head, -1)
        q = torch.cat([q[..., :D], rotate(q[..., D:], rotation)], -1)
        return [q, torch.cat([made[..., :D], shared], -1), made[..., D:]]
    assert isinstance(attention, Attention)
    sizes = [config.n_head * D, config.kv_heads * D, config.kv_heads * D]
    q, k, v = attention.qkv(x).split(sizes, dim=-1)
    if config.qk_norm == "full":
        q, k = rms(q, attention.q_norm), rms(k, attention.k_norm)
    q, k, v = (part.view(B, T, -1, D) for part in (q, k, v))
    if config.qk_norm == "head":
        q, k = rms(q, attention.q_norm), rms(k, attention.k_norm)
    if config.speed.value_embeddings == "all":
        gate = 2 / (1 + torch.exp(-attention.value_gate(x)))
        v = v + gate[..., None] * attention.value_embed.weight[span.ids].view(v.shape)
    if rotation is not None:
        q, k = rotate(q, rotation), rotate(k, rotation)
    return [q, *(part.repeat_interleave(config.n_head // config.kv_heads, dim=2) for part in (k, v))]


def definition(
    attention: nn.Module, config: ModelConfig, x: Tensor, span: Span, rotation: Rotation | None, number: int = 0,
    documents: Tensor | None = None,
) -> Tensor:  # fmt: skip
    window = config.window(number)
    if window is not None and span.local_rotation is not None:
        rotation = span.local_rotation
    q, k, v = heads_of(attention, config, x, span, rotation)
    width = q.size(-1)
    y = torch.zeros(len(x), T, config.n_head, config.value_size, dtype=x.dtype)
    for b in range(len(x)):
        for t in range(T):
            seen = [s for s in range(t + 1) if window is None or t - s < window]
            seen = [s for s in seen if documents is None or documents[b, s] == documents[b, t]]
            for h in range(config.n_head):
                scores = k[b, seen, h] @ q[b, t, h] * (config.attention_scale or 1 / math.sqrt(width))
                if config.attention_softcap is not None:
                    scores = config.attention_softcap * torch.tanh(scores / config.attention_softcap)
                weights = scores.exp() / scores.exp().sum()
                y[b, t, h] = weights @ v[b, seen, h]
    return attention.out(y.flatten(2))


def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each of the ways to compute it."""
    for blockwise in (True, False):
        monkeypatch.setattr(Attend, "_blockwise", lambda self, q, v, span, dropout, answer=blockwise: answer)
        yield


@pytest.mark.parametrize("name", OPTIONS)
@torch.no_grad()
def test_every_option_is_what_its_definition_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config, attention = layer(name)
    documents = torch.tensor([[0] * 4 + [1] * 7, [2] * 10 + [3]])
    for packed in (None, documents):
        given = inputs(config, packed)
        expected = definition(attention, config, *given, documents=packed)
        for _ in kernels(monkeypatch):
            torch.testing.assert_close(attention(*given), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", OPTIONS)
def test_gradients_are_those_of_finite_differences(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the input and of all parameters."""
    config, attention = layer(name)
    x, span, rotation = inputs(config)
    names = [name for name, _ in attention.named_parameters()]
    values = [x.requires_grad_(), *(p.detach().clone().requires_grad_() for p in attention.parameters())]

    def function(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(attention, dict(zip(names, parameters, strict=True)), (x, span, rotation))

    for _ in kernels(monkeypatch):
        assert torch.autograd.gradcheck(function, values, fast_mode=True)


def test_a_pattern_says_which_layers_have_the_window() -> None:
    config = ModelConfig(**{**SMALL, "n_layer": 5, "attention_window": 3, "window_pattern": "SSL"})
    assert [config.window(number) for number in range(5)] == [3, 3, None, 3, 3]
    x, span, rotation = inputs(config)
    changed = x.clone()
    changed[:, 0] += 1
    for number in range(5):
        _, attention = layer("default", number, attention_window=3, window_pattern="SSL", n_layer=5)
        moved = (attention(x, span, rotation) - attention(changed, span, rotation)).abs().amax((0, 2)) > 1e-12
        assert moved.tolist() == [True] * (T if number == 2 else 3) + [False] * (0 if number == 2 else T - 3)


def test_a_window_as_long_as_the_row_costs_no_mask() -> None:
    for window in (T, T + 5):
        span = plan_pass(T, torch.device("cpu"), 16, window)
        assert span.short is span.full and span.full.mask is None
