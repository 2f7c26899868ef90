"""With a cache every model gives the logits of one whole pass, however its tokens come; options drawn at random."""

import itertools
import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from minigpt.config import ModelConfig
from minigpt.model import GPT

T = 14
CLOSE = {"atol": 1e-6, "rtol": 1e-6}  # float64, but routers decide in fp32


@st.composite
def configs(draw: Any) -> ModelConfig:
    """Small models of all kinds of attention, among other parts that look back or could."""

    def one_of(*values: Any) -> Any:
        return draw(st.sampled_from(values))

    options: dict[str, Any] = {
        "n_layer": one_of(2, 3), "n_head": 4, "n_embd": 16, "n_inner": 8, "context_length": 16, "vocab_size": 29,
        "init_std": 0.2, "bias": one_of(False, True), "attention_scale": one_of(None, 0.7),
        "attention_softcap": one_of(None, 1.5), "norm": one_of("rmsnorm", "layernorm"),
        "norm_weight": one_of(True, False), "norm_place": one_of("pre", "post", "sandwich"),
        "parallel_residual": one_of(False, True), "embedding_multiplier": one_of(1.0, 3.0), "mlp_bias": False,
    }  # fmt: skip
    if one_of(True, True, False):
        options |= {"attention_window": one_of(1, 2, 3, 5, 13, 14, 40), "window_pattern": one_of("S", "SL", "LSS")}
        options |= {"rope_local_theta": one_of(None, 30.0)}
    speed: dict[str, Any] = {"residual_scalars": one_of(False, True), "smear": one_of(False, True)}
    scaling = {"kind": one_of("none", "linear", "ntk", "yarn", "llama3"), "factor": 3.0, "original_context": 6}
    if one_of(True, False):
        options |= {"attention": "latent", "latent": {
            "kv_rank": 6, "rope_dim": 4, "q_rank": one_of(None, 5), "value_dim": one_of(None, 3),
        }}  # fmt: skip
    else:
        options |= {"n_kv_head": one_of(None, 2, 1), "qk_norm": one_of("none", "head", "full")}
        options |= {"position": one_of("rope", "rope", "learned"), "partial_rotary_factor": one_of(1.0, 0.5)}
        speed["value_embeddings"] = one_of("none", "alternate", "all")
    if options.get("position", "rope") == "rope":
        options["rope_scaling"] = scaling
    if one_of(True, False, False):
        options["moe"] = {"n_expert": 3, "n_shared": one_of(0, 1), "router": one_of("softmax", "sigmoid")}
    return ModelConfig(**options, speed=speed)


def random_model(config: ModelConfig) -> GPT:
    """With every parameter random, in float64."""
    generator = torch.Generator().manual_seed(7)
    model = GPT(config, generator=generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.double().eval()


@torch.no_grad()
def check(config: ModelConfig, seed: int) -> None:
    model, choose = random_model(config), random.Random(seed)
    ids = torch.randint(29, (3, T), generator=torch.Generator().manual_seed(seed))
    full = model(ids)
    cache = model.make_cache(3, T)
    single = torch.cat([model(ids[:, t : t + 1], cache=cache) for t in range(T)], dim=1)
    torch.testing.assert_close(single, full, **CLOSE)
    cache.reset()
    ends = [0, *sorted(choose.sample(range(1, T), 3)), T]
    pieces = [model(ids[:, a:b], cache=cache) for a, b in itertools.pairwise(ends)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), full, **CLOSE)
    cache.reset()
    texts = [0, 1, 2]  # of the rows
    for _ in range(8):
        wander(model, cache, choose, ids[texts], full[texts])
        if choose.random() < 0.3:
            rows = choose.choices(range(3), k=3)
            cache.select(rows)
            texts = [texts[row] for row in rows]


def wander(model: GPT, cache: Any, choose: random.Random, ids: Tensor, full: Tensor) -> None:
    """Some tokens more of each row, sometimes from an earlier one on, with padding on both sides."""
    width = choose.randint(1, 4)
    positions = torch.full((3, width), -1)
    for row, held in enumerate(cache.row_lengths):
        start = choose.randint(0, held) if choose.random() < 0.3 else held
        count = min(choose.randint(0, width), T - start)
        shift = choose.randint(0, width - count)
        positions[row, shift : shift + count] = torch.arange(start, start + count)
    at = positions.clamp(min=0)
    logits = model(ids.gather(1, at), cache=cache, positions=positions)
    assert logits.isfinite().all()
    expected = full.gather(1, at[:, :, None].expand(-1, -1, full.size(2)))
    torch.testing.assert_close(logits[positions >= 0], expected[positions >= 0], **CLOSE)


@settings(max_examples=25, deadline=None)
@given(configs(), st.integers(0, 2**30))
def test_cached_equals_whole(config: ModelConfig, seed: int) -> None:
    """Token by token; in random pieces; rows of different lengths that go on, stand still and go back."""
    check(config, seed)


@pytest.mark.slow
@settings(max_examples=600, deadline=None)
@given(configs(), st.integers(0, 2**30))
def test_cached_equals_whole_at_length(config: ModelConfig, seed: int) -> None:
    check(config, seed)


@torch.no_grad()
def test_latent_attention_keeps_one_small_vector_a_token() -> None:
    options: dict[str, Any] = {"n_layer": 2, "n_head": 4, "n_embd": 16, "context_length": 16, "vocab_size": 29}
    latent = ModelConfig(**options, attention="latent", latent={"kv_rank": 6, "rope_dim": 4})
    cache = GPT(latent).make_cache(3, 10)
    assert cache.nbytes == 2 * 3 * 11 * (6 + 4) * 4  # layers, rows, tokens and the slot for padding, numbers of 4 bytes


@torch.no_grad()
def test_latent_attention_does_not_make_keys_of_all_that_is_stored() -> None:
    """One more stored token costs each head a score and a share of a latent vector, not a key and a value."""
    options: dict[str, Any] = {"n_layer": 1, "n_head": 4, "n_embd": 16, "context_length": 64, "vocab_size": 29}
    model = GPT(ModelConfig(**options, attention="latent", latent={"kv_rank": 6, "rope_dim": 4}))

    def operations(stored: int) -> int:
        cache = model.make_cache(1, 64)
        model(torch.zeros(1, stored, dtype=torch.int64), cache=cache)
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, 1, dtype=torch.int64), cache=cache)
        return counter.get_total_flops()

    made = 6 * 4 * (4 + 4) * 2  # the product that makes a stored token's keys and values
    assert 0 < operations(41) - operations(40) <= 2 * 4 * (6 + 4 + 6) < made


def test_windows_read_only_what_they_see() -> None:
    """A long row costs a layer with a window no more than a short one."""
    config = ModelConfig(n_head=2, n_embd=8, context_length=64, vocab_size=29, attention_window=4)
    cache = GPT(config.model_copy(update={"n_layer": 1})).make_cache(2, 64)
    cache.row_lengths = (40, 40)
    span = cache.plan(2, 1)
    assert span.short.first == 37 and span.short.mask is None and not span.short.causal
    span = cache.plan(2, 3)
    assert span.short.first == 37 and span.short.mask is not None and span.short.mask.shape == (1, 1, 3, 6)
    cache.row_lengths = (40, 30)
    span = cache.plan(2, 1)
    assert span.short.first == 27 and span.short.mask is not None and span.short.mask.shape == (2, 1, 1, 14)
    assert span.short.mask[0].sum() == span.short.mask[1].sum() == 4
