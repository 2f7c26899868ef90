"""Activation checkpointing: the same bits as without, less that is kept, and nothing counted twice."""

from typing import Any

import pytest
import torch
from torch import Tensor

from minigpt.config import ModelConfig
from minigpt.model import GPT

LEVELS = ("selective", "full")
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "dropout": {"dropout": 0.2},
    "windows": {"attention_window": 8, "window_pattern": "SL"},
    "experts": {"moe": {"n_expert": 4, "n_expert_used": 2, "balance": "loss", "z_loss_weight": 0.1, "n_shared": 1}},
    "latent": {"attention": "latent", "latent": {"kv_rank": 8, "rope_dim": 4}, "attention_softcap": 20.0},
    "gpt2": {"mlp": "gelu", "norm": "layernorm", "bias": True, "position": "learned", "norm_place": "post"},
    "speed": {"speed": {"value_embeddings": "all", "smear": True, "backout": True, "residual_scalars": True}},
}


def build(level: str, options: dict[str, Any], **sizes: Any) -> GPT:
    shape = {"n_layer": 2, "n_head": 4, "n_embd": 32, "context_length": 32, "vocab_size": 29, "init_std": 0.2} | sizes
    model = GPT(ModelConfig(**(shape | options)), generator=torch.Generator().manual_seed(7)).train()
    model.set_checkpointing(level)
    return model


def gradients(model: GPT, precision: torch.dtype) -> tuple[Tensor, dict[str, Tensor]]:
    """Of two micro-batches whose forward passes both come before their backward passes, as in a pipeline."""
    batches = torch.randint(29, (2, 2, 32), generator=torch.Generator().manual_seed(1))
    torch.manual_seed(3)  # dropout's
    losses = []
    for batch in batches:
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            losses.append(model(batch, targets=batch))
    torch.manual_seed(4)  # what is drawn in the backward pass is drawn from where the forward pass was
    for loss in losses:
        loss.backward()
    return torch.stack(losses).detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", OPTIONS)
def test_the_same_bits_at_every_level(kind: str, precision: torch.dtype) -> None:
    loss, expected = gradients(build("none", OPTIONS[kind]), precision)
    for level in LEVELS:
        found, grads = gradients(build(level, OPTIONS[kind]), precision)
        assert torch.equal(found, loss) and grads.keys() == expected.keys()
        assert all(torch.equal(grads[name], expected[name]) for name in expected), level


@pytest.mark.parametrize("level", LEVELS)
def test_the_routers_count_a_pass_once(level: str) -> None:
    model = build(level, OPTIONS["experts"])
    gradients(model, torch.float32)
    assert model.routers.load is not None
    assert model.routers.load.sum(1).tolist() == [2 * 2 * 32 * 2] * 2  # micro-batches, rows, tokens, choices
    assert all(layer.routing is None for layer in model.routers.layers)


def kept_bytes(model: GPT) -> int:
    """What autograd holds between a forward and a backward pass, besides the weights."""
    batch = torch.randint(29, (4, 64), generator=torch.Generator().manual_seed(1))
    before = torch.autograd.graph.saved_tensors_hooks
    storages: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with before(pack, lambda tensor: tensor):
        loss = model(batch, targets=batch)
    total = sum(storages.values())
    loss.backward()
    return total


def test_less_is_kept_at_each_level() -> None:
    """`full` keeps the input of each block; the rest (rotations, embeddings, the head) is the same at every level."""
    none = kept_bytes(build("none", {}, n_layer=6, context_length=64))
    full = kept_bytes(build("full", {}, n_layer=6, context_length=64))
    block = 4 * 64 * 32 * 4  # rows, tokens, width, bytes
    assert none > 60 * block and full < 14 * block


@pytest.mark.parametrize("level", LEVELS)
def test_nothing_is_computed_twice_where_no_gradient_is_wanted(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(level, {})
    monkeypatch.setattr(torch.utils.checkpoint, "checkpoint", None)
    calls = []
    for block in model.blocks:
        block.recompute = lambda *arguments: calls.append(1)  # type: ignore[method-assign, assignment]
    batch = torch.zeros(1, 4, dtype=torch.int64)
    with torch.no_grad():
        model(batch, targets=batch)
    model.eval()(batch)
    assert not calls
