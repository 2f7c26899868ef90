"""Exact properties of the network: causality, documents, padding, initial weights, dropout, counts, construction."""

import math
import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from minigpt.config import ModelConfig
from minigpt.model import GPT, count_parameters, flops_per_token
from minigpt.model.position import RotaryPositions, rotary_table, rotate

KINDS: list[dict[str, Any]] = [
    {},
    {"position": "learned", "norm": "layernorm", "bias": True, "mlp": "gelu", "qk_norm": False},
    {"n_kv_head": 2, "partial_rotary_factor": 0.5, "embedding_size": 8, "mlp": "relu2"},
    {"n_kv_head": 1, "head_dim": 6, "tie_embeddings": False, "logit_softcap": 4.0, "mlp": "geglu"},
    {"embedding_size": 8, "tie_embeddings": False, "vocab_multiple": 16, "mlp": "gelu_tanh"},
]


@pytest.mark.parametrize("options", KINDS)
def test_no_token_changes_what_came_before(
    options: dict[str, Any], tiny: Callable[..., GPT], ids: Callable[..., Tensor]
) -> None:
    model, tokens = tiny(**options), ids(2, 12)
    before = model(tokens)
    for t in range(12):
        changed = tokens.clone()
        changed[:, t] = (changed[:, t] + 1) % 29
        after = model(changed)
        assert torch.equal(after[:, :t], before[:, :t])
        assert not torch.equal(after[:, t], before[:, t])
        # and what comes later does look back
        assert t == 11 or not torch.equal(after[:, -1], before[:, -1])


@pytest.mark.parametrize("options", KINDS)
def test_packed_documents_equal_separate_ones(
    options: dict[str, Any], tiny: Callable[..., GPT], ids: Callable[..., Tensor]
) -> None:
    model, tokens, targets = tiny(**options), ids(2, 14), ids(2, 14, seed=5)
    cuts = [[4, 1, 9], [10, 2, 2]]
    document_ids = torch.tensor([[0] * 4 + [1] + [2] * 9, [7] * 10 + [3] * 2 + [7 + 1] * 2])
    packed = model(tokens, document_ids=document_ids)
    loss = model(tokens, document_ids=document_ids, targets=targets)
    separate, total = [], torch.zeros(())
    for row, lengths in enumerate(cuts):
        parts = tokens[row].split(lengths), targets[row].split(lengths)
        separate.append(torch.cat([model(part[None])[0] for part in parts[0]]))
        total = total + sum(model(part[None], targets=t[None]) for part, t in zip(*parts, strict=True))
    torch.testing.assert_close(packed, torch.stack(separate), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(loss, total, atol=1e-4, rtol=1e-5)
    loss.backward()
    packed_gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    total.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, packed_gradients[name], atol=2e-4, rtol=1e-3)


def test_explicit_positions_are_those_given(tiny: Callable[..., GPT], ids: Callable[..., Tensor]) -> None:
    tokens = ids(1, 6)
    learned, rotary = tiny(position="learned"), tiny()
    shifted = torch.arange(3, 9)[None]
    straight = torch.arange(6)[None]
    torch.testing.assert_close(learned(tokens, positions=straight), learned(tokens), atol=1e-5, rtol=1e-5)
    assert (learned(tokens, positions=shifted) - learned(tokens)).abs().max() > 1e-2
    # rotary positions are relative: shifting all of them changes nothing
    torch.testing.assert_close(rotary(tokens, positions=shifted), rotary(tokens), atol=1e-5, rtol=1e-4)


