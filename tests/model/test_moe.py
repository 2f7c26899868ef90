"""Mixtures of experts: against loops written out, transformers' blocks, finite differences and exact properties."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from minigpt.config import ModelConfig, RequestError
from minigpt.model import GPT, experts
from minigpt.model.experts import sort_by_expert
from minigpt.model.init import init_weights
from minigpt.model.moe import MoE
from minigpt.model.routing import balance_loss

C, INNER = 16, 24
ACTIVATIONS = {
    "swiglu": F.silu,
    "geglu": F.gelu,
    "gelu": F.gelu,
    "relu": F.relu,
    "relu2": lambda x: F.relu(x) ** 2,
}


def config(mlp="swiglu", **moe):
    return ModelConfig(
        n_layer=2, n_head=2, n_embd=C, mlp=mlp, vocab_size=29, context_length=16, init_std=0.5,
        moe={"n_expert": 4, "n_expert_used": 2, "n_inner": INNER, **moe},
    )  # fmt: skip


def mixture(seed=0, **options):
    """One in float64, its bias (if any) and weights random."""
    settings = config(**options)
    layer, generator = MoE(settings).double(), torch.Generator().manual_seed(seed)
    init_weights(layer, settings, generator)
    if layer.balance_bias is not None:
        layer.balance_bias += 0.3 * torch.randn(settings.moe.n_expert, generator=generator)
    return layer


def tokens(*shape, seed=1):
    return torch.randn(*shape, C, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def one_expert(layer, settings, x, number):
    first = layer.experts.gate_up if layer.experts.gated else layer.experts.up
    return dense(settings, x, first[number], layer.experts.down[number])


def dense(settings, x, first, down):
    h, activation = first @ x, ACTIVATIONS[settings.mlp]
    if settings.mlp not in ("swiglu", "geglu"):
        return down @ activation(h)
    return down @ (activation(h[: len(h) // 2]) * h[len(h) // 2 :])


def loop(layer, settings, x):
    """A token and an expert at a time, as the formulas say it."""
    moe, rows = settings.moe, []
    for token in x.flatten(0, -2):
        scores = layer.router.weight @ token
        affinity = torch.softmax(scores, 0) if moe.router == "softmax" else torch.sigmoid(scores)
        preference = affinity if layer.balance_bias is None else affinity + layer.balance_bias
        chosen = sorted(range(moe.n_expert), key=lambda e: -preference[e].item())[: moe.n_expert_used]
        total = sum(affinity[e] for e in chosen) if moe.normalize else 1.0
        out = sum(moe.weight_scale * affinity[e] / total * one_expert(layer, settings, token, e) for e in chosen)
        if moe.n_shared:
            names = layer.shared.state_dict()
            first = names["gate_up.weight"] if "gate_up.weight" in names else names["up.weight"]
            shared = dense(settings, token, first, names["down.weight"])
            gate = torch.sigmoid(layer.shared_gate.weight @ token) if moe.shared_gate else 1.0
            out = out + gate * shared
        rows.append(out)
    return torch.stack(rows).view_as(x)


EVERY = st.fixed_dictionaries({
    "mlp": st.sampled_from(sorted(ACTIVATIONS)),
    "n_expert": st.integers(4, 9),
    "n_expert_used": st.integers(1, 4),
    "n_inner": st.integers(1, 12),
    "n_shared": st.integers(0, 2),
    "shared_gate": st.booleans(),
    "router": st.sampled_from(["softmax", "sigmoid"]),
    "normalize": st.booleans(),
    "weight_scale": st.sampled_from([1.0, 2.5]),
    "balance": st.sampled_from(["loss", "bias", "none"]),
})  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(EVERY, st.integers(1, 3), st.integers(1, 7))
def test_a_mixture_is_its_formula(options, B, T):
    layer, x = mixture(**options), tokens(B, T)
    torch.testing.assert_close(layer(x), loop(layer, config(**options), x), rtol=1e-9, atol=1e-9)


@settings(max_examples=8, deadline=None)
@given(EVERY)
def test_gradients_are_those_of_finite_differences(options):
    """Choices do not change within the differences' step of 1e-6."""
    layer, x = mixture(**(options | {"n_inner": 2, "n_expert": 4})), tokens(1, 3).requires_grad_()
    names = [name for name, _ in layer.named_parameters()]

    def outputs(x, *parameters):
        y = torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))
        return y, layer.routing.balance_loss, layer.routing.z_loss

    assert torch.autograd.gradcheck(outputs, (x, *layer.parameters()), eps=1e-6, atol=1e-5, fast_mode=True)


