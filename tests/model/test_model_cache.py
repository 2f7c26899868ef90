"""With a cache the logits are those of one full forward pass, however the tokens are fed and whatever the options."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from minigpt.model import GPT
from minigpt.model.position import RotaryPositions

T = 12
CLOSE = {"atol": 2e-5, "rtol": 1e-4}  # fp32, the same sums in another order

ATTENTION: list[dict[str, Any]] = [
    {"norm": norm, "bias": bias, "n_kv_head": kv, "qk_norm": qk_norm, **position}
    for norm, bias, kv, qk_norm, position in itertools.product(
        ("rmsnorm", "layernorm"),
        (False, True),
        (None, 2, 1),
        (True, False),
        ({"position": "learned"}, {}, {"partial_rotary_factor": 0.5}),
    )
]
REST: list[dict[str, Any]] = [
    {"mlp": mlp, **embeddings, "logit_softcap": cap}
    for mlp, embeddings, cap in itertools.product(
        ("swiglu", "geglu", "gelu", "gelu_tanh", "relu2"),
        (
            {},
            {"tie_embeddings": False, "vocab_multiple": 16},
            {"embedding_size": 8, "vocab_multiple": 16},
            {"embedding_size": 8, "tie_embeddings": False},
        ),
        (None, 2.0),
    )
]


def name(options: dict[str, Any]) -> str:
    return "-".join(f"{value}" for value in options.values())


def check(model: GPT, ids: Tensor) -> None:
    """Token by token, in pieces, and rows of different lengths, against the full forward pass of each row."""
    full = model(ids)  # (3, T, V)

    cache = model.make_cache(3, T)
    single = torch.cat([model(ids[:, t : t + 1], cache=cache) for t in range(T)], dim=1)
    torch.testing.assert_close(single, full, **CLOSE)

    cache.reset()
    pieces = torch.cat([model(piece, cache=cache) for piece in ids.split([5, 1, 4, 2], dim=1)], dim=1)
    torch.testing.assert_close(pieces, full, **CLOSE)

    # prompts of 3, 0 and 5 tokens, padded on the left, on both sides and not at all
    cache.reset()
    positions = torch.tensor([[-1, -1, 0, 1, 2], [-1, -1, -1, -1, -1], [0, 1, 2, 3, 4]])
    logits = model(ids.gather(1, positions.clamp(min=0)), cache=cache, positions=positions)
    torch.testing.assert_close(logits[0, 2:], full[0, :3], **CLOSE)
    torch.testing.assert_close(logits[2], full[2, :5], **CLOSE)
    assert cache.lengths.tolist() == [3, 0, 5]
    # each row goes on at its own length: one token, then two more with padding on the right
    following = cache.lengths[:, None]
    logits = model(ids.gather(1, following), cache=cache)
    torch.testing.assert_close(logits, full.gather(1, following[:, :, None].expand(-1, -1, full.size(2))), **CLOSE)
    positions = torch.tensor([[4, 5], [1, -1], [6, 7]])
    logits = model(ids.gather(1, positions.clamp(min=0)), cache=cache, positions=positions)
    torch.testing.assert_close(logits[[0, 2]], torch.stack([full[0, 4:6], full[2, 6:8]]), **CLOSE)
    torch.testing.assert_close(logits[1, 0], full[1, 1], **CLOSE)
    # reorder, repeat and drop rows: two rows of the third, one of the second
    cache.select([2, 1, 2])
    assert cache.lengths.tolist() == [8, 2, 8]
    logits = model(torch.stack([ids[2, 8:10], ids[1, 2:4], ids[2, 8:10]]), cache=cache)
    torch.testing.assert_close(logits, torch.stack([full[2, 8:10], full[1, 2:4], full[2, 8:10]]), **CLOSE)


@pytest.mark.parametrize("index", range(len(ATTENTION)), ids=lambda i: name(ATTENTION[i]))
@torch.no_grad()
def test_cached_equals_full(index: int, tiny: Callable[..., GPT], ids: Callable[..., Tensor]) -> None:
    """Every combination of what touches attention; the other options, which act on each token alone, take turns."""
    check(tiny(**ATTENTION[index], **REST[index % len(REST)]), ids(3, T))


@pytest.mark.slow
@pytest.mark.parametrize("index", range(len(ATTENTION)), ids=lambda i: name(ATTENTION[i]))
@torch.no_grad()
def test_cached_equals_full_for_the_whole_product(
    index: int, tiny: Callable[..., GPT], ids: Callable[..., Tensor]
) -> None:
    for rest in REST:
        check(tiny(**ATTENTION[index], **rest), ids(3, T))


@torch.no_grad()
def test_rewinding_forgets_what_came_after(tiny: Callable[..., GPT], ids: Callable[..., Tensor]) -> None:
    """Positions may go back (rejected speculative tokens, an edited prompt), evenly and unevenly."""
    model, first, second = tiny(n_kv_head=2), ids(2, T, seed=1), ids(2, T, seed=2)
    cache = model.make_cache(2, T)
    model(first, cache=cache)
    mixed = torch.cat([first[:, :4], second[:, 4:7]], dim=1)
    logits = model(second[:, 4:7], cache=cache, positions=torch.arange(4, 7).expand(2, -1))
    torch.testing.assert_close(logits, model(mixed)[:, 4:], **CLOSE)
    assert cache.lengths.tolist() == [7, 7]
    logits = model(first[:, :1], cache=cache, positions=torch.tensor([[2], [7]]))
    torch.testing.assert_close(logits[0, 0], model(torch.cat([mixed[:1, :2], first[:1, :1]], 1))[0, -1], **CLOSE)
    torch.testing.assert_close(logits[1, 0], model(torch.cat([mixed[1:], first[1:, :1]], 1))[0, -1], **CLOSE)


@torch.no_grad()
def test_a_reused_row_sees_nothing_of_its_predecessor(tiny: Callable[..., GPT], ids: Callable[..., Tensor]) -> None:
    model, first, second = tiny(), ids(2, T, seed=1), ids(1, 5, seed=2)
    cache = model.make_cache(2, T)
    model(first[:, :9], cache=cache)
    cache.reset([1])
    assert cache.lengths.tolist() == [9, 0]
    new = torch.cat([first[:1, 9:].repeat(1, 2)[:, :5], second])
    logits = model(new, cache=cache, positions=torch.tensor([[9, 10, 11, -1, -1], [0, 1, 2, 3, 4]]))
    torch.testing.assert_close(logits[1], model(second)[0], **CLOSE)
    torch.testing.assert_close(logits[0, :3], model(first[:1])[0, 9:], **CLOSE)


def test_what_padding_holds_changes_nothing(tiny: Callable[..., GPT], ids: Callable[..., Tensor]) -> None:
    """Also without a cache; and no NaN anywhere, though some padding can see nothing."""
    for options in ({}, {"position": "learned"}):
        model, tokens = tiny(**options), ids(2, 8)
        positions = torch.tensor([[-1, -1, -1, 0, 1, 2, 3, 4], [0, 1, 2, 3, -1, -1, -1, -1]])
        first = model(tokens, positions=positions)
        assert first.isfinite().all()
        second = model(torch.where(positions < 0, 3, tokens), positions=positions)
        assert torch.equal(first[positions >= 0], second[positions >= 0])
        torch.testing.assert_close(first[:1, 3:], model(tokens[:1, 3:]), **CLOSE)
        torch.testing.assert_close(first[1:, :4], model(tokens[1:, :4]), **CLOSE)
        cache = model.make_cache(2, 8)
        nothing = model(tokens[:, :2], positions=torch.full((2, 2), -1), cache=cache)
        assert nothing.isfinite().all() and cache.lengths.tolist() == [0, 0]
        cached = model(tokens, positions=positions, cache=cache)
        torch.testing.assert_close(cached[positions >= 0], first[positions >= 0], **CLOSE)


@pytest.mark.parametrize("made_inside", [True, False])
def test_inference_mode_and_grad_mode_share_a_cache(
    made_inside: bool, tiny: Callable[..., GPT], ids: Callable[..., Tensor]
) -> None:
    """Inference tensors cannot be changed or trained on outside inference mode: nothing that lasts may be one."""
    model, tokens = tiny(), ids(2, 6)
    with torch.inference_mode(made_inside):
        cache = model.make_cache(2, 8)
    with torch.inference_mode():
        model(tokens[:, :4], cache=cache)
        cache.select([1, 0])
    logits = model(tokens[[1, 0], 4:], cache=cache)
    torch.testing.assert_close(logits, model(tokens)[[1, 0], 4:], **CLOSE)
    model(tokens[:, :1], cache=cache, positions=torch.tensor([[6], [-1]]))
    model(tokens, targets=tokens).backward()
    # nor does the cache hold on to a graph
    assert not any(store.requires_grad for layer in cache.layers for store in layer.stores)
    assert isinstance(model.position, RotaryPositions) and model.position.table is not None
    assert not model.position.table.is_inference()


def test_dtype_and_bytes(tiny: Callable[..., GPT], ids: Callable[..., Tensor]) -> None:
    model, tokens = tiny(n_kv_head=2), ids(2, 6)
    assert model.make_cache(3, 10).layers[0].stores[0].dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        cache = model.make_cache(2, 10)
        full = model(tokens)
        logits = torch.cat([model(tokens[:, :4], cache=cache), model(tokens[:, 4:], cache=cache)], dim=1)
    assert cache.layers[1].stores[1].dtype == torch.bfloat16
    assert full.dtype == logits.dtype == torch.float32
    torch.testing.assert_close(logits, full, atol=0.05, rtol=0.05)  # bf16 keeps 8 bits
    # keys and values x layers x rows x (tokens + the slot for padding) x 2 heads of 4 numbers of 2 bytes
    assert cache.nbytes == 2 * 2 * 2 * 11 * 2 * 4 * 2
    narrow = model.make_cache(2, 10, dtype=torch.bfloat16)  # a cache narrower than the model
    with torch.no_grad():
        logits = torch.cat([model(tokens[:, t : t + 1], cache=narrow) for t in range(6)], dim=1)
        torch.testing.assert_close(logits, model(tokens), atol=0.05, rtol=0.05)


def test_refusals_leave_the_cache_as_it_was(tiny: Callable[..., GPT], ids: Callable[..., Tensor]) -> None:
    model, tokens = tiny(), ids(2, 8)
    with pytest.raises(ValueError, match=r"17 tokens is longer than model.context_length=16"):
        model.make_cache(1, 17)
    cache = model.make_cache(2, 6)
    model(tokens[:, :4], cache=cache)
    for wrong, message in {
        "holds 6 tokens a row but row 0 needs 7": {"ids": tokens[:, :3]},
        "2 rows but the ids have 1": {"ids": tokens[:1, :1]},
        "row 1 must count up by one": {"ids": tokens[:, :2], "positions": torch.tensor([[4, 5], [4, 4]])},
        "row 0 must count up by one from at most 4": {"ids": tokens[:, :1], "positions": torch.tensor([[5], [4]])},
        "document_ids cannot be combined": {"ids": tokens[:, :1], "document_ids": tokens[:, :1]},
    }.items():
        with pytest.raises(ValueError, match=wrong):
            model(message.pop("ids"), cache=cache, **message)
    assert cache.lengths.tolist() == [4, 4]
    torch.testing.assert_close(model(tokens[:, 4:6], cache=cache), model(tokens[:, :6])[:, 4:], **CLOSE)
