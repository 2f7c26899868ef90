"""Properties that every model has, whatever its options: checked on random configs over all of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from minigpt.config import ModelConfig
from minigpt.model import GPT, count_parameters
from minigpt.storage.model_folder import build_model, load_model_config, save_model

LENGTH, VOCABULARY = 12, 19
FEW = settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
MANY = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
WIDTHS = st.integers(1, 9)
STEP = 1e-6
"""Of finite differences: in float64 they then err by about 1e-8 of the loss, and by the third derivative's 1e-12."""


def either(*values: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(values)


@st.composite
def heads(draw: st.DrawFn) -> dict[str, Any]:
    """Attention: standard or latent, its heads, windows, scores and positions."""
    groups, kv = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    factor = draw(either(0.5, 1.0))
    options = {
        "n_head": groups * kv,
        "n_kv_head": kv,
        "head_dim": 2 * draw(st.integers(1, 3)) if factor == 1 else 4 * draw(st.integers(1, 2)),
        "partial_rotary_factor": factor,
        "qk_norm": draw(either("none", "head", "full")),
        "attention_window": draw(either(None, 1, 3, LENGTH)),
        "window_pattern": draw(either("S", "L", "SL", "SSL")),
        "attention_scale": draw(either(None, 0.3)),
        "attention_softcap": draw(either(None, 2.0)),
        "position": draw(either("rope", "rope", "learned")),
        "rope_theta": draw(either(100.0, 10000.0)),
        "rope_local_theta": draw(either(None, 20.0)),
        "rope_scaling": draw(scalings()),
    }
    if options["position"] == "rope" and draw(st.booleans()):
        latent = {
            "kv_rank": draw(WIDTHS),
            "q_rank": draw(st.none() | WIDTHS),
            "rope_dim": draw(either(2, 4)),
            "value_dim": draw(st.none() | WIDTHS),
        }
        options |= {"attention": "latent", "latent": latent, "head_dim": draw(WIDTHS)}
    return options


@st.composite
def scalings(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(either("none", "linear", "ntk", "yarn", "llama3"))
    options: dict[str, Any] = {"kind": kind, "factor": 1.0 if kind == "none" else draw(either(1.0, 1.5, 4.0))}
    if kind in ("yarn", "llama3"):
        options["original_context"] = draw(either(4, 8))
    if kind == "yarn":
        options |= {"beta_fast": draw(either(4.0, 32.0)), "attention_factor": draw(either(None, 1.2))}
        options |= {"beta_slow": draw(either(0.5, 1.0))}
    if kind == "llama3":
        options |= {"low_freq_factor": draw(either(0.5, 1.0)), "high_freq_factor": draw(either(2.0, 4.0))}
    return options


@st.composite
def experts(draw: st.DrawFn, n_layer: int) -> dict[str, Any]:
    n_expert, n_shared = draw(st.integers(1, 4)), draw(st.integers(0, 2))
    first_dense = draw(st.integers(0, n_layer - 1))
    return {
        "n_expert": n_expert,
        "n_expert_used": draw(st.integers(1, n_expert)),
        "n_inner": draw(st.none() | WIDTHS),
        "n_shared": n_shared,
        "shared_gate": n_shared > 0 and draw(st.booleans()),
        "router": draw(either("softmax", "sigmoid")),
        "normalize": draw(st.booleans()),
        "weight_scale": draw(either(1.0, 2.5)),
        "balance": draw(either("loss", "bias", "none")),
        "balance_weight": 0.1,
        "balance_rate": 0.1,
        "z_loss_weight": draw(either(0.0, 0.1)),
        "first_dense": first_dense,
        "period": draw(st.integers(1, n_layer - first_dense)),
    }


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    """Small models with any of the options; about half of them with latent attention, half with experts."""
    options, n_layer = draw(heads()), draw(st.integers(1, 3))
    mixture = draw(experts(n_layer)) if draw(st.booleans()) else {}
    values = ["none"] if options.get("attention") == "latent" else ["none", "alternate", "all"]
    tied = draw(st.booleans())
    return ModelConfig.model_validate(
        options
        | {
            "n_layer": n_layer,
            "n_embd": draw(either(4, 7, 27, 36)),  # below and above what the gates of the speed family read
            "n_inner": draw(st.integers(1, 12)),
            "context_length": LENGTH,
            "vocab_size": VOCABULARY,
            "vocab_multiple": draw(either(1, 8)),
            "norm": draw(either("rmsnorm", "layernorm")),
            "norm_eps": draw(either(1e-6, 1e-2)),
            "norm_weight": draw(st.booleans()),
            "norm_place": draw(either("pre", "post", "sandwich")),
            "parallel_residual": draw(st.booleans()),
            "embedding_norm": draw(st.booleans()),
            "mlp": draw(either("swiglu", "geglu", "geglu_tanh", "gelu", "gelu_tanh", "relu", "relu2")),
            "moe": mixture,
            "tie_embeddings": tied,
            "embedding_size": draw(either(None, 5)),
            "embedding_multiplier": draw(either(1.0, 3.0)),
            "residual_multiplier": draw(either(1.0, 0.4)),
            "logit_multiplier": draw(either(1.0, 0.5)),
            "bias": draw(st.booleans()),
            "qkv_bias": draw(either(None, True, False)),
            "out_bias": draw(either(None, True, False)),
            "mlp_bias": False if mixture else draw(either(None, True, False)),
            "norm_bias": draw(either(None, True, False)),
            "dropout": draw(either(0.0, 0.2)),
            "logit_softcap": draw(either(None, 3.0)),
            "speed": {
                "value_embeddings": draw(st.sampled_from(values)),
                "residual_scalars": draw(st.booleans()),
                "smear": draw(st.booleans()),
                "backout": draw(st.booleans()),
            },
            "init_std": draw(either(0.02, 0.3)),
            "init_residual": draw(either("scaled", "zero")),
            "init_head_std": None if tied else draw(either(None, 0.0, 0.001)),
        }
    )


def build(config: ModelConfig, dtype: torch.dtype = torch.float32) -> GPT:
    """In eval mode, every parameter and buffer random and large enough that each of them matters."""
    generator = torch.Generator().manual_seed(7)
    model = GPT(config, generator=generator).to(dtype).eval()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor += 0.3 * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
    return model


def draw_ids(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def keys(section: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in section.items():
        if isinstance(value, dict):
            yield from keys(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def test_the_configs_here_vary_every_key() -> None:
    """A key that is added later must be added above."""
    seen: dict[str, set[str]] = {}

    @settings(max_examples=100, deadline=None, database=None, derandomize=True)
    @given(configs())
    def collect(config: ModelConfig) -> None:
        for key, value in keys(config.model_dump()):
            seen.setdefault(key, set()).add(str(value))

    collect()
    fixed = {key for key, values in seen.items() if len(values) < 2}
    assert fixed == {"context_length", "vocab_size", "init_from"}


def check_looking_back(config: ModelConfig) -> None:
    """A token changes what comes at its place and maybe later, and nothing before."""
    model, tokens = build(config, torch.float64), draw_ids(2, LENGTH)
    with torch.no_grad():
        before = model(tokens)
    for t in (0, 1, 6, LENGTH - 1):
        changed = tokens.clone()
        changed[:, t] = (changed[:, t] + 1) % VOCABULARY
        with torch.no_grad():
            after = model(changed)
        torch.testing.assert_close(after[:, :t], before[:, :t], atol=1e-12, rtol=1e-12)
        assert not torch.equal(after[:, t], before[:, t])


def check_documents(config: ModelConfig) -> None:
    """Documents in one row, and rows with padding anywhere, give what each text gives alone."""
    model, tokens = build(config, torch.float64), draw_ids(2, LENGTH)
    document_ids = torch.tensor([[0] * 3 + [1] + [2] * 8, [5] * 10 + [6] * 2])
    packed = model(tokens, document_ids=document_ids)
    for row, lengths in enumerate([[3, 1, 8], [10, 2]]):
        alone = torch.cat([model(part[None])[0] for part in tokens[row].split(lengths)])
        torch.testing.assert_close(packed[row], alone, atol=1e-9, rtol=1e-9)
    positions = torch.tensor([[-1, -1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9], [0, 1, -1, 2, 3, -1, -1, 4, 5, 6, 7, -1]])
    padded = model(tokens, positions=positions)
    for row in range(2):
        stored = positions[row] >= 0
        torch.testing.assert_close(padded[row, stored], model(tokens[row][stored][None])[0], atol=1e-9, rtol=1e-9)


def check_cache(config: ModelConfig) -> None:
    """In chunks, token by token, in rows of different lengths, and after going back: the logits of one pass."""
    model, tokens = build(config, torch.float64), draw_ids(2, LENGTH)
    with torch.no_grad():
        whole, cache = model(tokens), model.make_cache(2, LENGTH)
        pieces = [model(piece, cache=cache) for piece in tokens.split([5, 1, 3, 1, 2], dim=1)]
        torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-9, rtol=1e-9)
        again = model(tokens[:, 4:6], cache=cache, positions=torch.tensor([[4, 5], [4, 5]]))
        torch.testing.assert_close(again, whole[:, 4:6], atol=1e-9, rtol=1e-9)
        cache.reset([1])
        uneven = model(torch.stack([tokens[0, 6:9], tokens[1, :3]]), cache=cache)
        torch.testing.assert_close(uneven, torch.stack([whole[0, 6:9], whole[1, :3]]), atol=1e-9, rtol=1e-9)
        cache.select([1, 0])  # now it holds three tokens of row 1, nine of row 0
        rows = torch.stack([tokens[1, [0, 3, 4]], tokens[0, [9, 0, 10]]])
        uneven = model(rows, cache=cache, positions=torch.tensor([[-1, 3, 4], [9, -1, 10]]))
        torch.testing.assert_close(uneven[0, 1:], whole[1, 3:5], atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(uneven[1, [0, 2]], whole[0, 9:11], atol=1e-9, rtol=1e-9)


def check_gradients(config: ModelConfig) -> None:
    """Along one random direction for each parameter: the gradient's slope is that of float64 finite differences.

    In training: dropout drops the same each time, and the gradient is that of the auxiliary losses of experts as well.
    """
    model, tokens, targets = build(config, torch.float64).train(), draw_ids(2, LENGTH), draw_ids(2, LENGTH, seed=1)
    document_ids = (torch.arange(LENGTH) // 7).expand(2, LENGTH)

    def loss() -> Tensor:
        torch.manual_seed(5)
        return model(tokens, targets=targets, document_ids=document_ids)

    def summed_up(loss: Tensor, targets: Tensor) -> Tensor:
        return loss + model.routers.auxiliary_loss() * targets.numel()

    loss().backward()
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        at, values = parameter.detach().clone(), []
        for step in (STEP, -STEP):
            parameter.data.copy_(at + step * direction)
            with patch.object(model.routers, "attach", summed_up):
                values.append(loss().detach())
        parameter.data.copy_(at)
        slope = (values[0] - values[1]) / (2 * STEP)
        expected = (parameter.grad * direction).sum()
        # a norm of next to nothing bends within the step (projections of zeros, a norm behind them)
        torch.testing.assert_close(expected, slope, atol=2e-5, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


def check_construction(config: ModelConfig) -> None:
    """The count is the model's; on the meta device it has the same tensors, which are then drawn the same."""
    model = GPT(config, generator=torch.Generator().manual_seed(4))
    assert model.num_parameters() == count_parameters(config) == sum(p.numel() for p in model.parameters())
    with torch.device("meta"):
        empty = GPT(config)
    assert all(tensor.is_meta for tensor in empty.state_dict().values())
    empty.to_empty(device="cpu").init_weights(torch.Generator().manual_seed(4))
    assert list(model.state_dict()) == list(empty.state_dict())
    for name, tensor in empty.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def check_folder(config: ModelConfig, folder: Path) -> None:
    """Saved and loaded it is the same model, to the bit."""
    model, tokens = build(config), draw_ids(2, LENGTH)
    save_model(folder, config, model.state_dict(), None, replace=True)
    loaded = build_model(folder).eval()
    assert load_model_config(folder) == config
    assert loaded.state_dict().keys() == model.state_dict().keys()
    with torch.no_grad():
        assert torch.equal(loaded(tokens), model(tokens))


@FEW
@given(config=configs())
def test_nothing_is_seen_before_its_time(config: ModelConfig) -> None:
    check_looking_back(config)


@FEW
@given(config=configs())
def test_texts_in_a_row_are_apart(config: ModelConfig) -> None:
    check_documents(config)


@FEW
@given(config=configs())
def test_the_cache_changes_nothing(config: ModelConfig) -> None:
    check_cache(config)


@FEW
@given(config=configs())
def test_gradients_are_those_of_finite_differences(config: ModelConfig) -> None:
    check_gradients(config)


@FEW
@given(config=configs())
def test_construction_and_count(config: ModelConfig) -> None:
    check_construction(config)


@FEW
@given(config=configs())
def test_model_folders(config: ModelConfig, tmp_path: Path) -> None:
    check_folder(config, tmp_path / "model")


@pytest.mark.slow
@MANY
@given(config=configs())
def test_many_configs(config: ModelConfig, tmp_path: Path) -> None:
    check_looking_back(config)
    check_documents(config)
    check_cache(config)
    check_gradients(config)
    check_construction(config)
    check_folder(config, tmp_path / "model")


def check_precisions(config: ModelConfig) -> None:
    """Under autocast, and with weights that are narrow themselves, a step and decoding work."""
    tokens, targets = draw_ids(2, LENGTH), draw_ids(2, LENGTH, seed=1)
    for model, amp in ((build(config), True), (build(config, torch.bfloat16), False)):
        model.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            model(tokens, targets=targets).backward()
        model.eval()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=amp):
            cache = model.make_cache(2, LENGTH)
            logits = torch.cat([model(piece, cache=cache) for piece in tokens.split([7, 1, 4], dim=1)], dim=1)
        assert logits.dtype == torch.float32
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@FEW
@given(config=configs())
def test_narrow_numbers(config: ModelConfig) -> None:
    check_precisions(config)


def check_compiled(config: ModelConfig) -> None:
    """Traced as for `torch.compile`: the loss, the gradients and, in pieces with a cache, the logits are the same."""
    torch.compiler.reset()
    config = config.model_copy(update={"dropout": 0.0})
    tokens, targets, (plain, traced) = draw_ids(2, LENGTH), draw_ids(2, LENGTH, seed=1), (build(config), build(config))
    traced.compile_blocks("aot_eager")
    losses = []
    for model in (plain, traced):
        losses.append(model.train()(tokens, targets=targets))
        losses[-1].backward()
    torch.testing.assert_close(losses[1], losses[0])
    for (name, parameter), other in zip(traced.named_parameters(), plain.parameters(), strict=True):
        close = {"atol": 2e-4 * float(1 + other.grad.abs().max()), "rtol": 0.0}  # fp32 in another order
        torch.testing.assert_close(parameter.grad, other.grad, **close, msg=lambda m, n=name: f"{n}: {m}")
    traced.eval()
    with torch.inference_mode():
        cache = traced.make_cache(2, LENGTH)
        logits = torch.cat([traced(piece, cache=cache) for piece in tokens.split([7, 1, 4], dim=1)], dim=1)
        torch.testing.assert_close(logits, plain.eval()(tokens), atol=1e-3, rtol=1e-3)


@pytest.mark.slow  # tracing takes seconds
@settings(FEW, max_examples=20)
@given(config=configs())
def test_compiled_blocks_are_the_same(config: ModelConfig) -> None:
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        check_compiled(config)
