"""The presets have the settings of the runs that they are named after."""

import re
from importlib import resources

import pytest

from minigpt.config import load_config, preset_names

NANOGPT_CPU = {
    "model.n_layer": 4, "model.n_head": 4, "model.n_embd": 128, "model.context_length": 64, "model.dropout": 0.0,
    "training.batch_tokens": 12 * 64, "training.max_steps": 2000, "optimizer.lr": 1e-3, "schedule.min_lr": 1e-4,
    "schedule.warmup_steps": 100, "schedule.kind": "cosine", "optimizer.betas": [0.9, 0.99], "optimizer.name": "adamw",
    "optimizer.weight_decay": 0.1, "training.grad_clip": 1.0, "tokenizer.kind": "char", "data.val_fraction": 0.1,
    "model.norm": "layernorm", "model.position": "learned", "model.mlp": "gelu", "model.bias": False,
    "model.tie_embeddings": True, "model.qk_norm": "none",
}  # fmt: skip
GPT2 = {
    "model.n_layer": 12, "model.n_head": 12, "model.n_embd": 768, "model.context_length": 1024,
    "training.batch_tokens": 524_288, "optimizer.lr": 6e-4, "schedule.min_lr": 6e-5, "schedule.warmup_steps": 715,
    "optimizer.weight_decay": 0.1, "optimizer.betas": [0.9, 0.95], "model.tie_embeddings": True, "model.bias": True,
    "model.norm": "layernorm", "model.position": "learned", "model.mlp": "gelu_tanh", "model.norm_eps": 1e-5,
}  # fmt: skip
DEFAULTS = {
    "model.norm": "rmsnorm", "model.position": "rope", "model.mlp": "swiglu", "model.qk_norm": "head",
    "model.bias": False,
}  # fmt: skip
DEFAULT_FAMILY = DEFAULTS | {
    "model.n_layer": 12, "model.n_head": 12, "model.n_embd": 768,
    "training.batch_tokens": 524_288, "optimizer.lr": 6e-4, "schedule.warmup_steps": 715,
}  # fmt: skip
WANTED = {
    "shakespeare-char": NANOGPT_CPU,
    "shakespeare-char-gpu": NANOGPT_CPU | {
        "model.n_layer": 6, "model.n_head": 6, "model.n_embd": 384, "model.context_length": 256,
        "training.batch_tokens": 64 * 256, "training.max_steps": 5000, "model.dropout": 0.2,
    },
    "shakespeare-char-fast": DEFAULTS | {"training.precision": "bf16", "evaluation.every_steps": None},
    "gpt2-124m": GPT2,
    "gpt2-124m-2048": GPT2 | {"model.context_length": 2048, "model.vocab_size": 50_304},
    "default-124m": DEFAULT_FAMILY,
    "gpt2-medium": GPT2 | {"model.n_layer": 24, "model.n_head": 16, "model.n_embd": 1024, "optimizer.lr": 3e-4,
                           "schedule.min_lr": 3e-5},
    "gpt2-large": GPT2 | {"model.n_layer": 36, "model.n_head": 20, "model.n_embd": 1280, "optimizer.lr": 2.5e-4,
                          "schedule.min_lr": 2.5e-5},
    "gpt2-xl": GPT2 | {"model.n_layer": 48, "model.n_head": 25, "model.n_embd": 1600, "optimizer.lr": 2e-4,
                       "schedule.min_lr": 2e-5},
    "llama-style": DEFAULT_FAMILY | {"model.qk_norm": "none", "model.norm_eps": 1e-5, "model.rope_theta": 10000.0},
    "qwen3-style": DEFAULTS | {"model.n_layer": 28, "model.n_embd": 1024, "model.head_dim": 128, "model.n_kv_head": 8},
    "olmo2-style": DEFAULT_FAMILY | {
        "model.norm_place": "post", "model.qk_norm": "full", "model.tie_embeddings": False,
        "model.rope_theta": 500_000.0, "model.norm_eps": 1e-6,
    },
    "gemma-style": DEFAULT_FAMILY | {
        "model.norm_place": "sandwich", "model.qk_norm": "none", "model.mlp": "geglu_tanh", "model.logit_softcap": 30.0,
        "model.attention_softcap": 50.0, "model.embedding_multiplier": 768**0.5, "model.window_pattern": "SL",
    },
    "mixtral-style": DEFAULT_FAMILY | {"model.qk_norm": "none", "model.norm_eps": 1e-5, "model.tie_embeddings": False},
    "qwen3-moe-style": DEFAULT_FAMILY | {"model.tie_embeddings": False},
    "deepseek-style": DEFAULT_FAMILY | {"model.attention": "latent", "model.tie_embeddings": False},
    "speed": {"model.norm_weight": False, "model.init_residual": "zero", "model.mlp": "relu2", "model.n_embd": 768},
    "cramming-100m": DEFAULTS | {
        "model.n_layer": 12, "model.n_embd": 768, "model.embedding_size": 384, "model.partial_rotary_factor": 0.5,
        "model.n_inner": 2304, "tokenizer.vocab_size": 32_768,
    },
}  # fmt: skip
# As their papers and the config.json of the released models say.
MIXTURES = {
    "mixtral-style": {"n_expert": 8, "n_expert_used": 2, "n_shared": 0, "router": "softmax", "normalize": True,
                      "weight_scale": 1.0, "balance": "loss"},
    "qwen3-moe-style": {"n_expert_used": 8, "n_shared": 0, "router": "softmax", "normalize": True, "weight_scale": 1.0,
                        "balance": "loss", "balance_weight": 0.001},
    "deepseek-style": {"n_shared": 1, "router": "sigmoid", "normalize": True, "weight_scale": 2.5, "balance": "bias",
                       "balance_rate": 0.001, "first_dense": 1},
}  # fmt: skip


