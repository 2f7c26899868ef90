"""Tensor and context parallel together with the other dimensions of the mesh, compiled, checkpointed and in bf16; and
which meshes are refused.
"""

import math
from typing import Any

import processes
import pytest
import torch
from torch import Tensor, nn

from minigpt.config import Config, RequestError
from minigpt.config.mesh import refuse_mesh, settle_mesh
from minigpt.model import GPT
from minigpt.model.init import initial_tensors
from minigpt.model.loss import IGNORED
from minigpt.parallel.build import fill, parallelise
from minigpt.parallel.launch import end_world, start_world
from minigpt.parallel.parallel import Batch

SMALL: dict[str, Any] = {
    "n_layer": 3, "n_head": 4, "n_embd": 32, "context_length": 8, "vocab_size": 61, "init_std": 0.1,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "biases": {"n_kv_head": 2, "bias": True, "norm": "layernorm", "position": "learned", "qk_norm": "full"},
    "speed": {
        "speed": {"smear": True, "residual_scalars": True, "backout": True, "value_embeddings": "alternate"},
        "tie_embeddings": False,
    },
    "experts": {"moe": {"n_expert": 4, "n_expert_used": 2, "n_shared": 1, "balance_weight": 0.3}},
}
EXACT = {"rtol": 1e-5, "atol": 1e-5}
"""fp32 sums in another order, of gradients up to about 1 (float64 equality is shown in test_tensor_parallel)."""
ROUNDED = {"rtol": 0.1, "atol": 0.02}
"""bf16 has a rounding error of 1/256, here over several layers."""


def config_of(mesh: dict[str, int], model: dict[str, Any] | None = None, **training: Any) -> Config:
    sections = {
        "model": SMALL | (model or {}),
        "training": {"batch_tokens": 64, "micro_batch": 1, "compile": False} | training,
        "distributed": {"mesh": mesh},
        "run": {"device": "cpu"},
    }
    return Config.model_validate(sections)


def batches() -> list[Batch]:
    """The micro-batches of a step; in some few targets count, in one none."""
    rows = torch.randint(61, (8, 1, 9), generator=torch.Generator().manual_seed(5))
    made = [{"ids": row[:, :-1], "targets": row[:, 1:].clone()} for row in rows]
    for i, batch in enumerate(made):
        batch["targets"][:, : 2 * i] = IGNORED
    return made


def check_mesh(mesh: dict[str, int], model: dict[str, Any], training: dict[str, Any], bounds: dict[str, float]) -> None:
    """On every process: loss and gradients of a step are its parts of those of the whole network."""
    config = config_of(mesh, model, **training)
    world = start_world(config)
    parallel = parallelise(config, world, torch.device("cpu"))
    fill(parallel, initial_tensors(GPT(config.model), config.model, torch.Generator().manual_seed(3)))
    whole = GPT(config.model, generator=torch.Generator().manual_seed(3)).train()
    expected = torch.stack([whole(**batch) for batch in batches()]).sum()
    (expected / 9).backward()
    gradients = {name: parameter.grad for name, parameter in whole.named_parameters()}
    parallel.model.train()

    def run(number: int, network: nn.Module, batch: Batch) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=config.training.precision == "bf16"):
            loss: Tensor = network(**batch)
        return loss

    mine = list(range(world.data_rank, 8, world.data_size))
    total = parallel.forward_backward(mine, [batches()[i] for i in mine], run, 1 / 9)
    parallel.finish_gradients()
    [loss] = world.sum([total.item() if world.counts_loss else 0.0])
    assert loss == pytest.approx(expected.item(), rel=bounds["rtol"])
    for name, parameter in parallel.model.named_parameters():
        part, local = parallel.parts[name], parallel.local(parameter.grad)
        said = f"{name} of {mesh} {model}: "
        torch.testing.assert_close(local, part.cut(gradients[name]), **bounds, msg=lambda s, said=said: said + s)
    end_world(world)


@pytest.mark.slow
@pytest.mark.parametrize(
    "mesh",
    [{"fsdp": 2, "tp": 2}, {"dp": 2, "tp": 2}, {"dp": 2, "cp": 2}, {"fsdp": 2, "cp": 2}, {"cp": 2, "tp": 2},
     {"pp": 2, "tp": 2}, {"pp": 2, "cp": 2}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("kind", MODELS)
def test_with_other_dimensions(mesh: dict[str, int], kind: str) -> None:
    processes.run(4, __file__, "check_mesh", mesh, MODELS[kind], {}, EXACT)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [{"tp": 2}, {"cp": 2}], ids=str)
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("training", [{"activation_checkpointing": "selective"}, {"activation_checkpointing": "full"},
                                      {"compile": True}, {"precision": "bf16"}], ids=str)  # fmt: skip
def test_with_options_of_training(mesh: dict[str, int], kind: str, training: dict[str, Any]) -> None:
    bounds = ROUNDED if "precision" in training else EXACT
    processes.run(2, __file__, "check_mesh", mesh, MODELS[kind], training, bounds, seconds=400)  # to compile


@pytest.mark.parametrize(
    ("mesh", "model", "said"),
    [
        ({"tp": 3}, {}, "model.n_head=4 heads cannot be shared equally by 3 processes (distributed.mesh tp=3)"),
        ({"tp": 2, "cp": 4}, {}, "processes (distributed.mesh tp=2 * cp=4): at most 4 of these can"),
        ({"tp": 4}, {"n_kv_head": 2}, "2 key/value heads (model.n_kv_head)"),
        ({"cp": 4}, {"context_length": 10}, "use a multiple of 4 tokens, such as 12"),
        ({"tp": 4}, {"n_inner": 3}, "a feed-forward layer of width 3"),
        ({"tp": 2}, {"mlp": "my.py:MyMLP"}, "model.mlp=my.py:MyMLP is your own"),
    ],
)
def test_impossible_meshes_are_refused(mesh: dict[str, int], model: dict[str, Any], said: str) -> None:
    context = (SMALL | model)["context_length"]
    config = config_of(mesh, model, batch_tokens=8 * context)
    sizes = settle_mesh(config, math.prod(mesh.values()))
    with pytest.raises(RequestError) as error:
        refuse_mesh(config, sizes)
    assert said in str(error.value)


def test_objectives_that_need_whole_logits_are_refused() -> None:
    config = config_of({"cp": 2})
    config = config.model_copy(update={"objective": config.objective.model_copy(update={"kind": "my.py:Objective"})})
    with pytest.raises(RequestError, match="may need whole logits"):
        refuse_mesh(config, settle_mesh(config, 2))


def test_possible_meshes_are_not_refused() -> None:
    for mesh in ({"tp": 2}, {"tp": 4}, {"cp": 4}, {"tp": 2, "cp": 2}):
        config = config_of(mesh, {"n_kv_head": 4 if mesh.get("tp") == 4 else 2})
        refuse_mesh(config, settle_mesh(config, math.prod(mesh.values())))
