"""Muon against its equations in double precision, PyTorch's own, and its state's way to the disk and back."""

import math

import pytest
import torch

from minigpt.config import ModelConfig, OptimizerConfig
from minigpt.model import GPT
from minigpt.optim import make_optimizer, parameter_groups
from minigpt.optim.matrices import cost, for_muon, owners, row_sections
from minigpt.parallel.parallel import Parallel

EXACT = {"method": "polar-express", "steps": 14}  # the orthogonal factor to fp32's rounding


def network(**changes):
    settings = {"n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 32, "vocab_size": 11, "context_length": 8}
    return GPT(ModelConfig(**settings | changes), generator=torch.Generator().manual_seed(0))


def make(model, muon=None, **settings):
    config = OptimizerConfig(name="muon", muon=muon or {}, **{"lr": 0.01} | settings)
    groups = parameter_groups(model.named_parameters(), config.weight_decay)
    return make_optimizer(groups, config, Parallel(model))


def set_gradients(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def muon_names(optimizer):
    return {name for group in optimizer.param_groups if group["kind"] == "muon" for name in group["names"]}


def polar(matrix):
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u @ vh


def expected(model, sections, muon, lr, decay, steps, factor=1.0):
    """The weights after so many steps by the equations, in float64, matrix by matrix."""
    weights = {name: p.detach().double().clone() for name, p in model.named_parameters() if name in sections}
    momenta = {name: torch.zeros_like(w) for name, w in weights.items()}
    seconds = {}
    for step in range(steps):
        set_gradients(model, step)
        rise = min(1.0, step / muon.get("momentum_warmup_steps", 1) if "momentum_warmup_steps" in muon else 1.0)
        mu = 0.85 + (muon.get("momentum", 0.95) - 0.85) * rise
        for name, parameter in model.named_parameters():
            if name not in sections:
                continue
            gradient = parameter.grad.double() * factor
            momenta[name] = mu * momenta[name] + (1 - mu) * gradient
            asked = mu * momenta[name] + (1 - mu) * gradient if muon.get("nesterov", True) else momenta[name]
            whole = asked if asked.dim() == 3 else asked[None]
            moved = torch.empty_like(whole)
            for i, matrix in enumerate(whole):
                first = 0
                for rows in sections[name]:
                    u = polar(matrix[first : first + rows])
                    if muon.get("normalise"):
                        second = seconds.get((name, i, first), torch.zeros(rows, dtype=torch.float64))
                        second = muon.get("beta2", 0.95) * second + (1 - muon.get("beta2", 0.95)) * (u * u).mean(1)
                        seconds[name, i, first] = second
                        normalised = u / second.sqrt()[:, None]
                        u = normalised * u.norm() / normalised.norm()
                    n, m = u.shape
                    scale = 0.2 * math.sqrt(max(n, m)) if muon.get("scale", "rms") == "rms" else max(1, n / m) ** 0.5
                    moved[i, first : first + rows] = u * scale
                    first += rows
            moved = moved.view_as(asked)
            decayed = (weights[name] * moved > 0) if muon.get("cautious") else 1.0
            weights[name] = weights[name] - lr * decay * weights[name] * decayed - lr * moved
    return weights


SECTIONS = {"attention.qkv.weight": (32, 16, 16), "attention.out.weight": (32,), "mlp.gate_up.weight": (96, 96),
            "mlp.down.weight": (32,)}  # fmt: skip


@pytest.mark.parametrize(
    "muon",
    [
        {},
        {"nesterov": False, "momentum": 0.9, "scale": "spectral"},
        {"normalise": True, "beta2": 0.9},
        {"cautious": True, "momentum_warmup_steps": 3},
    ],
    ids=lambda muon: "-".join(muon) or "plain",
)
def test_updates_are_those_of_the_equations(muon):
    """With as many steps of the iteration as reach the orthogonal factor; fp32 against float64's decomposition."""
    model = network()
    sections = {f"blocks.{i}.{name}": rows for i in range(2) for name, rows in SECTIONS.items()}
    wanted = expected(network(), sections, muon, 0.01, 0.1, 4, factor=0.5)
    optimizer = make(model, {**EXACT, **muon})
    assert muon_names(optimizer) == set(sections)
    for step in range(4):
        set_gradients(model, step)
        optimizer.set_lr(0.01)
        optimizer.step(0.5)
    for name, parameter in model.named_parameters():
        if name in sections:  # updates of 0.01 * 0.2 * sqrt(96) * 0.1 or so
            torch.testing.assert_close(parameter.double(), wanted[name], rtol=0, atol=2e-6)


def test_experts_are_matrices_of_their_own():
    changes = {"moe": {"n_expert": 3, "n_expert_used": 2, "n_inner": 32}}
    model = network(**changes)
    names = {f"blocks.{i}.mlp.experts.{name}": rows for i in range(2) for name, rows in
             {"gate_up": (32, 32), "down": (32,)}.items()}  # fmt: skip
    wanted = expected(network(**changes), names, {"normalise": True}, 0.01, 0.1, 2)
    optimizer = make(model, {**EXACT, "normalise": True})
    for step in range(2):
        set_gradients(model, step)
        optimizer.step()
    for name, parameter in model.named_parameters():
        if name in names:
            torch.testing.assert_close(parameter.double(), wanted[name], rtol=0, atol=2e-6)


@pytest.mark.parametrize(("scale", "theirs"), [("spectral", "original"), ("rms", "match_rms_adamw")])
def test_equal_to_pytorchs_muon(scale, theirs):
    """It computes in bf16, so updates agree to bf16's rounding carried through five steps: a few hundredths of them."""
    weight, other = (torch.nn.Parameter(torch.linspace(-1, 1, 24 * 40).view(24, 40).sin()) for _ in range(2))
    config = OptimizerConfig(name="muon", lr=0.02, muon={"method": "newton-schulz", "scale": scale},
                             groups=[{"match": "w", "optimizer": "muon"}])  # fmt: skip
    ours = make_optimizer([{"params": [weight], "names": ["w"], "weight_decay": 0.1}], config, rounded=True)
    muon = torch.optim.Muon([other], lr=0.02, weight_decay=0.1, adjust_lr_fn=theirs)
    before = weight.detach().clone()
    for step in range(3):
        weight.grad = torch.randn(24, 40, generator=torch.Generator().manual_seed(step))
        other.grad = weight.grad.clone()
        ours.step()
        muon.step()
    moved = (other.detach() - before).norm()
    assert (weight - other).norm() < 0.03 * moved


def test_who_is_moved_by_muon():
    """Maps between features: neither tables, nor what scores or gates, nor vectors."""
    speed = {"value_embeddings": "all", "smear": True, "residual_scalars": True, "backout": True}
    moe = {"n_expert": 4, "n_shared": 1, "shared_gate": True, "n_inner": 32}
    model = network(speed=speed, moe=moe, embedding_size=16, tie_embeddings=False, qkv_bias=True)
    moved = {name for name, p in model.named_parameters() if for_muon(name, p.shape)}
    expected = {"attention.qkv.weight", "attention.out.weight", "mlp.experts.gate_up", "mlp.experts.down",
                "mlp.shared.gate_up.weight", "mlp.shared.down.weight"}  # fmt: skip
    assert moved == {f"blocks.{i}.{name}" for i in range(2) for name in expected}
    latent = network(attention="latent", n_kv_head=None, latent={"kv_rank": 8, "q_rank": 8, "rope_dim": 4})
    moved = {name for name, p in latent.named_parameters() if for_muon(name, p.shape)}
    assert {"blocks.0.attention.q_down.weight", "blocks.0.attention.q_up.weight", "blocks.0.attention.kv_down.weight",
            "blocks.0.attention.kv_up.weight"} <= moved  # fmt: skip
    assert row_sections("blocks.0.attention.kv_down.weight", 12, latent.config) == (8, 4)


@pytest.mark.parametrize("normalise", [False, True])
def test_the_state_comes_back_bit_for_bit(normalise):
    muon = {"normalise": normalise, "momentum_warmup_steps": 5}
    model, twin = network(), network()
    optimizer = make(model, muon)
    for seed in range(3):
        set_gradients(model, seed)
        optimizer.step()
    saved = {name: tensor.clone() for name, tensor in optimizer.tensors().items()}
    assert saved.keys() == optimizer.parts().keys()
    assert all(part.shape == saved[name].shape for name, part in optimizer.parts().items())
    twin.load_state_dict(model.state_dict())
    restored = make(twin, muon)
    restored.load(saved)
    for seed in range(3, 6):
        for one, its in ((model, optimizer), (twin, restored)):
            set_gradients(one, seed)
            its.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    assert all(torch.equal(tensor, restored.tensors()[name]) for name, tensor in optimizer.tensors().items())


def test_a_state_of_adamw_is_refused():
    model = network()
    config = OptimizerConfig()
    adamw = make_optimizer(parameter_groups(model.named_parameters(), 0.1), config, Parallel(model))
    set_gradients(model, 0)
    adamw.step()
    with pytest.raises(ValueError, match=r"nothing for blocks\.0\.attention\.qkv\.weight\.momentum"):
        make(model).load(adamw.tensors())


def test_work_is_shared_evenly():
    """The greedy rule is within 4/3 of the best that is possible (Graham 1969); here all but even."""
    shapes = {f"{i}.{name}": shape for i in range(12) for name, shape in
              {"qkv": (2304, 768), "out": (768, 768), "gate_up": (4096, 768), "down": (768, 2048)}.items()}  # fmt: skip
    costs = {name: cost(shape, (shape[0],)) for name, shape in shapes.items()}
    for processes in (1, 2, 3, 8):
        found = owners(costs, processes)
        loads = [sum(costs[name] for name in costs if found[name] == p) for p in range(processes)]
        assert list(found) == list(costs) and sum(loads) == sum(costs.values())
        assert max(loads) < 1.2 * sum(loads) / processes