@pytest.mark.parametrize("mlp", ["swiglu", "gelu"])
@pytest.mark.parametrize("router", ["softmax", "sigmoid"])
def test_one_expert_is_the_dense_layer(mlp, router):
    """Its weight is 1 after normalising; gradients of the whole model are equal as well, and dropout."""
    mixed = GPT(
        config(mlp, n_expert=1, n_expert_used=1, router=router, balance="none").model_copy(update={"dropout": 0.2})
    )
    plain = GPT(mixed.config.model_copy(update={"moe": ModelConfig().moe, "n_inner": INNER}))
    renamed = {
        n.replace("experts.", "").replace("gate_up", "gate_up.weight").replace(".up", ".up.weight"): t
        for n, t in mixed.state_dict().items()
    }
    renamed = {
        (f"{n}.weight" if n.endswith("mlp.down") else n): t.squeeze(0) if "mlp" in n and t.ndim == 3 else t
        for n, t in renamed.items()
    }
    plain.load_state_dict({n: t for n, t in renamed.items() if "router" not in n})
    ids = torch.randint(29, (3, 16), generator=torch.Generator().manual_seed(0))
    losses = []
    for model in (mixed, plain):
        torch.manual_seed(0)
        losses.append(model.train()(ids, targets=ids))
        losses[-1].backward()
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(mixed.embed.weight.grad, plain.embed.weight.grad)
    one = mixed.blocks[0].mlp.experts.down.grad[0]
    torch.testing.assert_close(one, plain.blocks[0].mlp.down.weight.grad)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 40), st.integers(0, 10**6))
def test_no_token_is_lost(k, more, N, seed):
    """Each (token, choice) has one row, among those of its expert."""
    E, generator = k + more, torch.Generator().manual_seed(seed)
    chosen = torch.rand(N, E, generator=generator).topk(k).indices
    rows = sort_by_expert(chosen, E)
    assert sorted(rows.order.tolist()) == list(range(N * k))
    assert torch.equal(rows.order[rows.places], torch.arange(N * k))
    expert_of_row = torch.searchsorted(rows.ends.long(), torch.arange(N * k), right=True)
    assert torch.equal(expert_of_row[rows.places].view(N, k), chosen)
    assert torch.equal(rows.tokens[rows.places].view(N, k), torch.arange(N)[:, None].expand(N, k))


def test_the_load_counts_every_token():
    layer = mixture(n_expert=7, n_expert_used=3).train()
    layer(tokens(2, 50))
    assert layer.routing.load.sum() == 300 and layer.routing.load.max() <= 100