def test_rotation_is_the_complex_one_of_the_paper() -> None:
    """RoFormer equation 34: each pair, as a complex number, is multiplied by exp(i m theta^(-2 j / d)); in fp64."""
    x = torch.randn(2, 5, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([[0, 1, 2, 3, 9], [4, 4, 7, 1, 0]])
    cos, sin = rotary_table(10, 6, 100.0, torch.device("cpu"))[positions].double().unsqueeze(2).chunk(2, dim=-1)
    pairs = torch.complex(x[..., :3], x[..., 3:6])
    angle = positions[:, :, None, None] * 100.0 ** (-torch.arange(3, dtype=torch.float64) / 3)
    turned = pairs * torch.polar(torch.ones_like(angle), angle)
    expected = torch.cat([turned.real, turned.imag, x[..., 6:]], dim=-1)
    torch.testing.assert_close(rotate(x, (cos, sin)), expected, atol=1e-5, rtol=0)  # the table is fp32


def test_too_many_tokens_are_refused(tiny: Callable[..., GPT], ids: Callable[..., Tensor]) -> None:
    for options in ({}, {"position": "learned"}):
        model = tiny(**options)
        with pytest.raises(ValueError, match=r"17 tokens in a row are more than model.context_length=16"):
            model(ids(1, 17))
        with pytest.raises(ValueError, match=r"position 16 is beyond model.context_length=16"):
            model(ids(1, 2), positions=torch.tensor([[15, 16]]))
    with pytest.raises(ValueError, match="vocab_size is not set"):
        GPT(ModelConfig())


def test_padding_rows_of_the_vocabulary_take_no_part(tiny: Callable[..., GPT], ids: Callable[..., Tensor]) -> None:
    for tied in (True, False):
        model, tokens = tiny(vocab_multiple=64, tie_embeddings=tied), ids(2, 9)
        assert model.head_weight.shape == (64, 16) and model(tokens).shape == (2, 9, 29)
        loss, logits = model(tokens, targets=tokens), model(tokens)
        loss.backward()
        assert model.head_weight.grad is not None and not model.head_weight.grad[29:].any()
        assert model.head_weight.grad[:29].any(dim=1).all()
        with torch.no_grad():
            model.head_weight[29:] = 1e6
        assert torch.equal(model(tokens), logits)
        assert torch.equal(model(tokens, targets=tokens), loss)


def test_softcap_bounds_the_logits(tiny: Callable[..., GPT], ids: Callable[..., Tensor]) -> None:
    raw = tiny(init_std=2.0)(ids(2, 9))
    capped = tiny(init_std=2.0, logit_softcap=3.0)(ids(2, 9))
    assert raw.abs().max() > 3
    torch.testing.assert_close(capped, 3 * torch.tanh(raw / 3))


@pytest.mark.parametrize("tied", [True, False])
def test_state_dict_holds_each_tensor_once(tied: bool, tiny: Callable[..., GPT], ids: Callable[..., Tensor]) -> None:
    model = tiny(tie_embeddings=tied)
    state = model.state_dict()
    assert len({tensor.data_ptr() for tensor in state.values()}) == len(state)
    assert state.keys() == dict(model.named_parameters()).keys()  # no buffers
    assert ("head.weight" in state) is not tied
    again = GPT(model.config).eval()
    again.load_state_dict(state)
    assert torch.equal(again(ids(1, 5)), model(ids(1, 5)))
    if tied:
        assert again.head_weight is again.embed.weight


def test_names() -> None:
    config = ModelConfig(n_layer=1, n_embd=16, n_head=2, vocab_size=8, embedding_size=4, tie_embeddings=False)
    with torch.device("meta"):
        names = list(GPT(config).state_dict())
        classic = config.model_copy(
            update={"position": "learned", "norm": "layernorm", "bias": True, "mlp": "gelu", "embedding_size": None}
        )
        classic_names = set(GPT(classic).state_dict())
    block = "attention_norm attention.qkv attention.out attention.q_norm attention.k_norm mlp_norm mlp.gate_up mlp.down"
    outer = ("embed", "embed_up", *(f"blocks.0.{part}" for part in block.split()), "norm", "head_down", "head")
    assert names == [f"{name}.weight" for name in outer]
    assert {"position.weight", "blocks.0.mlp.up.bias", "blocks.0.attention_norm.bias", "norm.bias"} < classic_names


def test_initial_weights_are_gpt2s() -> None:
    config = ModelConfig(
        n_layer=3, n_head=4, n_embd=64, context_length=128, vocab_size=512, init_std=0.05, bias=True,
        norm="layernorm", position="learned", embedding_size=48, tie_embeddings=False,
    )  # fmt: skip
    model = GPT(config, generator=torch.Generator().manual_seed(1))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        elif "norm" in name:
            assert (parameter == 1).all()
        else:
            residual = name.endswith(("attention.out.weight", "mlp.down.weight"))
            std = 0.05 / math.sqrt(2 * 3) if residual else 0.05
            n = parameter.numel()  # both estimates within 5 standard errors
            assert abs(parameter.std().item() - std) < 5 * std / math.sqrt(2 * n), name
            assert abs(parameter.mean().item()) < 5 * std / math.sqrt(n), name


def test_initial_weights_depend_on_the_generator_alone(tiny: Callable[..., GPT]) -> None:
    config = tiny().config

    def drawn(seed: int, noise: int) -> dict[str, Tensor]:
        torch.manual_seed(noise)
        return GPT(config, generator=torch.Generator().manual_seed(seed)).state_dict()

    first, same, other = drawn(1, 1), drawn(1, 2), drawn(2, 1)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["embed.weight"], other["embed.weight"])
    model = GPT(config)
    model.init_weights(torch.Generator().manual_seed(1))
    assert all(torch.equal(first[name], tensor) for name, tensor in model.state_dict().items())
    # and not on the dtype, but for rounding
    half = GPT(config).bfloat16()
    half.init_weights(torch.Generator().manual_seed(1))
    assert all(torch.equal(first[name].bfloat16(), tensor) for name, tensor in half.state_dict().items())


