"""Folders for transformers: what it computes from them, what is in them, and what is refused."""

import json
import random
import re
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import random_hf
import random_moe
from pydantic import ValidationError
from random_hf import VOCABULARY, logits, some_ids
from transformers import AutoModelForCausalLM, AutoTokenizer

from minigpt.config import GenerationConfig, ModelConfig, RequestError, WorkError, load_config, preset_names
from minigpt.inference import generate
from minigpt.interop import import_model
from minigpt.interop.exporting import ExportSource, export_model, open_source
from minigpt.interop.huggingface import writing
from minigpt.interop.huggingface.families import FAMILIES
from minigpt.interop.huggingface.reading import build_model, read_config
from minigpt.interop.meaning import differences
from minigpt.model import GPT
from minigpt.tokenizer import Tokenizer, load_tokenizer, train_bpe
from minigpt.tokenizer.unified import Inexact

TOLERANCE = 1e-4  # of the largest logit or 1: fp32 sums in another order
KINDS = random_hf.KINDS | random_moe.KINDS
TEXTS = ["The quick brown fox jumps over the lazy dog. Füchse & Bäume: 12345 — 你好, 世界! 🙂\n\t  if x:\n" * 40]
NASTY = [
    "",
    " ",
    "\n\n \n",
    "a\u0301 é ﬁ",
    "<|endoftext|> inside",
    "🙂🙂\u200d👩",
    "\r\nx\t\ty  ",
    "don't we'LL 1234567",
    "\x00\x7f",
]


def build(config: ModelConfig, seed: int = 0) -> GPT:
    """A network all of whose weights matter: none is zero and norms are not one."""
    model = GPT(config)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        centre = 1.0 if name.endswith("norm.weight") else 0.0
        tensor.copy_(centre + torch.randn(tensor.shape, generator=generator) * (0.15 if tensor.ndim > 1 else 0.1))
    return model.eval()


def source(model: GPT, tokenizer: Tokenizer | None = None) -> ExportSource:
    return ExportSource(Path("model"), model.config, tokenizer, lambda: model)


def export(model: GPT, out: Path, dtype: str = "fp32", tokenizer: Tokenizer | None = None) -> list[str]:
    lines: list[str] = []
    assert export_model(source(model, tokenizer), out, "hf", dtype, lines.append) == out
    return lines


def in_transformers(folder: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    model.set_experts_implementation("eager")
    return model


def check_same(model: GPT, folder: Path, seed: int = 0) -> None:
    ids = some_ids(seed, length=min(model.config.context_length, 48)) % model.config.vocab_size
    with torch.no_grad():
        expected = model(ids)
    got = logits(in_transformers(folder), ids)
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= TOLERANCE * max(1.0, float(expected.abs().max()))


def tiny(**keys: Any) -> ModelConfig:
    sizes = {"n_layer": 2, "n_head": 4, "n_embd": 24, "context_length": 32, "vocab_size": VOCABULARY}
    return ModelConfig(**sizes | keys)


def check_family(model_type: str, seed: int, tmp_path: Path) -> GPT:
    """A random model of ours that a family represents goes out, is computed by transformers, and comes back."""
    config = FAMILIES[model_type].read(KINDS[model_type](random.Random(seed)))
    model = build(config, seed)
    export(model, tmp_path / "out")
    check_same(model, tmp_path / "out", seed)
    back = build_model(tmp_path / "out")
    wanted, got = model.state_dict(), back.state_dict()
    lost = set(differences(config, back.config)) - set(writing.represent(config, FAMILIES).rewritten)
    assert not lost
    assert all(torch.equal(wanted[name], got[name]) for name in wanted), "the same bits"
    return model


@pytest.mark.parametrize("model_type", ["qwen3", "gpt2", "deepseek_v3", "gemma2"])
def test_a_model_that_a_family_represents(model_type: str, tmp_path: Path):
    check_family(model_type, 1, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 24))
@pytest.mark.parametrize("model_type", KINDS)
def test_models_that_families_represent_and_their_greedy_text(model_type: str, seed: int, tmp_path: Path):
    model = check_family(model_type, seed, tmp_path)
    prompt, length = some_ids(seed, rows=1, length=7), model.config.context_length - 8
    config = GenerationConfig(max_new_tokens=length, temperature=0)
    wanted = generate(model, None, [prompt[0].tolist()], config)[0].ids
    network = in_transformers(tmp_path / "out")
    # Without its cache, which is wrong for a window of one token.
    found = network.generate(prompt, max_new_tokens=length, do_sample=False, use_cache=False)
    assert found[0, 7:].tolist() == wanted


