"""Groups of parameters with settings of their own."""

import pytest
import torch
from pydantic import ValidationError

from minigpt.config import ModelConfig, OptimizerConfig, RequestError
from minigpt.model import GPT
from minigpt.optim import make_optimizer, parameter_groups


def network():
    config = ModelConfig(n_layer=2, n_head=2, n_embd=32, vocab_size=11, context_length=8, tie_embeddings=False)
    return GPT(config, generator=torch.Generator().manual_seed(0))


def optimizer_of(model, **settings):
    config = OptimizerConfig(**settings)
    return make_optimizer(parameter_groups(model.named_parameters(), config.weight_decay), config)


def settings_of(optimizer):
    return {
        name: (group["kind"], group["lr"], group["weight_decay"], group["betas"])
        for group in optimizer.param_groups
        for name in group["names"]
    }


def test_each_parameter_has_its_settings_and_the_first_match_counts():
    groups = [
        {"match": "embed.weight", "lr_scale": 3.0, "weight_decay": 0.0},
        {"match": "*norm*", "betas": [0.5, 0.6]},
        {"match": "blocks.1.*", "lr_scale": 0.5},
    ]
    found = settings_of(optimizer_of(network(), lr=0.01, weight_decay=0.2, groups=groups))
    usual = (0.9, 0.95)
    assert found["embed.weight"] == ("adamw", 0.03, 0.0, usual)
    assert found["head.weight"] == ("adamw", 0.01, 0.2, usual)
    assert found["norm.weight"] == ("adamw", 0.01, 0.0, (0.5, 0.6))
    assert found["blocks.1.attention_norm.weight"] == ("adamw", 0.01, 0.0, (0.5, 0.6))
    assert found["blocks.1.mlp.down.weight"] == ("adamw", 0.005, 0.2, usual)
    assert found["blocks.0.mlp.down.weight"] == ("adamw", 0.01, 0.2, usual)
    assert found.keys() == dict(network().named_parameters()).keys()


def test_the_schedule_reaches_every_group_by_its_share():
    """The floor and the warm-up of a group that learns faster are higher alike."""
    optimizer = optimizer_of(
        network(), name="muon", lr=0.01, muon={"lr": 0.04}, groups=[{"match": "*.down.weight", "lr_scale": 0.5}]
    )
    optimizer.set_lr(0.002)
    found = settings_of(optimizer)
    assert found["embed.weight"][:2] == ("adamw", 0.002)
    assert found["blocks.0.attention.qkv.weight"][:2] == ("muon", pytest.approx(0.008))
    assert found["blocks.0.mlp.down.weight"][:2] == ("muon", pytest.approx(0.004))


def test_which_optimizer_moves_a_matrix_can_be_said():
    groups = [{"match": "head.weight", "optimizer": "muon"}, {"match": "blocks.0.*.weight", "optimizer": "adamw"}]
    found = settings_of(optimizer_of(network(), name="muon", groups=groups))
    assert found["head.weight"][0] == "muon" and found["embed.weight"][0] == "adamw"
    assert found["blocks.0.mlp.down.weight"][0] == "adamw" and found["blocks.1.mlp.down.weight"][0] == "muon"


def test_a_group_of_rate_zero_stays():
    model = network()
    optimizer = optimizer_of(model, groups=[{"match": "embed.weight", "lr_scale": 0.0}])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert [name for name, p in model.named_parameters() if torch.equal(p, before[name])] == ["embed.weight"]


def test_an_objectives_own_settings_stay():
    model = network()
    groups = [{"params": [model.embed.weight], "names": ["embed.weight"], "weight_decay": 0.3, "betas": (0.1, 0.2)}]
    [group] = make_optimizer(groups, OptimizerConfig()).param_groups
    assert (group["weight_decay"], group["betas"]) == (0.3, (0.1, 0.2))


def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(RequestError, match=r"no parameter that is trained matches 'blocks\.7\.\*'"):
        optimizer_of(network(), groups=[{"match": "blocks.7.*"}])


def test_a_pattern_behind_one_that_takes_everything_is_no_error():
    optimizer_of(network(), groups=[{"match": "*"}, {"match": "head.weight"}])


def test_muon_of_a_vector_is_refused():
    with pytest.raises(RequestError, match=r"Muon moves matrices, and blocks\.0\.attention_norm\.weight"):
        optimizer_of(network(), name="muon", groups=[{"match": "*_norm.weight", "optimizer": "muon"}])


def test_muon_in_a_group_without_muon_is_refused():
    with pytest.raises(ValidationError, match=r"optimizer\.name=muon"):
        OptimizerConfig(groups=[{"match": "*", "optimizer": "muon"}])
