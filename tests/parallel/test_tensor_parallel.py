"""Tensor and context parallel: the loss and every gradient are those of the whole network, whatever its options."""

import copy
import importlib.util
import math
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from minigpt.config import Config, ModelConfig
from minigpt.model import GPT
from minigpt.model.loss import IGNORED
from minigpt.parallel import context, tensor
from minigpt.parallel.launch import end_world, start_world
from minigpt.parallel.replicated import sum_in_place
from minigpt.parallel.world import World
from minigpt.storage.parts import Part

BASE: dict[str, Any] = {
    "n_layer": 2,
    "n_head": 4,
    "n_kv_head": 2,
    "n_embd": 16,
    "n_inner": 22,
    "context_length": 16,
    "vocab_size": 29,
    "init_std": 0.3,
}
TOLERANCE = {"rtol": 1e-9, "atol": 1e-10}  # float64 sums in another order
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "gpt2": {
        "norm": "layernorm", "position": "learned", "mlp": "gelu_tanh", "bias": True, "qk_norm": "none",
        "n_kv_head": None, "tie_embeddings": False, "vocab_multiple": 16, "parallel_residual": True,
    },
    "olmo": {
        "qk_norm": "full", "norm_place": "post", "attention_window": 5, "window_pattern": "SL", "logit_softcap": 2.0,
    },
    "latent": {
        "attention": "latent", "latent": {"kv_rank": 6, "q_rank": 5, "rope_dim": 4, "value_dim": 3}, "bias": True,
        "norm_place": "sandwich", "attention_softcap": 2.0, "embedding_size": 5, "mlp": "relu2",
    },
    "experts": {
        "moe": {"n_expert": 3, "n_expert_used": 2, "n_inner": 7, "n_shared": 1, "shared_gate": True,
                "balance_weight": 0.5, "z_loss_weight": 0.3, "period": 2},
        "embedding_norm": True, "embedding_multiplier": 3.0, "residual_multiplier": 0.4, "logit_multiplier": 0.5,
    },
    "speed": {
        "speed": {"value_embeddings": "all", "residual_scalars": True, "smear": True, "backout": True},
        "norm_weight": False, "qk_norm": "full",
    },
}  # fmt: skip


def random_model(options: dict[str, Any]) -> GPT:
    """In float64, with all parameters and buffers random."""
    generator = torch.Generator().manual_seed(7)
    model = GPT(ModelConfig.model_validate(options), generator=generator).double().train()
    with torch.no_grad():
        for values in model.state_dict().values():
            values += 0.1 * torch.randn(values.shape, generator=generator, dtype=values.dtype)
    return model