MUTATIONS: dict[str, list[Any]] = {
    "norm": ["rmsnorm", "layernorm"],
    "norm_weight": [True, False],
    "norm_place": ["pre", "post", "sandwich"],
    "parallel_residual": [True, False],
    "embedding_norm": [True],
    "position": ["rope", "learned"],
    "partial_rotary_factor": [0.5, 1.0],
    "qk_norm": ["none", "head", "full"],
    "attention_window": [None, 3],
    "window_pattern": ["S", "SL", "L"],
    "rope_local_theta": [None, 50.0],
    "attention_scale": [None, 0.2],
    "attention_softcap": [None, 2.0],
    "mlp": ["swiglu", "geglu", "geglu_tanh", "gelu", "gelu_tanh", "relu", "relu2"],
    "tie_embeddings": [True, False],
    "embedding_multiplier": [1.0, 2.5],
    "residual_multiplier": [1.0, 0.4],
    "logit_multiplier": [1.0, 0.3],
    "bias": [True, False],
    "qkv_bias": [True, False],
    "out_bias": [True, False],
    "mlp_bias": [True, False],
    "norm_bias": [True, False],
    "logit_softcap": [None, 3.0],
    "n_kv_head": [1, None],
    "vocab_multiple": [1, 16],
    "rope_scaling": [{"kind": "ntk", "factor": 3.0}, {"kind": "linear", "factor": 2.0}],
    "moe": [{"n_expert": 0}, {"n_expert": 3, "n_expert_used": 2, "normalize": False, "weight_scale": 1.5}],
}
"""Values that options of a model of some family are changed to, most of which leave the family."""


@pytest.mark.slow
@pytest.mark.parametrize("model_type", KINDS)
def test_what_is_not_refused_is_exact(model_type: str, tmp_path: Path):
    rng = random.Random(model_type)
    exported = 0
    for number in range(40):
        fields = FAMILIES[model_type].read(KINDS[model_type](rng)).model_dump()
        for key in rng.sample(sorted(MUTATIONS), rng.randint(1, 3)):
            fields[key] = rng.choice(MUTATIONS[key])
        try:
            model = build(ModelConfig.model_validate(fields), number)
            export(model, tmp_path / str(number))
        except (RequestError, ValidationError):
            continue
        check_same(model, tmp_path / str(number), number)
        exported += 1
    assert exported >= 4


GPT2 = {"norm": "layernorm", "position": "learned", "mlp": "gelu_tanh", "qk_norm": "none"}
REWRITTEN = {
    "biases and norms": (GPT2 | {"norm_weight": False}, "GPT2LMHeadModel"),
    "some biases": (GPT2 | {"bias": True, "mlp_bias": False}, "GPT2LMHeadModel"),
    "one key/value head": (GPT2 | {"bias": True, "n_kv_head": 1}, "GPT2LMHeadModel"),
    "padded vocabulary": ({"vocab_multiple": 32, "tie_embeddings": False}, "Qwen3ForCausalLM"),
    "weightless norms": ({"norm_weight": False}, "Qwen3ForCausalLM"),
    "an output bias": ({"out_bias": True}, "Qwen3ForCausalLM"),
    "attention scale": ({"attention_scale": 0.3}, "Qwen3ForCausalLM"),
    "residual multiplier and weightless norms": (
        {"residual_multiplier": 0.3, "norm_weight": False, "attention_scale": 0.1},
        "Qwen3ForCausalLM",
    ),
    "embedding and logit multipliers": (
        {"embedding_multiplier": 3.0, "logit_multiplier": 0.5, "tie_embeddings": False, "vocab_multiple": 16},
        "Qwen3ForCausalLM",
    ),
    "a base that ntk enlarges": ({"rope_scaling": {"kind": "ntk", "factor": 4.0}}, "Qwen3ForCausalLM"),
    "no shared expert and no bias": (
        {"moe": {"n_expert": 4, "router": "sigmoid", "n_inner": 16}},
        "Dots1ForCausalLM",
    ),
}


