"""Blocks and what surrounds them, put together again by hand from the model's own parts, in float64."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from minigpt.config import ModelConfig, RequestError
from minigpt.model import GPT
from minigpt.model.feedforward import build_mlp, check_mlp
from minigpt.model.norm import build_norm
from minigpt.model.span import plan_pass

T, C = 10, 32
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def wide(tiny: Callable[..., GPT]) -> Callable[..., GPT]:
    """A model of three blocks in float64, wider than what the smear's gate reads."""
    return lambda **options: tiny(n_layer=3, n_embd=C, **options).double()


def by_hand(model: GPT, ids: Tensor, first: Tensor, block: Callable[..., Tensor]) -> Tensor:
    """Logits from what enters the first block; `block(part, attention, x)` puts one block together."""
    span = plan_pass(T, ids.device, model.config.context_length)
    span.ids = ids
    rotation = model.position.rotation(span.positions, torch.float64)
    x = first
    for part in model.blocks:
        x = block(part, lambda normed, p=part: p.attention(normed, span, rotation), x)
    return model.logits(model.norm(x))


def pre(b: Any, attention: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x + attention(b.attention_norm(x))
    return x + b.mlp(b.mlp_norm(x))


def post(b: Any, attention: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x + b.attention_post_norm(attention(x))
    return x + b.mlp_post_norm(b.mlp(x))


def sandwich(b: Any, attention: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x + b.attention_post_norm(attention(b.attention_norm(x)))
    return x + b.mlp_post_norm(b.mlp(b.mlp_norm(x)))


def parallel(b: Any, attention: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return x + attention(b.attention_norm(x)) + b.mlp(b.mlp_norm(x))


def multiplied(b: Any, attention: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x + 0.25 * attention(b.attention_norm(x))
    return x + 0.25 * b.mlp(b.mlp_norm(x))


def parallel_sandwich(b: Any, attention: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    a = b.attention_post_norm(attention(b.attention_norm(x)))
    return x + 0.25 * a + 0.25 * b.mlp_post_norm(b.mlp(b.mlp_norm(x)))


@pytest.mark.parametrize(
    ("block", "options"),
    [
        (pre, {}),
        (post, {"norm_place": "post"}),
        (sandwich, {"norm_place": "sandwich"}),
        (parallel, {"parallel_residual": True}),
        (multiplied, {"residual_multiplier": 0.25}),
        (parallel_sandwich, {"parallel_residual": True, "norm_place": "sandwich", "residual_multiplier": 0.25}),
    ],
)
def test_a_block_is_its_formula(
    block: Callable[..., Tensor], options: dict[str, Any], wide: Callable[..., GPT], ids: Callable[..., Tensor]
) -> None:
    model, tokens = wide(**options), ids(2, T)
    expected = by_hand(model, tokens, model.embed(tokens), block)
    torch.testing.assert_close(model(tokens), expected, atol=1e-12, rtol=1e-12)
    there = {name.split(".")[2] for name in model.state_dict() if name.startswith("blocks.0.") and "norm" in name}
    norms = {"attention_norm": "pre sandwich", "mlp_norm": "pre sandwich"}
    norms |= {"attention_post_norm": "post sandwich", "mlp_post_norm": "post sandwich"}
    place = options.get("norm_place", "pre")
    assert there - {"attention"} == {name for name, places in norms.items() if place in places.split()}


def test_multipliers_and_the_norm_of_embeddings(wide: Callable[..., GPT], ids: Callable[..., Tensor]) -> None:
    """Embedding times multiplier, then its norm, then learned positions; logits times multiplier, then the cap."""
    tokens, targets = ids(2, T), ids(2, T, seed=3)
    model = wide(
        embedding_size=8, embedding_norm=True, embedding_multiplier=3.0, logit_multiplier=0.2, logit_softcap=2.0,
        position="learned", norm_eps=0.5,
    )  # fmt: skip
    x = model.embedding_norm(3.0 * (model.embed.weight[tokens] @ model.embed_up.weight.T)) + model.position.weight[:T]
    for block in model.blocks:
        span = plan_pass(T, tokens.device, 16)
        x = pre(block, lambda normed, b=block, s=span: b.attention(normed, s, None), x)
    logits = 0.2 * (model.norm(x) @ model.head_down.weight.T @ model.embed.weight.T)
    logits = 2.0 * torch.tanh(logits / 2.0)
    torch.testing.assert_close(model(tokens), logits, atol=1e-12, rtol=1e-12)
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    torch.testing.assert_close(model(tokens, targets=targets), expected, atol=1e-10, rtol=1e-12)
    losses = model.token_losses(tokens, targets)
    torch.testing.assert_close(losses.sum(), expected.detach(), atol=1e-10, rtol=1e-12)


def test_residual_scalars_and_backout(wide: Callable[..., GPT], ids: Callable[..., Tensor]) -> None:
    tokens = ids(2, T)
    model = wide(speed={"residual_scalars": True, "backout": True})
    first, state = model.embed(tokens), model.state_dict()
    outputs: list[Tensor] = []

    def block(part: Any, attention: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        i = len(outputs)
        x = state["residual_scale.weight"][i] * x + state["input_scale.weight"][i] * first
        outputs.append(pre(part, attention, x))
        last = len(outputs) == len(model.blocks)
        # three blocks: the middle one's output is that of number 3 // 2 - 1 = 0
        return outputs[-1] - state["backout_scale.weight"] * outputs[0] if last else outputs[-1]

    torch.testing.assert_close(model(tokens), by_hand(model, tokens, first, block), atol=1e-12, rtol=1e-12)


def test_smear_adds_the_token_before(wide: Callable[..., GPT], ids: Callable[..., Tensor]) -> None:
    tokens = ids(2, T)
    model = wide(speed={"smear": True, "residual_scalars": True}, embedding_norm=True, embedding_multiplier=2.0)
    embedded, state = model.embedding_norm(2.0 * model.embed(tokens)), model.state_dict()
    assert state["smear_gate.weight"].shape == (1, 24) and state["smear_scale.weight"].shape == (1,)
    first = embedded.clone()
    for t in range(1, T):
        gate = torch.sigmoid(embedded[:, t, :24] @ state["smear_gate.weight"][0])
        first[:, t] += state["smear_scale.weight"] * gate[:, None] * embedded[:, t - 1]
    layers = iter(range(3))

    def block(part: Any, attention: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        i = next(layers)
        return pre(part, attention, state["residual_scale.weight"][i] * x + state["input_scale.weight"][i] * first)

    torch.testing.assert_close(model(tokens), by_hand(model, tokens, first, block), atol=1e-12, rtol=1e-12)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "swiglu": lambda x: x / (1 + torch.exp(-x)),
    "geglu": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
    "geglu_tanh": lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: x * (x > 0),
    "relu2": lambda x: x**2 * (x > 0),
}


@pytest.mark.parametrize("kind", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_feedforward_layers_are_their_formulas(kind: str, bias: bool) -> None:
    config = ModelConfig(n_embd=6, n_head=1, n_inner=5, vocab_size=3, mlp=kind, bias=not bias, mlp_bias=bias)
    mlp = build_mlp(config).double()
    state, act = mlp.state_dict(), ACTIVATIONS[kind]
    x = torch.randn(2, 3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    zero = torch.zeros((), dtype=torch.float64)
    first = "gate_up" if "glu" in kind else "up"
    assert set(state) == {f"{name}.{part}" for name in (first, "down") for part in ("weight", *["bias"] * bias)}
    hidden = x @ state[f"{first}.weight"].T + state.get(f"{first}.bias", zero)
    hidden = act(hidden[..., :5]) * hidden[..., 5:] if "glu" in kind else act(hidden)
    expected = hidden @ state["down.weight"].T + state.get("down.bias", zero)
    torch.testing.assert_close(mlp(x), expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("kind", ["rmsnorm", "layernorm"])
@pytest.mark.parametrize("weight", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_norms_are_their_formulas(kind: str, weight: bool, bias: bool) -> None:
    config = ModelConfig(n_embd=6, n_head=1, norm=kind, norm_weight=weight, norm_bias=bias, norm_eps=0.1)
    norm = build_norm(config).double()
    expected_names = ["weight"] * weight + ["bias"] * (weight and bias and kind == "layernorm")
    assert list(norm.state_dict()) == expected_names
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    x = torch.randn(2, 3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    centred = x - x.mean(-1, keepdim=True) if kind == "layernorm" else x
    expected = centred / (centred.square().mean(-1, keepdim=True) + 0.1).sqrt()
    state = norm.state_dict()
    expected = expected * state.get("weight", torch.ones(())) + state.get("bias", torch.zeros(()))
    torch.testing.assert_close(norm(x), expected, atol=1e-12, rtol=1e-12)
    assert norm.float()(x.float()).dtype == torch.float32


def test_biases_are_where_they_are_asked_for() -> None:
    parts = {"qkv_bias": "attention.qkv", "out_bias": "attention.out", "mlp_bias": "mlp.", "norm_bias": "norm"}
    small = {"n_layer": 1, "n_head": 1, "n_embd": 4, "vocab_size": 3, "norm": "layernorm"}
    for general in (True, False):
        for key, part in parts.items():
            names = GPT(ModelConfig.model_validate(small | {"bias": general, key: not general})).state_dict()
            layers = [name.removesuffix(".weight") for name in names if name.endswith(".weight")]
            assert any(part in layer for layer in layers)
            for layer in layers:
                if layer != "embed" and not layer.endswith(("q_norm", "k_norm")):
                    assert (f"{layer}.bias" in names) == (general != (part in layer)), (key, layer)


def test_weights_begin_as_the_options_say() -> None:
    small = partial(
        ModelConfig, n_layer=8, n_head=4, n_embd=64, vocab_size=101, tie_embeddings=False, norm="layernorm", bias=True
    )
    options: list[dict[str, Any]] = [
        {"init_std": 0.1},
        {"init_std": 0.1, "init_residual": "zero", "init_head_std": 0.001},
        {"init_std": 0.1, "moe": {"n_expert": 4, "n_shared": 2, "period": 2, "balance": "bias"}, "mlp_bias": False},
        {"init_std": 0.1, "moe": {"n_expert": 4, "n_shared": 2}, "mlp_bias": False, "init_residual": "zero"},
        {"init_std": 0.1, "attention": "latent", "latent": {"kv_rank": 32}, "init_head_std": 0.0},
        {"init_std": 0.1, "speed": dict.fromkeys(("smear", "backout", "residual_scalars"), True)},
    ]
    for option in options:
        config = small(**option)
        model = GPT(config, generator=torch.Generator().manual_seed(0))
        for name, tensor in model.state_dict().items():
            residual = name.removesuffix(".weight").endswith(("attention.out", ".down"))
            if name.endswith(("bias", "smear_scale.weight", "input_scale.weight", "backout_scale.weight")):
                assert (tensor == 0).all(), name
            elif tensor.ndim == 1:
                assert (tensor == 1).all(), name
            else:
                std = 0.1 / 4 if residual else 0.1  # sqrt(2 * 8) = 4
                std = 0.0 if residual and config.init_residual == "zero" else std
                head = config.init_head_std
                std = head if name == "head.weight" and head is not None else std
                # the standard error of a standard deviation is about std / sqrt(2 n): 6 of them
                assert abs(tensor.std() - std) <= 6 * std / math.sqrt(2 * tensor.numel()), name
        if config.init_residual == "zero":  # every block is the identity
            tokens = torch.arange(10)[None]
            expected = model.logits(model.norm(model.embed(tokens)))
            assert torch.equal(model(tokens), expected)


def test_the_scalars_of_the_speed_family_change_nothing_at_first() -> None:
    small = {"n_layer": 2, "n_head": 2, "n_embd": 8, "vocab_size": 11}
    plain = GPT(ModelConfig.model_validate(small))
    options = dict.fromkeys(("smear", "backout", "residual_scalars"), True)
    fast = GPT(ModelConfig.model_validate(small | {"speed": options}))
    added = {name for name in fast.state_dict() if name not in plain.state_dict()}
    fast.load_state_dict(plain.state_dict() | {name: fast.state_dict()[name] for name in added})
    assert added == {f"{n}.weight" for n in ("smear_gate", "smear_scale", "residual_scale", "input_scale")} | {
        "backout_scale.weight"
    }
    tokens = torch.arange(10)[None]
    assert torch.equal(fast(tokens), plain(tokens))


def test_a_part_of_ones_own_is_tried_although_it_begins_as_zeros(tmp_path: Path) -> None:
    """With zeros in front of the residual stream any part would seem to keep positions apart."""
    text = (ROOT / "examples" / "model_part.py").read_text("utf-8")
    (tmp_path / "part.py").write_text(text.replace("return F.dropout(y", "return F.dropout(y.flip(1)"), "utf-8")
    options = {"n_embd": 8, "n_head": 1, "vocab_size": 5, "init_residual": "zero"}
    check_mlp(ModelConfig(**options, mlp=f"{ROOT}/examples/model_part.py:PowerReGLU"))
    with pytest.raises(RequestError, match="mixes the positions of a row"):
        check_mlp(ModelConfig(**options, mlp=f"{tmp_path}/part.py:PowerReGLU"))


@pytest.mark.parametrize("options", [{}, {"embedding_size": 8}])
def test_autocast_leaves_the_residual_stream_wide(
    options: dict[str, Any], tiny: Callable[..., GPT], ids: Callable[..., Tensor]
) -> None:
    """What is added up over the layers keeps the embedding's dtype, factorised or not."""
    model = tiny(**options)
    seen: list[torch.dtype] = []
    model.blocks[-1].register_forward_hook(lambda block, inputs, output: seen.append(output.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(ids(2, 5))
    assert seen == [torch.float32]