def random_batch(length: int, documents: bool) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(19, (3, length + 1), generator=generator)
    targets = ids[:, 1:].clone()
    targets[0, 3:7] = IGNORED
    targets[2] = IGNORED
    batch = {"ids": ids[:, :-1], "targets": targets}
    if documents:
        batch["document_ids"] = (torch.arange(length) // 5).expand(3, length)
    return batch


def gradients(model: GPT, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    loss = model(**batch)
    (loss / 7).backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def check_layout(world: World, options: dict[str, Any], length: int, documents: bool) -> None:
    """On every process: what it has of the network gives its part of the loss and of the gradients."""
    whole, batch = random_model(options), random_batch(length, documents)
    whole.z_loss.weight = 0.1
    mine = copy.deepcopy(whole)
    expected, whole_gradients = gradients(whole, batch)
    split = tensor.split(mine, world)
    context.spread(mine, world)
    loss, local = gradients(mine, batch)
    missing = whole_gradients.keys() - local.keys()
    assert not missing, missing
    tp, cp = world.group("tp"), world.group("cp")
    if tp is not None:
        sum_in_place([local[name] for name in local if name in split.summed], tp)
    if cp is not None:
        sum_in_place([*local.values(), loss], cp)
    torch.testing.assert_close(loss, expected, **TOLERANCE)
    for name, gradient in whole_gradients.items():
        part = split.parts.get(name, Part.whole(gradient.shape))
        torch.testing.assert_close(
            local[name], part.cut(gradient), **TOLERANCE, msg=lambda said, name=name: f"{name}: {said}"
        )
    with torch.no_grad():
        loss = mine.eval()(**batch)
        if cp is not None:
            sum_in_place([loss], cp)
        torch.testing.assert_close(loss, whole.eval()(**batch), **TOLERANCE)


def check_layouts(mesh: dict[str, int], cases: list[tuple[dict[str, Any], int, bool]]) -> None:
    world = start_world(config_of(mesh))
    for options, length, documents in cases:
        try:
            check_layout(world, options, length, documents)
        except BaseException as error:
            raise AssertionError(f"{mesh} {options} {length} {documents}") from error
    end_world(world)


def config_of(mesh: dict[str, int]) -> Config:
    sections = {
        "model": BASE | {"n_kv_head": None},
        "distributed": {"mesh": mesh},
        "run": {"device": "cpu"},
        "training": {"batch_tokens": 16, "micro_batch": 1},
    }
    return Config.model_validate(sections)


CASES = [(BASE | options, 15 if i % 2 else 16, i % 3 == 2) for i, options in enumerate(OPTIONS.values())]


def test_two_tensor_parallel_processes_compute_what_one_does() -> None:
    processes.run(2, __file__, "check_layouts", {"tp": 2}, CASES)


def test_two_context_parallel_processes_compute_what_one_does() -> None:
    processes.run(2, __file__, "check_layouts", {"cp": 2}, CASES[::2])


FOUR = [{"tp": 4}, {"cp": 4}, {"tp": 2, "cp": 2}]


@pytest.mark.slow
@pytest.mark.parametrize("mesh", FOUR, ids=str)
def test_four_processes_compute_what_one_does(mesh: dict[str, int]) -> None:
    tp = mesh.get("tp", 1)
    cases = [({**o, "n_head": 8, "head_dim": 4, "n_kv_head": tp}, length, docs) for o, length, docs in CASES]
    processes.run(4, __file__, "check_layouts", mesh, cases)


def random_cases(n: int, count: int) -> list[tuple[dict[str, Any], int, bool]]:
    """Any options, of which `n` processes can share the heads."""
    path = Path(__file__).parents[1] / "model" / "test_every_option.py"
    spec = importlib.util.spec_from_file_location("every_option", path)
    assert spec is not None and spec.loader is not None
    every_option = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(every_option)
    found: list[tuple[dict[str, Any], int, bool]] = []

    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(every_option.configs())
    def collect(config: ModelConfig) -> None:
        wide = {"n_head": n * config.n_head, "n_kv_head": n * config.kv_heads, "n_inner": n + config.inner_size}
        moe = config.moe.model_dump() | {"n_inner": n + config.expert_size}
        options = config.model_dump() | wide | {"dropout": 0.0, "moe": moe if config.moe.n_expert else {}}
        short = 0 if config.moe.n_expert else len(found) % 4  # what is behind a short row, routers watch as well
        found.append((options, 12 - short, len(found) % 3 == 0))

    collect()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [{"tp": 2}, {"cp": 2}, *FOUR], ids=str)
def test_random_options(mesh: dict[str, int]) -> None:
    n = math.prod(mesh.values())
    processes.run(n, __file__, "check_layouts", mesh, random_cases(n, 60), seconds=220)


def check_dropout(mesh: dict[str, int]) -> int:
    """The slope of the loss along a random direction is the gradients', with what is dropped fixed by the seed."""
    world = start_world(config_of(mesh))
    model = random_model(BASE | {"dropout": 0.2, "n_layer": 1})
    split, batch, step = tensor.split(model, world), random_batch(16, documents=False), 1e-6
    context.spread(model, world)

    def summed(value: Tensor, *dimensions: str) -> Tensor:
        group = world.group(*dimensions)
        if group is not None:
            sum_in_place([value], group)
        return value

    def loss() -> Tensor:
        torch.manual_seed(5)
        return model(**batch)

    loss().backward()
    generator = torch.Generator().manual_seed(3)
    expected, directions = torch.zeros((), dtype=torch.float64), []
    for name, parameter in model.named_parameters():
        part = split.parts.get(name, Part.whole(parameter.shape))
        directions.append(part.cut(torch.randn(part.shape, generator=generator, dtype=torch.float64)))
        assert parameter.grad is not None
        expected += (parameter.grad * directions[-1]).sum()
    values = []
    for size in (step, -2 * step):
        with torch.no_grad():
            for parameter, direction in zip(model.parameters(), directions, strict=True):
                parameter += size * direction
        values.append(summed(loss().detach(), "cp"))
    slope = (values[0] - values[1]) / (2 * step)
    torch.testing.assert_close(summed(expected, "cp", "tp"), slope, rtol=1e-6, atol=1e-6)
    end_world(world)
    return torch.initial_seed()


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [{"tp": 2}, {"cp": 2}], ids=str)
def test_gradients_with_dropout_are_those_of_finite_differences(mesh: dict[str, int]) -> None:
    seeds = processes.run(2, __file__, "check_dropout", mesh)
    assert seeds[0] != seeds[1]  # they do not all drop the same
