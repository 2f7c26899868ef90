"""A dry run says what the model costs: parameters, active ones, operations, cache."""

import pytest

from minigpt.config import RequestError
from minigpt.model import GPT
from minigpt.model.count import count_parameters, flops_per_token
from minigpt.training import dry_run
from minigpt.training.planning.memory import simulate
from minigpt.training.planning.plan import with_vocabulary


def test_a_mixture_of_experts(kit):
    sizes = {
        "model__moe": {"n_expert": 4, "n_expert_used": 1, "normalize": False, "n_inner": 16},
        "training__precision": "bf16",
    }
    plan = dry_run(kit.config(**sizes))
    model = plan.config.model
    parameters = sum(parameter.numel() for parameter in GPT(model).parameters())
    assert plan.parameters == parameters
    assert plan.active_parameters == parameters - 3 * 3 * 16 * model.n_embd  # three of the four sleep; each is gated
    assert (
        plan.forward_flops_per_token + plan.backward_flops_per_token == plan.flops_per_token == flops_per_token(model)
    )
    assert plan.kv_cache_bytes_per_token == 2 * 2 * model.kv_heads * model.head_size
    text = "\n".join(plan.lines)
    assert f"parameters {parameters:,} (" in text and f"{plan.active_parameters / 1e3:.3g}k active)" in text
    assert "forward" in text and "backward" in text and "of cache a token" in text
    values = plan.as_dict()
    for key in ("active_parameters", "forward_flops_per_token", "backward_flops_per_token", "kv_cache_bytes_per_token"):
        assert values[key] == getattr(plan, key)


def test_steps_that_grow_are_counted_as_they_are(kit):
    settings = kit.config(training={"max_steps": 5, "micro_batch": 2}, schedule={"accumulation": [[0, 1], [3, 2]]})
    plan = dry_run(settings)
    assert plan.tokens == (3 * 1 + 2 * 2) * 2 * settings.model.context_length


def test_a_dense_model_has_no_active_ones_to_mention(kit):
    plan = dry_run(kit.config())
    assert plan.active_parameters == plan.parameters == count_parameters(plan.config.model)
    assert "active" not in "\n".join(plan.lines)
    assert plan.kv_cache_bytes_per_token == 4 * 2 * 32  # fp32 keys and values of 32 dimensions in one layer


@pytest.mark.parametrize(
    "moe", [{"n_expert": 8, "n_expert_used": 8}, {"n_expert": 8, "n_expert_used": 6, "n_shared": 2}]
)
def test_every_expert_that_a_token_goes_to_takes_memory(kit, moe):
    def activations(**changes):
        return simulate(with_vocabulary(kit.config(model__vocab_size=16, **changes)), "cpu", 4)["activations"]

    assert activations(model__moe=moe) > 2 * activations()


def test_of_several_processes(kit):
    sizes = {"optimizer__name": "adamw", "training__micro_batch": 1, "model__n_embd": 256, "model__n_layer": 4}
    alone = dry_run(kit.config(**sizes))
    shared = dry_run(kit.config(**sizes, distributed__mesh__fsdp=2), 2)
    assert shared.tokens == alone.tokens and shared.memory_bytes < alone.memory_bytes
    assert "a process" in shared.lines[2] and "2 processes" in shared.lines[4]
    with pytest.raises(RequestError, match="needs 2 processes"):
        dry_run(kit.config(**sizes, distributed__mesh__fsdp=2))
