"""AdamW against the paper's algorithm in double precision, its groups, and its state's way to the disk and back."""

import pytest
import torch
from torch import nn

from minigpt.config import ModelConfig, OptimizerConfig
from minigpt.model import GPT
from minigpt.optim import make_optimizer, parameter_groups


def model(**changes):
    config = ModelConfig(n_layer=2, n_head=2, n_embd=32, vocab_size=11, context_length=8, **changes)
    made = GPT(config)
    made.init_weights(torch.Generator().manual_seed(0))
    return made


def step(network, optimizer, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


def make(network, **settings):
    config = OptimizerConfig(**settings)
    return make_optimizer(parameter_groups(network.named_parameters(), config.weight_decay), config), config


def test_updates_are_those_of_algorithm_2():
    """Loshchilov and Hutter 2019, algorithm 2 with a schedule of one, in fp64: equal to fp32's rounding."""
    network = model()
    optimizer, config = make(network, lr=0.01, betas=[0.9, 0.97], eps=1e-6, weight_decay=0.2)
    weights = {name: p.detach().double().clone() for name, p in network.named_parameters()}
    first = {name: torch.zeros_like(w) for name, w in weights.items()}
    second = {name: torch.zeros_like(w) for name, w in weights.items()}
    beta1, beta2 = config.betas
    for t in range(1, 6):
        step(network, optimizer, t)
        for name, parameter in network.named_parameters():
            gradient = parameter.grad.double()
            decay = config.weight_decay if parameter.dim() >= 2 else 0.0
            first[name] = beta1 * first[name] + (1 - beta1) * gradient
            second[name] = beta2 * second[name] + (1 - beta2) * gradient**2
            corrected = first[name] / (1 - beta1**t), second[name] / (1 - beta2**t)
            weights[name] -= config.lr * (corrected[0] / (corrected[1].sqrt() + config.eps) + decay * weights[name])
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.double(), weights[name], rtol=2e-5, atol=1e-7)


def test_matrices_decay_and_vectors_do_not():
    network = model(norm="layernorm", bias=True, position="learned", tie_embeddings=False)
    groups = parameter_groups(network.named_parameters(), 0.3)
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    names = {parameter: name for name, parameter in network.named_parameters()}
    decayed, plain = ({names[p] for p in group["params"]} for group in groups)
    assert decayed | plain == set(names.values()) and not decayed & plain
    assert all(("norm" in name or name.endswith("bias")) == (name in plain) for name in names.values())


def test_frozen_parameters_are_in_no_group_and_tied_ones_in_one():
    network = model()
    frozen = next(network.parameters())
    frozen.requires_grad = False
    members = [p for group in parameter_groups(network.named_parameters(), 0.1) for p in group["params"]]
    assert len(members) == len({id(p) for p in members}) == sum(1 for _ in network.parameters()) - 1
    assert all(p is not frozen for p in members)


def test_only_vectors_or_only_matrices_make_one_group():
    assert len(parameter_groups([("norm.weight", nn.Parameter(torch.ones(3)))], 0.1)) == 1
    assert len(parameter_groups([("weight", nn.Parameter(torch.ones(3, 3)))], 0.1)) == 1


def test_the_state_comes_back_bit_for_bit():
    """After saving and loading, further steps give the same bits as without."""
    network, twin = model(), model()
    optimizer, _ = make(network)
    for seed in (1, 2, 3):
        step(network, optimizer, seed)
    saved = {name: tensor.clone() for name, tensor in optimizer.tensors().items()}
    assert {name.rpartition(".")[2] for name in saved} == {"step", "exp_avg", "exp_avg_sq"}
    twin.load_state_dict(network.state_dict())
    restored, _ = make(twin)
    restored.load(saved)
    for seed in (4, 5):
        step(network, optimizer, seed)
        step(twin, restored, seed)
    for (name, one), other in zip(network.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other), name
    for name, tensor in optimizer.tensors().items():
        assert torch.equal(tensor, restored.tensors()[name]), name
    assert all(torch.equal(tensor, saved[name]) for name, tensor in saved.items())  # what was loaded is not shared


def test_before_the_first_step_there_is_no_state():
    network = model()
    optimizer, _ = make(network)
    assert optimizer.tensors() == {}
    optimizer.load({})
    step(network, optimizer, 1)


def test_a_state_that_does_not_fit_is_refused():
    network = model()
    optimizer, _ = make(network)
    step(network, optimizer, 1)
    saved = optimizer.tensors()
    name = next(iter(dict(network.named_parameters())))
    with pytest.raises(ValueError, match=f"nothing for {name}"):
        optimizer.load({k: v for k, v in saved.items() if not k.startswith(f"{name}.")})
    with pytest.raises(ValueError, match=r"no parameter: other\.weight\.step"):
        optimizer.load({**saved, "other.weight.step": torch.ones(())})


@pytest.mark.parametrize("factor", [1.0, 0.3, 2.0**-16])
def test_a_factor_is_applied_by_the_update_itself(factor):
    """As if the gradients had been multiplied first; the kernel divides by 1 / factor, hence one rounding."""
    scaled, plain = model(), model()
    (ours, _), (theirs, _) = make(scaled), make(plain)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        for a, b in zip(scaled.parameters(), plain.parameters(), strict=True):
            a.grad = torch.randn(a.shape, generator=generator) / factor
            b.grad = a.grad * factor
        ours.step(factor)
        theirs.step()
    for a, b in zip(scaled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_bit_equal_to_pytorchs_fused_one():
    ours, theirs = model(), model()
    mine, config = make(ours)
    other = torch.optim.AdamW(
        parameter_groups(theirs.named_parameters(), config.weight_decay),
        lr=config.lr, betas=tuple(config.betas), eps=config.eps, fused=True,
    )  # fmt: skip
    for seed in range(4):
        for optimizer in (mine, other):
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * (seed + 1)
        step(ours, mine, seed)
        step(theirs, other, seed)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)
        assert all(torch.equal(mine.state[a][key], other.state[b][key]) for key in other.state[b])


def test_what_has_no_gradient_is_left_alone():
    network = model()
    optimizer, _ = make(network)
    first, *rest = network.parameters()
    before = [p.clone() for p in network.parameters()]
    first.grad = torch.ones_like(first)
    optimizer.step()
    assert not torch.equal(first, before[0]) and list(optimizer.state) == [first]
    assert all(torch.equal(a, b) for a, b in zip(rest, before[1:], strict=True))
    optimizer.zero_grad()
    assert first.grad is None