def test_meta_construction_then_weights(ids: Callable[..., Tensor], tiny: Callable[..., GPT]) -> None:
    for options in KINDS:
        reference = tiny(**options)
        with torch.device("meta"):
            model = GPT(reference.config)
        assert all(parameter.is_meta for parameter in model.parameters())
        model.load_state_dict(reference.state_dict(), assign=True)
        assert torch.equal(model.eval()(ids(2, 7)), reference(ids(2, 7)))
        with torch.device("meta"):
            empty = GPT(reference.config)
        empty.to_empty(device="cpu").init_weights(torch.Generator().manual_seed(4))
        fresh = GPT(reference.config, generator=torch.Generator().manual_seed(4))
        assert torch.equal(empty.eval()(ids(2, 7)), fresh.eval()(ids(2, 7)))


def test_narrow_weights_keep_a_wide_rotary_table(tiny: Callable[..., GPT], ids: Callable[..., Tensor]) -> None:
    model, tokens = tiny(), ids(2, 16)
    exact = model(tokens)
    narrow = model.bfloat16()(tokens)
    assert isinstance(model.position, RotaryPositions) and model.position.table is not None
    assert model.position.table.dtype == torch.float32 and narrow.dtype == torch.float32
    assert (narrow - exact).norm() < 0.05 * exact.norm()  # bf16 keeps 8 bits


