"""Muon on several processes moves the weights as one process does, and its state goes from any layout to any other."""

import math
from typing import Any

import processes
import pytest
import torch
from torch import Tensor

from minigpt.config import Config, load_config
from minigpt.model import GPT
from minigpt.model.init import initial_tensors
from minigpt.optim import Optimizer, make_optimizer, parameter_groups
from minigpt.parallel.build import fill, parallelise
from minigpt.parallel.exchange import whole_state, whole_tensors
from minigpt.parallel.launch import end_world, start_world
from minigpt.parallel.parallel import Parallel
from minigpt.parallel.world import World

MODEL = {"vocab_size": 13, "n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 32, "context_length": 8}
EXPERTS = {"n_layer": 1, "moe": {"n_expert": 4, "n_expert_used": 2, "n_inner": 32}}
STEPS = 3


def config_of(mesh: dict[str, int], model: dict[str, Any]) -> Config:
    muon = {"normalise": True, "momentum_warmup_steps": 4, "lr": 0.03}
    tree = {
        "model": MODEL | model,
        "optimizer": {"name": "muon", "lr": 0.01, "muon": muon, "groups": [{"match": "*.0.*", "lr_scale": 0.5}]},
        "training": {"batch_tokens": 96, "micro_batch": 1, "max_steps": 1},
        "data": {"train": ["nothing.txt"]},
        "run": {"device": "cpu"},
        "distributed": {"mesh": mesh},
    }
    return load_config(tree, {})[0]


def make(mesh: dict[str, int], model: dict[str, Any], world: World) -> tuple[Parallel, Optimizer]:
    config = config_of(mesh, model)
    parallel = parallelise(config, world, torch.device("cpu"))
    fill(parallel, initial_tensors(GPT(config.model), config.model, torch.Generator().manual_seed(3)))
    groups = parameter_groups(parallel.model.named_parameters(), 0.1)
    return parallel, make_optimizer(groups, config.optimizer, parallel)


def train(parallel: Parallel, optimizer: Optimizer, steps: range) -> None:
    """Whole gradients are drawn on every process alike, and each keeps what it holds of the weights."""
    from torch.distributed.tensor import DTensor

    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for name, shape in parallel.shapes.items():
            whole, parameter = torch.randn(shape, generator=generator), dict(parallel.model.named_parameters())[name]
            local = parallel.parts[name].cut(whole)
            if isinstance(parameter, DTensor):
                mesh, placements = parameter.device_mesh, parameter.placements
                local = DTensor.from_local(
                    local, mesh, placements, run_check=False, shape=parameter.shape, stride=parameter.stride()
                )
            parameter.grad = local
        optimizer.set_lr(0.01)
        optimizer.step(0.7)


def gathered(parallel: Parallel, optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Whole weights and whole state, on the main process."""
    weights = {name: whole.clone() for name, whole in whole_state(parallel)}
    state, parts = optimizer.tensors(), optimizer.parts()
    return weights, {name: t.clone() for name, t in whole_tensors(parallel.world, parts, state, list(state))}


def in_processes(mesh: dict[str, int], model: dict[str, Any], saved: dict[str, Any]) -> Any:
    """Trains, then goes on from `saved`, the weights and the state of one process."""
    world = start_world(config_of(mesh, model))
    parallel, optimizer = make(mesh, model, world)
    train(parallel, optimizer, range(STEPS))
    first = gathered(parallel, optimizer)
    fill(parallel, ((name, torch.from_numpy(array)) for name, array in saved["weights"].items()))
    parts = optimizer.parts()
    optimizer.load({name: part.cut(torch.from_numpy(saved["state"][name])) for name, part in parts.items()})
    train(parallel, optimizer, range(STEPS, STEPS + 2))
    second = gathered(parallel, optimizer)
    owned = set(optimizer.rules["muon"].exchange.owners.values())
    end_world(world)
    return [{name: t.numpy() for name, t in one.items()} for one in (*first, *second)], owned


def compare(mesh: dict[str, int], **model: Any) -> None:
    n = math.prod(mesh.values())
    parallel, optimizer = make({}, model, World())
    train(parallel, optimizer, range(STEPS))
    first = gathered(parallel, optimizer)
    saved = {
        key: {name: t.numpy() for name, t in one.items()} for key, one in zip(("weights", "state"), first, strict=True)
    }
    train(parallel, optimizer, range(STEPS, STEPS + 2))
    wanted = [*first, *gathered(parallel, optimizer)]
    (found, owners), *others = processes.run(n, __file__, "in_processes", mesh, model, saved)
    assert owners == set(range(n))  # each has its share of the work
    assert all(not any(empty) for empty, _ in others)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():  # products of a stack of other size may be rounded otherwise
            torch.testing.assert_close(torch.from_numpy(ours[name]), tensor, rtol=1e-5, atol=1e-6)


def test_sharded():
    compare({"fsdp": 2})


@pytest.mark.slow
@pytest.mark.parametrize("model", [{}, EXPERTS], ids=["dense", "experts"])
@pytest.mark.parametrize(
    "mesh",
    [{"dp": 2}, {"fsdp": 3}, {"dp": 2, "fsdp": 2}, {"tp": 2}, {"fsdp": 2, "tp": 2}, {"cp": 2}],
    ids=lambda mesh: "-".join(f"{name}{size}" for name, size in mesh.items()),
)
def test_any_mesh(mesh, model):
    compare(mesh, **model)