@pytest.mark.parametrize("name", REWRITTEN)
def test_missing_parts_are_rewritten_without_loss(name: str, tmp_path: Path):
    keys, architecture = REWRITTEN[name]
    model = build(tiny(**keys))
    lines = export(model, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == [architecture]
    assert any(architecture in line for line in lines) and any("verified" in line for line in lines)
    check_same(model, tmp_path / "out")


@pytest.mark.parametrize(
    "keys, named",
    [
        ({"logit_softcap": 15.0}, ["Qwen3ForCausalLM", "model.logit_softcap=15"]),
        ({"embedding_size": 8}, ["Qwen3ForCausalLM", "model.embedding_size=8"]),
        ({"speed": {"smear": True}}, ["Qwen3ForCausalLM", "model.speed.smear=true"]),
        ({"speed": {"value_embeddings": "all"}}, ["model.speed.value_embeddings"]),
        ({"norm": "layernorm"}, ["model.norm=rmsnorm and not layernorm"]),
        (GPT2 | {"mlp": "swiglu"}, ["GPT2LMHeadModel", "model.mlp", "swiglu"]),
        ({"moe": {"n_expert": 4, "n_shared": 1}}, ["Dots1ForCausalLM", "model.moe.router=sigmoid and not softmax"]),
    ],
)
def test_what_no_class_represents_is_refused_with_the_nearest(keys: dict[str, Any], named: list[str], tmp_path: Path):
    with pytest.raises(RequestError, match="no transformers class represents this model: the nearest, ") as error:
        export(build(tiny(**keys)), tmp_path / "new" / "out")
    assert all(word in str(error.value) for word in named), error.value
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return train_bpe(TEXTS, 300, special_tokens=("<|endoftext|>", "<|im_end|>"))


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_smaller_numbers(dtype: str, tmp_path: Path):
    keys = {"attention": "latent", "head_dim": 6, "latent": {"kv_rank": 8, "rope_dim": 4}}
    moe = {"n_expert": 4, "n_inner": 16, "router": "sigmoid", "balance": "bias", "n_shared": 1}
    lines = export(build(tiny(**keys, moe=moe)), tmp_path / "out", dtype)
    assert any(f"rounding to {dtype} moves the logits" in line for line in lines)
    name = {"bf16": "bfloat16", "fp16": "float16"}[dtype]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == name
    network = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert network.dtype == getattr(torch, name)
    assert network.model.layers[0].mlp.gate.e_score_correction_bias.dtype == torch.float32


def test_numbers_too_large_for_fp16(tmp_path: Path):
    model = build(tiny())
    model.embed.weight.data[3, 4] = 1e6
    with pytest.raises(RequestError, match=r"model\.embed_tokens\.weight .* too large for fp16: choose bf16 or fp32"):
        export(model, tmp_path / "out", "fp16")
    assert not list(tmp_path.iterdir())


def test_the_tokenizer_is_the_same_in_transformers(bpe: Tokenizer, tmp_path: Path):
    model = build(tiny(vocab_size=bpe.vocab_size))
    export(model, tmp_path / "out", tokenizer=bpe)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in [*NASTY, *TEXTS]:
        if "<|endoftext|>" in text:
            assert theirs.encode(text) == bpe.encode(text, allow_special=True)
        else:
            assert theirs.encode(text) == bpe.encode(text)
            assert theirs.decode(theirs.encode(text)) == text
    assert theirs.eos_token_id == bpe.eot_id and theirs.model_max_length == model.config.context_length
    network = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert network.config.eos_token_id == network.generation_config.eos_token_id == bpe.eot_id
    assert network.generation_config.pad_token_id is None
    assert load_tokenizer(tmp_path / "out").fingerprint == bpe.fingerprint


def test_a_chat_template_goes_along(bpe: Tokenizer, tmp_path: Path):
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    bpe.save(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(settings | {"chat_template": template, "eos_token": "<|im_end|>"})
    )
    model = build(tiny(vocab_size=bpe.vocab_size))
    export(model, tmp_path / "out", tokenizer=load_tokenizer(tmp_path))
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert theirs.eos_token == "<|im_end|>"
    network = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert network.generation_config.eos_token_id == sorted({bpe.eot_id, theirs.eos_token_id})
    said = theirs.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert said == "user: hi\n"


def test_config_speaks_to_transformers_4_and_5(tmp_path: Path):
    export(build(tiny(rope_theta=5000.0, n_kv_head=2)), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 5000.0
    assert config["torch_dtype"] == config["dtype"] == "float32"
    assert config["head_dim"] == 6 and config["num_key_value_heads"] == 2
    assert config["bos_token_id"] is config["eos_token_id"] is config["pad_token_id"] is None


def test_many_weight_files_and_their_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(writing, "SHARD_BYTES", 10_000)
    model = build(tiny())
    export(model, tmp_path / "out")
    shards = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 2 and shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(shards)
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in model.state_dict().values())
    check_same(model, tmp_path / "out")


def test_targets(tmp_path: Path):
    model = build(tiny())
    (tmp_path / "empty").mkdir()
    export(model, tmp_path / "empty")
    with pytest.raises(RequestError, match="exists already"):
        export(model, tmp_path / "empty")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RequestError, match="exists already"):
        export(model, tmp_path / "file")
    with pytest.raises(WorkError, match="could not write"):
        export(model, tmp_path / "file" / "out")
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(RequestError, match="choose one of fp32 bf16 fp16"):
        export(model, tmp_path / "other", "q8_0")
    with pytest.raises(RequestError, match="choose one of hf, gguf, llama2c"):
        export_model(source(model), tmp_path / "other", "onnx")
    assert read_config(tmp_path / "empty").n_layer == 2


