"""Pipeline parallel: losses, gradients and validation are those of one process."""

import math
from functools import partial
from typing import Any

import processes
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from minigpt.config import Config, RequestError
from minigpt.config.mesh import refuse_mesh
from minigpt.model import GPT
from minigpt.model.init import initial_tensors
from minigpt.model.loss import IGNORED
from minigpt.parallel.build import fill, parallelise
from minigpt.parallel.exchange import whole_tensors
from minigpt.parallel.launch import end_world, start_world
from minigpt.parallel.parallel import Batch, Parallel
from minigpt.parallel.pipeline import Stage, stage_layers
from minigpt.parallel.world import World

MODEL = {"vocab_size": 61, "n_layer": 5, "n_head": 2, "n_embd": 32, "context_length": 8, "dropout": 0.0}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied, learned positions": {"tie_embeddings": True, "position": "learned", "embedding_size": 16},
    "speed": {
        "speed": {"smear": True, "residual_scalars": True, "backout": True, "value_embeddings": "alternate"},
        "tie_embeddings": True,
    },
    "experts": {"moe": {"n_expert": 4, "n_expert_used": 2, "balance": "loss", "balance_weight": 0.1}},
}


Case = tuple[dict[str, Any], dict[str, Any], int]
"""Of the model, of `distributed`, and how many micro-batches."""


def config_of(model: dict[str, Any], distributed: dict[str, Any]) -> Config:
    return Config.model_validate(
        {
            "model": MODEL | model,
            "training": {"batch_tokens": 64, "micro_batch": 1, "max_steps": 1},
            "data": {"train": ["nothing.txt"]},
            "run": {"device": "cpu"},
            "distributed": distributed,
        }
    )


def micro_batches(count: int) -> list[Batch]:
    """Of several lengths; in some only a few targets count; some have documents."""
    generator = torch.Generator().manual_seed(5)
    made = []
    for number in range(count):
        ids = torch.randint(0, 61, (1 + number % 3, 9 - number % 2 * 2), generator=generator)
        batch = {"ids": ids[:, :-1], "targets": ids[:, 1:].clone()}
        batch["targets"][:, : number % 5] = IGNORED
        if number % 4 == 3:
            batch["document_ids"] = (torch.arange(batch["ids"].size(1)) // 3).expand_as(batch["ids"])
        made.append(batch)
    return made


def one_pass(number: int, network: nn.Module, batch: Batch) -> Tensor:
    torch.manual_seed(number)
    documents = {name: batch[name] for name in ("document_ids",) if name in batch}
    loss: Tensor = network(batch["ids"], targets=batch["targets"], **documents)
    return loss


def one_step(parallel: Parallel, count: int) -> tuple[list[float], dict[str, Tensor]]:
    """[training loss, validation loss, gradient norm] and, on the main process, all gradients; twice."""
    world, model, batches = parallel.world, parallel.model, micro_batches(count)
    mine = list(range(world.data_rank, count, world.data_size))
    valid = sum(int((batch["targets"] != IGNORED).sum()) for batch in batches)
    for _ in range(2):
        for parameter in model.parameters():
            parameter.grad = None
        model.train()
        model.routers.clear()
        trained = parallel.forward_backward(mine, [batches[i] for i in mine], one_pass, 1 / valid)
        parallel.finish_gradients()
        model.eval()
        held_out = parallel.forward(mine, [batches[i] for i in mine], one_pass)
    counts = world.counts_loss
    squares = parallel.squares({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    sums = world.sum([trained.item() * counts, held_out.item() * counts, squares.item()])
    local = {name: parallel.local(p.grad) for name, p in model.named_parameters() if p.grad is not None}
    names = [name for name in parallel.shapes if "balance_bias" not in name]
    return [sums[0] / valid, sums[1] / valid, math.sqrt(sums[2])], dict(
        (name, g.clone()) for name, g in whole_tensors(world, parallel.parts, local, names)
    )


def ready(config: Config, world: World) -> Parallel:
    parallel = parallelise(config, world, torch.device("cpu"))
    generator = torch.Generator().manual_seed(3)
    whole = initial_tensors(GPT(config.model), config.model, generator)
    fill(
        parallel,
        ((name, t + 0.02 * torch.randn(t.shape, generator=torch.Generator().manual_seed(1))) for name, t in whole),
    )
    return parallel


def spread(cases: list[Case]) -> Any:
    """The results of several cases of one mesh."""
    results = []
    world = start_world(config_of(*cases[0][:2]))
    for model, distributed, count in cases:
        numbers, gradients = one_step(ready(config_of(model, distributed), world), count)
        results.append((numbers, {k: v.numpy() for k, v in gradients.items()}))
    end_world(world)
    return results


def compare(n: int, *cases: Case) -> None:
    every = processes.run(n, __file__, "spread", list(cases))
    for i, (model, _, count) in enumerate(cases):
        numbers, gradients = one_step(ready(config_of(model, {}), World()), count)
        assert all(results[i][0] == every[0][i][0] for results in every)
        assert every[0][i][0] == pytest.approx(numbers, rel=2e-6)
        assert set(every[0][i][1]) == set(gradients)
        for name, whole in gradients.items():
            found = torch.from_numpy(every[0][i][1][name])
            torch.testing.assert_close(found, whole, rtol=2e-5, atol=1e-6, msg=partial("{}: {}".format, name))


def test_two_stages():
    both = OPTIONS["speed"] | OPTIONS["experts"]
    one, other = ({"mesh": {"pp": 2}, "pipeline": kind} for kind in ("1f1b", "gpipe"))
    compare(2, (OPTIONS["tied, learned positions"], one, 5), (both, other, 3))


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"model": {"n_layer": 1}}, "distributed.mesh.pp=2 is more stages than model.n_layer=1 has blocks"),
        ({"objective": {"kind": "own.py:Own"}}, "needs objective.kind=pretrain"),
    ],
)
def test_impossible_stages(sections: dict[str, Any], said: str):
    with pytest.raises(RequestError, match=said):
        refuse_mesh(Config.model_validate(sections), {"pp": 2, "dp": 1, "fsdp": 1, "cp": 1, "tp": 1})