@pytest.mark.parametrize("name", MIXTURES)
def test_experts(name):
    model = load_config(name)[0].model
    for key, value in MIXTURES[name].items():
        assert getattr(model.moe, key) == value, key
    taken = model.moe.n_expert_used + model.moe.n_shared
    assert taken * model.expert_size == 2048  # as wide as the dense layer of the same width


@pytest.mark.parametrize("name", WANTED)
def test_settings(name):
    config, notes = load_config(name)
    assert notes == []
    for key, value in WANTED[name].items():
        section, leaf = key.split(".")
        assert getattr(getattr(config, section), leaf) == value, key


def test_the_demo_needs_nothing():
    config, _ = load_config("demo")
    assert config.data.train and all(source.demo for source in config.data.train)


def test_gpt2_has_the_parameters_of_gpt2():
    """124,439,808 with the vocabulary as it is: counted by transformers without making the weights."""
    transformers = pytest.importorskip("transformers")
    import torch

    from minigpt.model.count import count_parameters

    with torch.device("meta"):
        theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config())
    config, _ = load_config("gpt2-124m", ["model.vocab_multiple=1", "model.vocab_size=50257"])
    assert count_parameters(config.model) == sum(p.numel() for p in theirs.parameters()) == 124_439_808


@pytest.mark.parametrize("name", preset_names())
def test_the_numbers_of_parameters_that_presets_state(name):
    """`N parameters` in a preset's comment, and `of which N are active`."""
    from minigpt.model.count import count_parameters

    text = (resources.files("minigpt.presets") / f"{name}.yaml").read_text("utf-8")
    comment = re.sub(r"\s+", " ", " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#")))
    config, _ = load_config(name)
    size = config.tokenizer.vocab_size or config.model.vocab_size or 50_257
    model = config.model.model_copy(update={"vocab_size": size})
    if name.startswith("gpt2"):  # stated without padding, as OpenAI's
        model = model.model_copy(update={"vocab_size": 50_257, "vocab_multiple": 1})
    for stated in re.findall(r"([\d,]{9,}) parameters", comment):
        assert int(stated.replace(",", "")) == count_parameters(model)
    for stated in re.findall(r"of which ([\d,]{9,}) are active", comment):
        assert int(stated.replace(",", "")) == count_parameters(model, active=True)


def test_some_presets_state_them():
    text = "".join((resources.files("minigpt.presets") / f"{name}.yaml").read_text("utf-8") for name in preset_names())
    assert len(re.findall(r"[\d,]{9,} parameters", text.replace("\n# ", " "))) >= 8


@pytest.mark.parametrize("name", WANTED)
def test_widths_that_export_exactly(name):
    """Heads and widths of multiples of 32, as GGUF's quantized blocks want them."""
    model = load_config(name)[0].model
    assert model.n_embd % 32 == model.inner_size % 32 == 0 and model.head_size % 2 == 0
