"""What is counted from a config alone is what the real model has, and what others publish of theirs."""

import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from minigpt.config import ModelConfig, RequestError, load_config, preset_names
from minigpt.model import GPT, count_parameters, flops_per_token
from minigpt.model.count import backward_flops_per_token, forward_flops_per_token, kv_cache_bytes_per_token

GPT2 = {"norm": "layernorm", "position": "learned", "mlp": "gelu_tanh", "qk_norm": "none", "bias": True,
        "vocab_size": 50257}  # fmt: skip
LLAMA = {"qk_norm": "none", "tie_embeddings": False}
DEEPSEEK_EXPERTS = {"n_expert": 256, "n_expert_used": 8, "n_shared": 1, "n_inner": 2048, "first_dense": 3,
                    "router": "sigmoid", "balance": "bias"}  # fmt: skip
# Parameters that the weights on Hugging Face's hub have (sums over the tensors of their safetensors files).
PUBLISHED: dict[str, tuple[int, dict[str, Any]]] = {
    "gpt2": (124_439_808, GPT2 | {"n_layer": 12, "n_head": 12, "n_embd": 768}),
    "gpt2-medium": (354_823_168, GPT2 | {"n_layer": 24, "n_head": 16, "n_embd": 1024}),
    "gpt2-large": (774_030_080, GPT2 | {"n_layer": 36, "n_head": 20, "n_embd": 1280}),
    "gpt2-xl": (1_557_611_200, GPT2 | {"n_layer": 48, "n_head": 25, "n_embd": 1600}),
    "Llama-3-70B": (70_553_706_496, LLAMA | {
        "n_layer": 80, "n_head": 64, "n_kv_head": 8, "n_embd": 8192, "n_inner": 28672, "vocab_size": 128256}),
    "Qwen3-0.6B": (596_049_920, {
        "n_layer": 28, "n_head": 16, "n_kv_head": 8, "head_dim": 128, "n_embd": 1024, "n_inner": 3072,
        "vocab_size": 151936}),
    "OLMo-2-7B": (7_298_617_344, {
        "n_layer": 32, "n_head": 32, "n_embd": 4096, "n_inner": 11008, "vocab_size": 100352, "norm_place": "post",
        "qk_norm": "full", "tie_embeddings": False}),
    "gemma-2-2b": (2_614_341_888, {
        "n_layer": 26, "n_head": 8, "n_kv_head": 4, "head_dim": 256, "n_embd": 2304, "n_inner": 9216,
        "vocab_size": 256000, "norm_place": "sandwich", "qk_norm": "none", "mlp": "geglu_tanh"}),
    "Mixtral-8x7B": (46_702_792_704, LLAMA | {
        "n_layer": 32, "n_head": 32, "n_kv_head": 8, "n_embd": 4096, "n_inner": 14336, "vocab_size": 32000,
        "moe": {"n_expert": 8}}),
    "Qwen3-30B-A3B": (30_532_122_624, {
        "n_layer": 48, "n_head": 32, "n_kv_head": 4, "head_dim": 128, "n_embd": 2048, "vocab_size": 151936,
        "tie_embeddings": False, "moe": {"n_expert": 128, "n_expert_used": 8, "n_inner": 768}}),
    # without the layer that predicts a second token; the biases of the choice, 256 in 58 layers, are not trained
    "DeepSeek-V3": (671_026_419_200 - 256 * 58, {
        "n_layer": 61, "n_head": 128, "n_embd": 7168, "head_dim": 128, "n_inner": 18432, "vocab_size": 129280,
        "tie_embeddings": False, "attention": "latent", "latent": {"q_rank": 1536}, "moe": DEEPSEEK_EXPERTS}),
}  # fmt: skip
ACTIVE = {"Mixtral-8x7B": "12.9B", "Qwen3-30B-A3B": "3.4B", "DeepSeek-V3": "37.6B", "Llama-3-70B": "70.6B"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models(name: str) -> None:
    published, options = PUBLISHED[name]
    config = ModelConfig(**options)
    assert count_parameters(config) == published
    active = count_parameters(config, active=True)
    assert active == published or config.moe.n_expert
    assert name not in ACTIVE or f"{active / 1e9:.1f}B" == ACTIVE[name]  # as their papers and cards say


def test_seventy_billion_parameters_are_constructed_without_memory() -> None:
    config = ModelConfig(**PUBLISHED["Llama-3-70B"][1])
    with torch.device("meta"):
        model = GPT(config)
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED["Llama-3-70B"][0]


def config_of_preset(name: str) -> ModelConfig:
    config, _ = load_config(name)
    if config.model.vocab_size is not None:
        return config.model
    trained = config.tokenizer.kind in ("bpe", "sentencepiece") or config.tokenizer.vocab_size
    size = config.tokenizer.vocab_size if trained and config.tokenizer.kind != "gpt2" else 50257
    return config.model.model_copy(update={"vocab_size": size})


@pytest.mark.parametrize("name", [*preset_names(), "d2", "d5"])
def test_every_preset(name: str) -> None:
    config = config_of_preset(name)
    with torch.device("meta"):
        model = GPT(config)
    assert count_parameters(config) == sum(p.numel() for p in model.parameters())
    with torch.device("meta"):
        cache = model.make_cache(3, 63, dtype=torch.bfloat16)
    assert cache.nbytes == 3 * 64 * kv_cache_bytes_per_token(config)  # one slot is for padding


def random_config(draw: random.Random) -> ModelConfig:
    """Any of the options that change a shape."""

    def maybe(value: Any, other: Any = None) -> Any:
        return value if draw.random() < 0.5 else other

    while True:
        n_head = draw.choice([2, 4])
        latent = draw.random() < 0.3
        experts = draw.random() < 0.4
        options = {
            "n_layer": draw.randint(1, 4), "n_head": n_head, "n_kv_head": draw.choice([None, 1, 2]),
            "n_embd": 8 * n_head, "head_dim": draw.choice([None, 4, 10]), "n_inner": maybe(20),
            "context_length": draw.randint(1, 30),
            "vocab_size": draw.randint(1, 99), "vocab_multiple": maybe(64, 1), "norm": maybe("rmsnorm", "layernorm"),
            "norm_weight": draw.random() < 0.8, "norm_place": draw.choice(["pre", "post", "sandwich"]),
            "embedding_norm": maybe(True, False), "position": maybe("rope", "learned"),
            "qk_norm": draw.choice(["none", "head", "full"]), "tie_embeddings": maybe(True, False),
            "mlp": draw.choice(["swiglu", "geglu", "geglu_tanh", "gelu", "gelu_tanh", "relu", "relu2"]),
            "embedding_size": maybe(6), "bias": maybe(True, False), "qkv_bias": draw.choice([None, True, False]),
            "out_bias": draw.choice([None, True, False]), "mlp_bias": draw.choice([None, True, False]),
            "norm_bias": draw.choice([None, True, False]), "attention": "latent" if latent else "standard",
            "latent": {"kv_rank": 12, "q_rank": maybe(10), "rope_dim": 4, "value_dim": maybe(6)},
            "moe": {"n_expert": 5 if experts else 0, "n_expert_used": draw.randint(1, 5), "n_inner": maybe(12),
                    "n_shared": draw.randint(0, 2), "shared_gate": maybe(True, False), "first_dense": maybe(1, 0),
                    "period": maybe(2, 1), "balance": draw.choice(["loss", "bias", "none"])},
            "speed": {"value_embeddings": draw.choice(["none", "alternate", "all"]), "smear": maybe(True, False),
                      "residual_scalars": maybe(True, False), "backout": maybe(True, False)},
        }  # fmt: skip
        try:
            return ModelConfig(**options)
        except ValueError:  # an impossible combination: draw again
            continue


def test_random_configs() -> None:
    draw = random.Random(0)
    for _ in range(80):
        config = random_config(draw)
        with torch.device("meta"):
            model = GPT(config)
        sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
        assert count_parameters(config) == model.num_parameters() == sum(sizes.values()), config
        tables = ("embed.weight", "position.weight", "head.weight", "value_embed.weight")
        network = {name: size for name, size in sizes.items() if not name.endswith(tables)}
        assert count_parameters(config, embeddings=False) == sum(network.values()), config
        idle = config.moe.n_expert - config.moe.n_expert_used
        unused = sum(size // config.moe.n_expert * idle for name, size in sizes.items() if ".experts." in name)
        assert count_parameters(config, active=True) == sum(sizes.values()) - unused, config
        cache = model.make_cache(2, config.context_length, dtype=torch.float32)
        assert cache.nbytes == 2 * (config.context_length + 1) * kv_cache_bytes_per_token(config, 4), config


SMALL: dict[str, Any] = {"n_layer": 2, "n_head": 4, "n_embd": 32, "context_length": 16, "vocab_size": 40}
COMPARABLE: list[dict[str, Any]] = [
    {},
    {"n_kv_head": 2, "bias": True, "norm": "layernorm", "position": "learned", "mlp": "gelu", "qk_norm": "full"},
    {"attention": "latent", "latent": {"kv_rank": 12, "rope_dim": 4, "q_rank": 24, "value_dim": 6}},
    {"moe": {"n_expert": 4, "n_expert_used": 2, "n_shared": 1, "shared_gate": True, "first_dense": 1}},
    {"embedding_size": 16, "norm_place": "sandwich", "head_dim": 12},
    {"speed": {"value_embeddings": "alternate", "smear": True, "backout": True, "residual_scalars": True},
     "tie_embeddings": False},
]  # fmt: skip


def check_operations(config: ModelConfig, device: str = "cpu") -> None:
    """What torch counts is what is counted from the config, but for what torch counts otherwise: vectors count as
    matrices here (PaLM's N is all parameters), and the sum of the experts' outputs by their weights is a product of
    matrices there."""
    rows, length = 3, config.context_length
    with torch.device(device):
        model = GPT(config)
        ids = torch.randint(config.padded_vocab_size, (rows, length))
    counted = []
    for run in (lambda: model(ids), lambda: model(ids).sum().backward()):
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            run()
        counted.append(counter.get_total_flops() / (rows * length))
    vectors = sum(p.numel() for p in model.parameters() if p.ndim == 1)
    mixtures = sum(map(config.has_experts, range(config.n_layer))) * config.moe.n_expert_used * config.n_embd
    forward, both = counted
    assert forward == forward_flops_per_token(config) - 2 * vectors + 2 * mixtures, config
    assert both - forward == backward_flops_per_token(config) - 4 * vectors + 4 * mixtures, config
    assert flops_per_token(config) == forward_flops_per_token(config) + backward_flops_per_token(config)


@pytest.mark.slow  # the counter imports the compiler
@pytest.mark.parametrize("options", COMPARABLE)
def test_operations_are_those_that_torch_counts(options: dict[str, Any]) -> None:
    check_operations(ModelConfig(**SMALL, **options))


@pytest.mark.slow
def test_operations_of_random_configs() -> None:
    draw = random.Random(1)
    for _ in range(30):
        check_operations(random_config(draw))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*preset_names(), "d2", "d32"])
