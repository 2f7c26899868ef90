"""Compiled blocks while training: levels of activation checkpointing, and a window and rows that change."""

from typing import Any

import pytest
import torch
from torch import Tensor

from minigpt.config import ModelConfig
from minigpt.model import GPT

SHAPE: dict[str, Any] = {
    "n_layer": 3, "n_head": 4, "n_embd": 32, "context_length": 32, "vocab_size": 29, "init_std": 0.2,
    "attention_window": 8, "window_pattern": "SSL",
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {"dense": {}, "experts": {"moe": {"n_expert": 4, "balance": "loss", "period": 2}}}


def build(**options: Any) -> GPT:
    return GPT(ModelConfig(**(SHAPE | options)), generator=torch.Generator().manual_seed(7)).train()


def gradients(model: GPT, length: int = 32) -> tuple[Tensor, dict[str, Tensor]]:
    ids = torch.randint(29, (2, length), generator=torch.Generator().manual_seed(1))
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(ids, targets=ids)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def same(found: tuple[Tensor, dict[str, Tensor]], expected: tuple[Tensor, dict[str, Tensor]]) -> bool:
    """To the rounding of bf16, in which a graph may be cut elsewhere."""
    torch.testing.assert_close(found[0], expected[0], rtol=1e-3, atol=0)
    for name, gradient in expected[1].items():
        assert float((found[1][name] - gradient).norm()) <= 0.02 * float(gradient.norm()) + 1e-4, name
    return True


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "level"), [("dense", "full"), ("dense", "selective"), ("experts", "full")])
def test_levels_of_checkpointing_compile(kind: str, level: str) -> None:
    torch.compiler.reset()
    expected = gradients(build(**KINDS[kind]))
    model = build(**KINDS[kind])
    model.set_checkpointing(level)
    model.compile_blocks("aot_eager")
    torch._dynamo.utils.counters.clear()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        assert same(gradients(model), expected)
    if kind == "dense":  # experts cut their block in pieces whatever the level
        assert not torch._dynamo.utils.counters["graph_break"]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2
    assert all(layer.routing is None for layer in model.routers.layers)


@pytest.mark.slow
def test_another_window_or_length_compiles_anew_once() -> None:
    torch.compiler.reset()
    model, plain = build(), build()
    model.compile_blocks("aot_eager", stages=5)
    counts = []
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for length, window in [(16, 4), (16, 4), (32, 4), (32, 4), (32, 6), (32, 6), (32, 8), (32, 8)]:
            for network in (model, plain):
                network.set_training_window(window)
            torch._dynamo.utils.counters.clear()
            assert same(gradients(model, length), gradients(plain, length))
            counts.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert not any(counts[1::2]) and all(counts[::2])
