"""Data parallel and sharded: gradients and weights are those of one process."""

import math
from typing import Any

import processes
import pytest
import torch
from torch import Tensor, nn

from minigpt.config import Config
from minigpt.model import GPT
from minigpt.model.init import initial_tensors
from minigpt.model.loss import IGNORED
from minigpt.parallel.build import fill, parallelise
from minigpt.parallel.exchange import whole_state, whole_tensors
from minigpt.parallel.launch import end_world, start_world
from minigpt.parallel.parallel import Batch, Parallel, Pass
from minigpt.parallel.replicated import ReplicatedParallel
from minigpt.parallel.world import World

SMALL = {
    "model": {"vocab_size": 61, "n_layer": 3, "n_head": 2, "n_embd": 32, "context_length": 8, "dropout": 0.0},
    "training": {"batch_tokens": 64, "micro_batch": 1, "max_steps": 1},
    "data": {"train": ["nothing.txt"]},
    "run": {"device": "cpu"},
}
TOLERANCE = {"rtol": 2e-5, "atol": 1e-6}  # of fp32 sums of a few hundred numbers in another order


def config_of(mesh: dict[str, int], **more: dict[str, Any]) -> Config:
    sections = {name: values | more.get(name, {}) for name, values in SMALL.items()}
    sections["distributed"] = {"mesh": mesh} | more.get("distributed", {})
    return Config.model_validate(sections)


def micro_batches(count: int) -> list[Batch]:
    """Rows of a step; in some of them only a few targets count."""
    generator = torch.Generator().manual_seed(5)
    made = []
    for number in range(count):
        ids = torch.randint(0, 61, (1, 9), generator=generator)
        targets = ids[:, 1:].clone()
        targets[:, : number % 8] = IGNORED
        made.append({"ids": ids[:, :-1], "targets": targets})
    return made


def make_pass(precision: str) -> Pass:
    def one_pass(number: int, network: nn.Module, batch: Batch) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss: Tensor = network(batch["ids"], targets=batch["targets"])
        return loss

    return one_pass


def steps(config: Config, world: World, n: int = 2) -> tuple[list[float], dict[str, Tensor], dict[str, Tensor]]:
    """Losses, whole gradients of the last step and whole weights after it (on the main process), by plain descent."""
    parallel = parallelise(config, world, torch.device("cpu"))
    fill(parallel, initial_tensors(GPT(config.model), config.model, torch.Generator().manual_seed(3)))
    batches = micro_batches(config.batch_rows)
    mine = list(range(world.data_rank, len(batches), world.data_size))
    losses, gradients = [], {}
    for _ in range(n):
        loss, gradients = step(parallel, mine, batches, make_pass(config.training.precision))
        losses.append(loss)
    return losses, gradients, {name: whole.clone() for name, whole in whole_state(parallel)}


def step(parallel: Parallel, mine: list[int], batches: list[Batch], run: Pass) -> tuple[float, dict[str, Tensor]]:
    world, model = parallel.world, parallel.model
    model.train()
    for parameter in model.parameters():
        parameter.grad = None
    valid = sum(int((batch["targets"] != IGNORED).sum()) for batch in batches)
    total = parallel.forward_backward(mine, [batches[i] for i in mine], run, 1 / valid)
    parallel.finish_gradients()
    [loss] = world.sum([total.item() / valid * world.counts_loss])
    local = {name: parallel.local(p.grad) for name, p in model.named_parameters() if p.grad is not None}
    norm = math.sqrt(world.sum([parallel.squares({n: p.grad for n, p in model.named_parameters()}).item()])[0])
    names = [name for name in parallel.shapes if not name.endswith("balance_bias")]
    gradients = {name: g.clone() for name, g in whole_tensors(world, parallel.parts, local, names)}
    if world.is_main:
        expected = torch.linalg.vector_norm(torch.stack([g.norm() for g in gradients.values()])).item()
        assert norm == pytest.approx(expected, rel=1e-5)
    own = {p: parallel.local(p.grad).clone() for p in model.parameters() if p.grad is not None}
    again = world.sum([parallel.forward(mine, [batches[i] for i in mine], run).item() / valid * world.counts_loss])[0]
    assert again == pytest.approx(loss, rel=1e-6)
    with torch.no_grad():
        for parameter in model.parameters():
            parallel.local(parameter).sub_(own[parameter], alpha=0.5)
    return loss, gradients


def spread(mesh: dict[str, int], more: dict[str, Any]) -> Any:
    """What every process ends with; the main one brings numbers as lists of arrays."""
    config = config_of(mesh, **more)
    world = start_world(config)
    losses, gradients, weights = steps(config, world)
    end_world(world)
    return losses, {k: v.numpy() for k, v in gradients.items()}, {k: v.numpy() for k, v in weights.items()}


def compare(mesh: dict[str, int], **more: Any) -> None:
    n = math.prod(mesh.values())
    alone = config_of({}, **{key: value for key, value in more.items() if key != "distributed"})
    losses, gradients, weights = steps(alone, World())
    results = processes.run(n, __file__, "spread", mesh, more)
    assert all(result[0] == results[0][0] for result in results)
    assert results[0][0] == pytest.approx(losses, rel=1e-6)
    assert list(results[0][2]) == list(weights)
    for name, whole in gradients.items():
        torch.testing.assert_close(torch.from_numpy(results[0][1][name]), whole, **TOLERANCE)
    for name, whole in weights.items():
        torch.testing.assert_close(torch.from_numpy(results[0][2][name]), whole, **TOLERANCE)
    assert all(not result[2] for result in results[1:])