def test_operations_of_every_preset(name: str) -> None:
    """In full size without memory; experts, whose rows only running shows, in two short layers."""
    config = config_of_preset(name)  # what torch computes beyond windows is not counted: see the next test
    whole = config.model_copy(update={"attention_window": None, "attention_softcap": None, "dropout": 0.0})
    if whole.moe.n_expert:
        check_operations(whole.model_copy(update={"n_layer": 2, "context_length": 8}))
    else:
        check_operations(whole, "meta")


def test_windows_count_what_they_see() -> None:
    whole, short = ModelConfig(**SMALL), ModelConfig(**SMALL, attention_window=4, window_pattern="SL")
    difference = flops_per_token(whole) - flops_per_token(short)
    assert difference == 12 * whole.n_head * whole.head_size * (16 - 4)  # in one of the two layers
    assert flops_per_token(short, 3) == flops_per_token(whole, 3)


def test_a_vocabulary_that_is_not_known_yet() -> None:
    with pytest.raises((ValueError, RequestError), match="vocab_size is not known"):
        count_parameters(ModelConfig())


def test_the_table_of_the_guide() -> None:
    page = (Path(__file__).parents[2] / "docs" / "architectures.md").read_text("utf-8")
    rows = re.findall(r"^\| `([a-z0-9-]+)` \| ([\d,]+) \| ([\d,]+) \| ([\d.]+) \| ([\d.]+) \| ([\d,]+) \|$", page, re.M)
    assert len(rows) > 15
    for name, *cells in rows:
        config = config_of_preset(name)
        assert cells == [
            f"{count_parameters(config):,}",
            f"{count_parameters(config, active=True):,}",
            f"{forward_flops_per_token(config) / 1e9:.3g}",
            f"{backward_flops_per_token(config) / 1e9:.3g}",
            f"{kv_cache_bytes_per_token(config):,}",
        ], name


def test_the_dial_of_the_guide() -> None:
    page = (Path(__file__).parents[2] / "docs" / "architectures.md").read_text("utf-8")
    lines = page.split("| width | ")[0].rpartition("\n\n")[2] + "| width | " + page.split("| width | ")[1]
    table = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines.split("\n\n")[0].splitlines()]
    depths, _, *rows = table
    for column, name in enumerate(depths[1:], 1):
        config, _ = load_config(name)
        values = (config.model.n_embd, config.optimizer.lr, config.training.batch_tokens, config.training.max_steps)
        assert [row[column] for row in rows] == [f"{v:,}" if isinstance(v, int) else str(v) for v in values]