def preset_targets() -> list[tuple[str, str | None]]:
    """Presets that say where they can go, with the class of transformers, None if none represents them."""
    found = []
    for name in preset_names():
        text = (resources.files("minigpt.presets") / f"{name}.yaml").read_text("utf-8")
        said = re.search(r"# Exports: (exactly a Hugging Face (\w+)|no class)", text)
        if said is not None:
            found.append((name, said[2]))
    return found


@pytest.mark.parametrize("preset, architecture", preset_targets())
def test_presets_go_where_they_say(preset: str, architecture: str | None):
    config = load_config(preset, ["data.train=x.txt"])[0].model
    config = config.model_copy(update={"vocab_size": config.vocab_size or 1000})
    if architecture is not None:
        assert writing.represent(config, FAMILIES).family.architecture == architecture
        return
    with pytest.raises(RequestError, match="no transformers class represents this model"):
        writing.represent(config, FAMILIES)


def test_some_presets_say_where_they_go():
    assert {None, "Qwen3ForCausalLM", "GPT2LMHeadModel"} <= {architecture for _, architecture in preset_targets()}


def test_stories260k_writes_the_same_text_in_transformers(test_data: Callable[[str], Path], tmp_path: Path):
    folder = test_data("weights/stories260K")
    import_model(folder / "stories260K.bin", tmp_path / "ours", tokenizer=folder / "tok512.bin")
    export_model(open_source(str(tmp_path / "ours")), tmp_path / "out", "hf")
    wanted = json.loads((folder / "reference_float64.json").read_text())["greedy_ids"]
    network = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    prompt = torch.tensor([wanted[:1]])
    ids = network.generate(prompt, max_new_tokens=len(wanted) - 1, do_sample=False, eos_token_id=None)[0]
    assert ids.tolist() == wanted
    ours, theirs = load_tokenizer(tmp_path / "ours"), AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "Once upon a time, there was a little girl named Lily. 🙂"
    assert theirs.encode(text) == [1, *ours.encode(text)], "what every text begins with goes along"
    assert theirs.encode(text, add_special_tokens=False) == ours.encode(text)
    assert theirs.decode(wanted[1:]) == ours.decode(wanted[1:])
    assert open_source(str(tmp_path / "out")).begin == (1,)


def test_a_tokenizer_that_no_json_says_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, test_data: Any):
    words = load_tokenizer(test_data("weights/stories260K") / "tok512.bin")
    monkeypatch.setattr(type(words), "_translation", Inexact("the translation gives other ids for 'x'"))
    with pytest.raises(RequestError, match=r"cannot be exported as tokenizer\.json: .* use its own file"):
        export(build(tiny(vocab_size=512)), tmp_path / "out", tokenizer=words)
    assert not list(tmp_path.iterdir())