@pytest.mark.parametrize("documents", [False, True])
def test_dropout_only_in_training_and_by_the_seed(
    documents: bool, tiny: Callable[..., GPT], ids: Callable[..., Tensor]
) -> None:
    model, tokens = tiny(dropout=0.3, n_kv_head=2), ids(2, 12)
    document_ids = torch.tensor([0] * 5 + [1] * 7).expand(2, -1) if documents else None
    assert torch.equal(model(tokens), model(tokens))
    torch.testing.assert_close(model(tokens), tiny(n_kv_head=2)(tokens))
    model.train()

    def with_seed(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return model(tokens, targets=tokens, document_ids=document_ids)

    assert torch.equal(with_seed(1), with_seed(1))
    assert not torch.equal(with_seed(1), with_seed(2))
    assert model(tokens, targets=tokens, document_ids=document_ids).isfinite()
    plain = tiny().train()
    assert torch.equal(plain(tokens), plain(tokens))


def test_counts_are_the_models() -> None:
    """For random configs; and the count of a token's operations for GPT-2 is nanoGPT's estimate."""
    draw = random.Random(0)
    for _ in range(60):
        n_head = draw.choice([2, 4])
        config = ModelConfig(
            n_layer=draw.randint(1, 3), n_head=n_head, n_kv_head=draw.choice([None, 1, 2]), n_embd=8 * n_head,
            head_dim=draw.choice([None, 4, 10]), n_inner=draw.choice([None, 20]), context_length=draw.randint(1, 30),
            vocab_size=draw.randint(1, 99), vocab_multiple=draw.choice([1, 64]),
            norm=draw.choice(["rmsnorm", "layernorm"]), position=draw.choice(["rope", "learned"]),
            mlp=draw.choice(["swiglu", "geglu", "gelu", "gelu_tanh", "relu2"]), qk_norm=draw.random() < 0.5,
            tie_embeddings=draw.random() < 0.5, embedding_size=draw.choice([None, 6]), bias=draw.random() < 0.5,
        )  # fmt: skip
        with torch.device("meta"):
            model = GPT(config)
        sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
        assert count_parameters(config) == model.num_parameters() == sum(sizes.values())
        tables = sum(sizes.get(f"{name}.weight", 0) for name in ("embed", "position", "head"))
        assert count_parameters(config, embeddings=False) == sum(sizes.values()) - tables
        multiplied = sum(sizes.values()) - sizes.get("position.weight", 0)
        multiplied -= 0 if config.tie_embeddings else sizes["embed.weight"]
        attention = 12 * config.n_layer * config.n_head * config.head_size
        assert flops_per_token(config) == 6 * multiplied + attention * config.context_length
        assert model.flops_per_token(5) == 6 * multiplied + attention * 5


def test_importing_the_package_and_counting_need_no_torch() -> None:
    code = (
        "import sys, minigpt.model\n"
        "from minigpt.model import count_parameters\n"
        "from minigpt.model.count import flops_per_token\n"
        "assert 'torch' not in sys.modules\n"
        "from minigpt.model import *\n"
        "assert 'torch' in sys.modules and GPT.__name__ == 'GPT'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
@pytest.mark.parametrize(("whole", "backend"), [(False, "inductor"), (False, "aot_eager"), (True, "aot_eager")])
def test_compiled_equals_eager(whole: bool, backend: str, tiny: Callable[..., GPT], ids: Callable[..., Tensor]) -> None:
    """Compiled blocks, or the whole model; the names in the state stay the same either way."""
    model, reference, tokens, targets = tiny(n_kv_head=2), tiny(n_kv_head=2), ids(2, 16), ids(2, 16, seed=1)
    names = list(model.state_dict())
    for part in [model] if whole else model.blocks:
        part.compile(backend=backend)
    expected = reference(tokens, targets=targets)
    expected.backward()
    loss = model(tokens, targets=targets)
    loss.backward()
    torch.testing.assert_close(loss, expected)
    for (name, parameter), original in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, original.grad, atol=1e-4, rtol=1e-4, msg=lambda m, n=name: n + m)
    assert list(model.state_dict()) == names
    if backend == "inductor":  # each shape below would be compiled anew, for a minute in all
        return
    cache = model.make_cache(2, 16)
    with torch.no_grad():
        logits = torch.cat([model(piece, cache=cache) for piece in tokens.split([5, 1, 1, 9], dim=1)], dim=1)
        torch.testing.assert_close(logits, reference(tokens), atol=2e-5, rtol=1e-4)