def test_replicated():
    compare({"dp": 2})


def test_sharded():
    compare({"fsdp": 2})


SPEED = {
    "speed": {"smear": True, "residual_scalars": True, "backout": True, "value_embeddings": "alternate"},
    "tie_embeddings": False,
}
EXPERTS = {"moe": {"n_expert": 4, "n_expert_used": 2, "n_shared": 1, "balance": "bias"}, "tie_embeddings": True}


@pytest.mark.slow
@pytest.mark.parametrize(
    "mesh", [{"dp": 4}, {"fsdp": 4}, {"dp": 2, "fsdp": 2}], ids=lambda mesh: "-".join(map(str, mesh))
)
@pytest.mark.parametrize("model", [SPEED, EXPERTS], ids=["speed", "experts"])
def test_four_processes(mesh, model):
    compare(mesh, model=model)


@pytest.mark.slow
@pytest.mark.parametrize(
    "mesh",
    [{"fsdp": 2, "cp": 2}, {"fsdp": 2, "tp": 2}, {"dp": 2, "cp": 2}, {"pp": 2, "fsdp": 2}, {"pp": 2, "tp": 2}],
    ids=lambda mesh: "-".join(mesh),
)
def test_combined_with_what_cuts_the_network(mesh):
    compare(mesh, model=SPEED)


@pytest.mark.slow
def test_weights_that_stay_gathered():
    compare({"fsdp": 2}, model=EXPERTS, distributed={"reshard": False})


@pytest.mark.slow
def test_gathered_in_bf16():
    """Weights that are rounded before the products are what autocast makes of them."""
    losses, gradients, _ = steps(config_of({}, training={"precision": "bf16"}), World())
    more = {"training": {"precision": "bf16"}, "distributed": {"gather": "bf16"}}
    found = processes.run(2, __file__, "spread", {"fsdp": 2}, more)[0]
    assert found[0] == pytest.approx(losses, rel=1e-4)
    for name, whole in gradients.items():
        error = torch.linalg.vector_norm(torch.from_numpy(found[1][name]) - whole) / torch.linalg.vector_norm(whole)
        assert error < 2**-6, name  # a few roundings to 8 bits


@pytest.mark.slow
@pytest.mark.parametrize("level", ["selective", "full"])
def test_with_activation_checkpointing(level):
    compare({"dp": 1, "fsdp": 2}, model=EXPERTS, training={"activation_checkpointing": level})


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [{"dp": 2}, {"fsdp": 2}], ids=["dp", "fsdp"])
def test_compiled(mesh):
    compare(mesh, training={"compile": True})


def resumed(mesh: dict[str, int]) -> bool:
    """Whether a step of processes that have just begun has the same bits as that of those which went on."""
    config = config_of(mesh, model={"n_embd": 128, "n_layer": 4, "vocab_size": 1000})
    world = start_world(config)
    batches, run = micro_batches(8), make_pass("fp32")
    mine = list(range(world.data_rank, 8, world.data_size))
    first = parallelise(config, world, torch.device("cpu"))
    fill(first, initial_tensors(GPT(config.model), config.model, torch.Generator().manual_seed(3)))
    step(first, mine, batches, run)
    saved = {name: first.local(tensor).clone() for name, tensor in first.model.state_dict().items()}
    step(first, mine, batches, run)
    second = parallelise(config, world, torch.device("cpu"))
    for name, tensor in second.model.state_dict().items():
        second.local(tensor).copy_(saved[name])
    step(second, mine, batches, run)
    pairs = zip(first.model.parameters(), second.model.parameters(), strict=True)
    same = all(torch.equal(first.local(a), second.local(b)) for a, b in pairs)
    end_world(world)
    return same


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [{"dp": 4}, {"fsdp": 4}, {"dp": 2, "fsdp": 2}], ids=["dp", "fsdp", "hsdp"])
def test_a_resumed_step_has_the_same_bits(mesh):
    assert processes.run(4, __file__, "resumed", mesh) == [True] * 4


class Unused(nn.Module):
    """A network of which one parameter is used by the second process alone, and one by nobody."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Parameter(torch.ones(3)) for _ in range(3))


def unused() -> list[Any]:
    config = config_of({"dp": 2})
    world = start_world(config)
    model = Unused()
    parallel = ReplicatedParallel(model, world)  # type: ignore[arg-type]
    found = []
    for _ in range(2):
        for parameter in model.parameters():
            parameter.grad = None

        def run(number: int, network: nn.Module, batch: Batch) -> Tensor:
            return (model.a * 2 + (model.b if number else 0)).sum()

        parallel.forward_backward([world.rank], [{}], run, 1.0)
        parallel.finish_gradients()
        found.append([None if p.grad is None else p.grad.tolist() for p in model.parameters()])
    end_world(world)
    assert found[0] == found[1]
    return found[0]


def test_parameters_that_not_every_process_uses():
    results = processes.run(2, __file__, "unused")
    assert results[0] == results[1] == [[4.0] * 3, [1.0] * 3, None]


def test_initial_weights_are_drawn_whole_in_one_order():
    """Whatever the network is on, and whoever keeps which part: those of a network that draws its own."""
    config = config_of({}, model=SPEED).model
    alone = GPT(config, generator=torch.Generator().manual_seed(3))
    with torch.device("meta"):
        shapes = GPT(config)
    drawn = list(initial_tensors(shapes, config, torch.Generator().manual_seed(3)))
    assert [name for name, _ in drawn] == [name for name, _ in alone.named_parameters()]
    assert all(torch.equal(whole, parameter) for (_, whole), parameter in zip(drawn, alone.parameters(), strict=True))