@given(st.integers(1, 40), st.data())
def test_stages_have_consecutive_blocks_about_equally_many(n_layer: int, data: st.DataObject):
    stages = data.draw(st.integers(1, n_layer))
    shares = [stage_layers(n_layer, place, stages) for place in range(stages)]
    assert [layer for share in shares for layer in share] == list(range(n_layer))
    assert {len(share) for share in shares} <= {n_layer // stages, -(-n_layer // stages)}
    assert len(shares[-1]) == min(map(len, shares))  # it has the head besides


def test_every_parameter_is_in_a_stage_and_the_shared_ones_are_known():
    for model in OPTIONS.values():
        config = config_of(model, {}).model
        with torch.device("meta"):
            whole, stages = GPT(config), [Stage(config, place, 3) for place in range(3)]
        held = [name for stage in stages for name, _ in stage.named_parameters()]
        assert set(held) == {name for name, _ in whole.named_parameters()}
        for name in set(held):
            copies = [stage.parts[name] for stage in stages if name in stage.parts]
            assert [part.copy for part in copies] == list(range(len(copies)))
            assert {part.copies for part in copies} == {len(copies)}
            assert (len(copies) > 1) == any(name in [*s.shared["ends"], *s.shared["all"]] for s in stages)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [{"pp": 4}, {"pp": 2, "dp": 2}, {"pp": 2, "fsdp": 2}, {"pp": 2, "tp": 2}], ids=str)
@pytest.mark.parametrize("kind", ["1f1b", "gpipe"])
def test_four_processes(mesh: dict[str, int], kind: str):
    compare(4, *((model, {"mesh": mesh, "pipeline": kind}, count) for model in OPTIONS.values() for count in (2, 8)))