def test_a_token_does_not_see_the_others():
    """Each alone gives what all together do; nor does which experts the others choose matter."""
    layer, x = mixture(n_shared=1), tokens(1, 20)
    alone = torch.cat([layer(x[:, t : t + 1]) for t in range(20)], dim=1)
    torch.testing.assert_close(layer(x), alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_grouped_product_gives_the_same(monkeypatch, dtype):
    """PyTorch's kernel for all experts at once, as it is on the CPU, beside a product for each; one has no tokens."""
    layer, generator = MoE(config(n_expert=5, balance="bias")).to(dtype), torch.Generator().manual_seed(0)
    init_weights(layer, config(), generator)
    layer.balance_bias[3] = -9.0
    x = tokens(2, 30).to(dtype)
    results = []
    for grouped in (False, True):
        monkeypatch.setattr(experts, "has_grouped_product", lambda weight, grouped=grouped: grouped)
        layer.zero_grad()
        x = x.detach().requires_grad_()
        y = layer(x)
        y.backward(torch.ones_like(y))
        assert not layer.experts.down.grad[3].any() and not layer.experts.gate_up.grad[3].any()
        results.append([y, x.grad, *(p.grad for p in layer.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_an_expert_without_tokens_has_no_gradient():
    layer = mixture(balance="bias", n_expert_used=1)
    layer.balance_bias.copy_(torch.tensor([9.0, 0, 0, 0]))
    layer(tokens(1, 5)).sum().backward()
    assert layer.experts.down.grad[0].any() and not layer.experts.down.grad[1:].any()


def test_autocast_keeps_the_router_wide():
    """The choice is the fp32 one, though everything else is bf16."""
    settings = config(n_expert=64, n_expert_used=1)
    layer = MoE(settings).train()
    init_weights(layer, settings, torch.Generator().manual_seed(0))
    x = tokens(1, 200).to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    exact = (x[0].double() @ layer.router.weight.double().T).argmax(-1).bincount(minlength=64)
    assert torch.equal(layer.routing.load, exact)
    reference = copy.deepcopy(layer).float()(x.float())
    torch.testing.assert_close(y.float(), reference, rtol=0.05, atol=0.05 * reference.std().item())


# ---- losses and statistics -------------------------------------------------------------------------------------------


def test_the_balance_loss_is_1_when_all_are_busy_and_E_when_one_is():
    E, N = 4, 8
    even = torch.full((N, E), 1 / E)
    assert balance_loss(torch.tensor([6, 6, 6, 6]), even) == 1
    one = F.one_hot(torch.zeros(N, dtype=torch.int64), E).float()
    assert balance_loss(torch.tensor([N, 0, 0, 0]), one) == E


def test_the_balance_loss_is_that_of_transformers():
    mixtral = pytest.importorskip("transformers.models.mixtral.modeling_mixtral")
    layer, x = mixture(n_expert=6, n_expert_used=3).train(), tokens(2, 9)
    layer(x)
    theirs = mixtral.load_balancing_loss_func((x.flatten(0, 1) @ layer.router.weight.T,), 6, 3)
    torch.testing.assert_close(layer.routing.balance_loss.float(), theirs / 3)  # theirs is k when all are busy


def small_model(**moe):
    return GPT(config(**moe), generator=torch.Generator().manual_seed(3)).double()


def test_backward_sees_the_auxiliary_losses_and_the_loss_does_not():
    """Gradients are those of the cross-entropy plus, per target, the sum over layers of the weighted losses."""
    model = small_model(balance_weight=0.3, z_loss_weight=0.1).train()
    ids = torch.randint(29, (2, 8), generator=torch.Generator().manual_seed(0))
    targets = ids.where(ids % 3 > 0, -100)
    model.zero_grad()
    loss = model(ids, targets=targets)
    loss.backward()
    seen = [p.grad.clone() for p in model.parameters()]
    assert loss.item() == model.eval()(ids, targets=targets).item()
    model.train().zero_grad()
    plain = F.cross_entropy(model(ids).flatten(0, 1).double(), targets.flatten(), reduction="sum")
    auxiliary = sum(0.3 * b.mlp.routing.balance_loss + 0.1 * b.mlp.routing.z_loss for b in model.blocks)
    (plain + int((targets != -100).sum()) * auxiliary).backward()
    for p, gradient in zip(model.parameters(), seen, strict=True):
        torch.testing.assert_close(p.grad, gradient)
    model(ids)
    torch.testing.assert_close(model.routers.auxiliary_loss(), auxiliary)


def test_a_layer_that_is_computed_twice_counts_once():
    """As when activations are computed again in the backward pass to spare memory."""
    model = small_model().train()
    ids = torch.randint(29, (2, 8), generator=torch.Generator().manual_seed(0))
    results = []
    for again in (False, True):
        if again:
            for block in model.blocks:
                block.mlp = _Twice(block.mlp)
        model.zero_grad(), model.routers.clear()
        model(ids, targets=ids).backward()
        results.append((model.routers.load, model.embed.weight.grad.clone()))
    assert torch.equal(results[0][0], results[1][0]) and results[0][0].sum() == 2 * 2 * 8 * 2
    torch.testing.assert_close(results[0][1], results[1][1])


class _Twice(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return torch.utils.checkpoint.checkpoint(self.layer, x, use_reentrant=False)


def test_only_training_is_watched():
    model = small_model()
    ids = torch.zeros(1, 4, dtype=torch.int64)
    model.train()(ids)  # left behind, and not to be mistaken for what follows
    model.eval()(ids, targets=ids)
    with torch.no_grad():
        model.train()(ids, targets=ids)
    assert model.routers.load is None and model.routers.metrics() == {}


def test_the_metrics_are_of_all_passes_since_the_step_began():
    model = small_model(n_expert=4, n_expert_used=1).train()
    loads, losses = [], []
    for seed in range(3):
        ids = torch.randint(29, (2, 8), generator=torch.Generator().manual_seed(seed))
        model(ids)
        loads.append(torch.stack([block.mlp.routing.load for block in model.blocks]))
        losses.append(torch.stack([block.mlp.routing.balance_loss for block in model.blocks]))
        model.routers.auxiliary_loss()
    metrics = model.routers.metrics()
    assert metrics["train/moe_max_load"] == pytest.approx(float(sum(loads).max()) / (3 * 16) * 4)
    assert metrics["train/moe_balance_loss"] == pytest.approx(torch.stack(losses).mean().item())
    model.routers.clear()
    assert model.routers.metrics() == {}


def test_the_bias_moves_from_the_busy_to_the_idle():
    """Wang et al. 2024, algorithm 1: by the rate, up below the mean load and down above it."""
    model = small_model(balance="bias", balance_rate=0.25).train()
    model.routers.load = torch.tensor([[9, 1, 5, 5], [4, 4, 4, 8]])
    model.routers.balance()
    assert model.blocks[0].mlp.balance_bias.tolist() == [-0.25, 0.25, 0, 0]
    assert model.blocks[1].mlp.balance_bias.tolist() == [0.25, 0.25, 0.25, -0.25]


def test_a_loss_made_without_the_routers_is_no_silent_matter():
    with pytest.raises(RequestError, match="attach"):
        small_model().routers.balance()
    small_model(balance="none").routers.balance()
    GPT(ModelConfig(n_layer=1, n_head=2, n_embd=16, vocab_size=5)).routers.balance()


def test_the_bias_is_state_and_stays_wide():
    model = GPT(config(balance="bias"))
    assert "blocks.1.mlp.balance_bias" in model.state_dict()
    bias = torch.tensor([0.1, 0.2, 0.3, 0.4])
    model.blocks[1].mlp.balance_bias.copy_(bias)
    half = copy.deepcopy(model).to(torch.bfloat16)
    assert half.blocks[1].mlp.router.weight.dtype == torch.bfloat16
    assert torch.equal(half.blocks[1].mlp.balance_bias, bias)
    with torch.device("meta"):
        empty = GPT(config(balance="bias"))
    empty.to_empty(device="cpu").init_weights(torch.Generator().manual_seed(0))
    drawn = GPT(config(balance="bias"), generator=torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(empty.state_dict().values(), drawn.state_dict().values(), strict=True))


def test_a_model_that_has_trained_can_be_copied():
    model = small_model().train()
    ids = torch.zeros(1, 4, dtype=torch.int64)
    model(ids, targets=ids).backward()
    model(ids)  # nobody has taken its losses
    twin = copy.deepcopy(model)
    assert twin.blocks[0].mlp.routing is None
    twin(ids, targets=ids)
    assert twin.routers.layers[0] is twin.blocks[0].mlp
    assert int(twin.routers.load.sum()) == 2 * int(model.routers.load.sum())


# ---- transformers' blocks --------------------------------------------------------------------------------------------


def copied(layer, block, router="gate"):
    """transformers' weights in ours, both fp32."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for tensor in [*block.parameters(), *block.buffers()]:
            tensor.copy_(0.5 * torch.randn(tensor.shape, generator=generator))
    theirs = block.state_dict()
    state = {
        "router.weight": theirs[f"{router}.weight"],
        "experts.gate_up": theirs["experts.gate_up_proj"],
        "experts.down": theirs["experts.down_proj"],
    }
    for name, prefix in {"shared_expert": "shared_expert", "shared_experts": "shared_experts"}.items():
        if f"{name}.gate_proj.weight" in theirs:
            gate, up = theirs[f"{prefix}.gate_proj.weight"], theirs[f"{prefix}.up_proj.weight"]
            state |= {"shared.gate_up.weight": torch.cat([gate, up])}
            state |= {"shared.down.weight": theirs[f"{prefix}.down_proj.weight"]}
    if "shared_expert_gate.weight" in theirs:
        state["shared_gate.weight"] = theirs["shared_expert_gate.weight"]
    if "gate.e_score_correction_bias" in theirs:
        state["balance_bias"] = theirs["gate.e_score_correction_bias"]
    layer.load_state_dict(state)
    return layer.eval()


def their_config(**options):
    return SimpleNamespace(
        hidden_size=C, hidden_act="silu", num_experts_per_tok=3, _experts_implementation="eager", **options
    )


def their_block(family):
    name = f"transformers.models.{family}.modeling_{family}"
    modeling = pytest.importorskip(name)
    if family == "mixtral":
        theirs = their_config(num_local_experts=6, intermediate_size=INNER, router_jitter_noise=0.0)
        return modeling.MixtralSparseMoeBlock(theirs), {}
    if family == "qwen3_moe":
        theirs = their_config(num_experts=6, num_local_experts=6, moe_intermediate_size=INNER, norm_topk_prob=False)
        return modeling.Qwen3MoeSparseMoeBlock(theirs), {"normalize": False}
    if family == "qwen2_moe":
        theirs = their_config(num_experts=6, num_local_experts=6, moe_intermediate_size=INNER, norm_topk_prob=True,
                              shared_expert_intermediate_size=2 * INNER)  # fmt: skip
        return modeling.Qwen2MoeSparseMoeBlock(theirs), {"n_shared": 2, "shared_gate": True}
    theirs = their_config(num_local_experts=6, moe_intermediate_size=INNER, norm_topk_prob=True, n_shared_experts=1,
                          intermediate_size=INNER, routed_scaling_factor=2.5, n_group=1, topk_group=1)  # fmt: skip
    ours = {"router": "sigmoid", "balance": "bias", "n_shared": 1, "weight_scale": 2.5}
    return modeling.DeepseekV3MoE(theirs), ours


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "qwen2_moe", "deepseek_v3"])
def test_a_mixture_is_that_of_transformers(family):
    block, options = their_block(family)
    layer = copied(MoE(config(n_expert=6, n_expert_used=3, **options)), block.float().eval())
    x = tokens(2, 40).float()
    theirs = block(x)
    torch.testing.assert_close(layer(x), theirs, rtol=1e-4, atol=1e-5 * theirs.abs().max().item())


# ---- compiled --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_compiled_is_the_same():
    results = []
    for compiled in (False, True):
        model = GPT(config(n_shared=1, z_loss_weight=0.01), generator=torch.Generator().manual_seed(3)).train()
        if compiled:
            model.compile_blocks()
        for seed in range(2):  # different loads, so that a compilation for one of them would show
            ids = torch.randint(29, (2, 16), generator=torch.Generator().manual_seed(seed))
            loss = model(ids, targets=ids)
            loss.backward()
        results.append([loss, *(p.grad for p in model.parameters()), model.routers.load])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
