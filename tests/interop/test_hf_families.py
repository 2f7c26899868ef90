"""Dense families beside transformers: random models in, out and back, every option of each class."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from random_hf import CONTEXT, KINDS, logits, make, save, some_ids
from safetensors.torch import load_file, save_file

from minigpt.config import GenerationConfig, ModelConfig, RequestError
from minigpt.inference import generate
from minigpt.interop.huggingface.families import FAMILIES
from minigpt.interop.huggingface.family import unrepresented
from minigpt.interop.huggingface.reading import build_model, read_config
from minigpt.interop.meaning import differences
from minigpt.interop.tensors import to_ours, to_theirs
from minigpt.model import GPT

TOLERANCE = 1e-4  # of the largest logit or 1: fp32 sums in another order


def close(got: torch.Tensor, expected: torch.Tensor) -> bool:
    return float((got - expected).abs().max()) <= TOLERANCE * max(1.0, float(expected.abs().max()))


def check_import(model_type: str, seed: int, folder: Path) -> tuple[Any, GPT]:
    """Logits equal; the class represents what was read; ours to theirs gives the bits of the file."""
    theirs = make(model_type, KINDS[model_type](random.Random(seed)), seed)
    save(theirs, folder)
    ours, ids = build_model(folder), some_ids(seed)
    with torch.no_grad():
        assert close(ours(ids), logits(theirs, ids)), (model_type, seed)
    family = FAMILIES[model_type]
    assert not unrepresented(family, ours.config), (model_type, seed)
    file, back = load_file(folder / "model.safetensors"), dict(to_theirs(family.rules(ours.config), ours.state_dict()))
    assert file.keys() == back.keys()
    for name in file:  # adding 1 to a small number rounds it
        rounded = 2.0**-23 if model_type.startswith("gemma") else 0.0
        assert torch.allclose(file[name], back[name], rtol=0.0, atol=rounded), (model_type, seed, name)
    again = dict(to_ours(family.rules(ours.config), back.__getitem__))
    assert all(torch.equal(again[name], tensor) for name, tensor in ours.state_dict().items()), (model_type, seed)
    return theirs, ours


def check_export(model_type: str, seed: int, folder: Path) -> None:
    """A model of ours, said by the family, is the same in transformers, with what either of its versions reads."""
    from transformers import AutoConfig, AutoModelForCausalLM

    family, rng = FAMILIES[model_type], random.Random(seed)
    folder.mkdir()
    their_config = AutoConfig.for_model(model_type, **{"bos_token_id": 1, "eos_token_id": 2, **KINDS[model_type](rng)})
    config = family.read(json.loads(their_config.to_json_string(use_diff=False)))
    torch.manual_seed(seed)
    ours = GPT(config).eval()
    for name, parameter in ours.named_parameters():
        parameter.data.normal_(1.0 if parameter.ndim == 1 and not name.endswith("bias") else 0.0, 0.15)
    said = {"architectures": [family.architecture], "model_type": model_type, **family.write(config)}
    said |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
    (folder / "config.json").write_text(json.dumps(said))
    save_file(dict(to_theirs(family.rules(config), ours.state_dict())), folder / "model.safetensors", {"format": "pt"})
    theirs = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    ids = some_ids(seed)
    with torch.no_grad():
        assert close(logits(theirs, ids), ours(ids)), (model_type, seed)
    assert not differences(config, read_config(folder))
    if model_type != "olmo3":  # of which transformers 4 has no other base for the layers with a window
        old = {key: value for key, value in said.items() if key != "rope_parameters"}
        assert not differences(config, family.read(old)), (model_type, seed)


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "qwen3", "olmo2", "gemma3_text", "gpt_neox"])
def test_a_random_model_of_the_most_different_families(model_type: str, tmp_path: Path):
    check_import(model_type, 1, tmp_path / "theirs")
    check_export(model_type, 2, tmp_path / "ours")


@pytest.mark.parametrize("model_type", KINDS)
def test_each_family_says_what_it_reads_and_knows_every_tensor(model_type: str):
    family = FAMILIES[model_type]
    for seed in range(3):
        config = family.read(KINDS[model_type](random.Random(seed)))
        assert not unrepresented(family, config), (model_type, seed)
        state = GPT(config, generator=torch.Generator().manual_seed(seed)).state_dict()
        theirs = dict(to_theirs(family.rules(config), state))
        assert len(theirs) == sum(len(rule.theirs) for rule in family.rules(config)), "no name twice"
        assert all(name.startswith(family.prefix) or name == family.head for name in theirs)
        again = dict(to_ours(family.rules(config), theirs.__getitem__))
        assert again.keys() == state.keys()
        assert all(torch.allclose(again[name], state[name], atol=1e-7) for name in state), (model_type, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 27))
@pytest.mark.parametrize("model_type", KINDS)
def test_many_random_models_of_each_family(model_type: str, seed: int, tmp_path: Path):
    theirs, ours = check_import(model_type, seed, tmp_path / "theirs")
    check_export(model_type, seed, tmp_path / "ours")
    prompt, new = some_ids(seed, 1, 9), CONTEXT - 9
    # Without its cache, which is wrong for a window of one token, and told that no token is padding.
    asked = {"attention_mask": torch.ones_like(prompt), "use_cache": False, "do_sample": False, "eos_token_id": None}
    expected = theirs.generate(prompt, max_new_tokens=new, pad_token_id=0, **asked)
    options = GenerationConfig(max_new_tokens=new, temperature=0.0)
    assert generate(ours, None, [prompt[0].tolist()], options)[0].ids == expected[0, 9:].tolist()


def published(name: str) -> dict[str, Any]:
    """config.json as published, without what does not matter here."""
    return {
        "gpt2": {"model_type": "gpt2", "activation_function": "gelu_new", "layer_norm_epsilon": 1e-05, "n_ctx": 1024,
                 "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024, "vocab_size": 50257},
        "llama-3.2-1b": {"model_type": "llama", "attention_bias": False, "head_dim": 64, "hidden_act": "silu",
                         "hidden_size": 2048, "intermediate_size": 8192, "max_position_embeddings": 131072,
                         "mlp_bias": False, "num_attention_heads": 32, "num_hidden_layers": 16,
                         "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
                         "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                                          "original_max_position_embeddings": 8192, "rope_type": "llama3"},
                         "rope_theta": 500000.0, "tie_word_embeddings": True, "vocab_size": 128256},
        "qwen3-0.6b": {"model_type": "qwen3", "attention_bias": False, "head_dim": 128, "hidden_act": "silu",
                       "hidden_size": 1024, "intermediate_size": 3072, "max_position_embeddings": 40960,
                       "max_window_layers": 28, "num_attention_heads": 16, "num_hidden_layers": 28,
                       "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000,
                       "sliding_window": None, "tie_word_embeddings": True, "use_sliding_window": False,
                       "vocab_size": 151936},
        "pythia-70m": {"model_type": "gpt_neox", "hidden_act": "gelu", "hidden_size": 512, "intermediate_size": 2048,
                       "layer_norm_eps": 1e-05, "max_position_embeddings": 2048, "num_attention_heads": 8,
                       "num_hidden_layers": 6, "rotary_emb_base": 10000, "rotary_pct": 0.25,
                       "tie_word_embeddings": False, "use_parallel_residual": True, "vocab_size": 50304},
        "gemma-3-270m": {"model_type": "gemma3_text", "attention_bias": False, "attn_logit_softcapping": None,
                         "final_logit_softcapping": None, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
                         "hidden_size": 640, "intermediate_size": 2048, "max_position_embeddings": 32768,
                         "num_attention_heads": 4, "num_hidden_layers": 18, "num_key_value_heads": 1,
                         "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000.0,
                         "rope_scaling": None, "rope_theta": 1000000.0, "sliding_window": 512,
                         "sliding_window_pattern": 6, "use_bidirectional_attention": False, "vocab_size": 262144},
    }[name]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "parameters"),
    [  # as their authors count them
        ("gpt2", 124_439_808),
        ("llama-3.2-1b", 1_235_814_400),
        ("qwen3-0.6b", 596_049_920),
        ("pythia-70m", 70_426_624),
        ("gemma-3-270m", 268_098_176),
    ],
)
def test_published_models_have_as_many_parameters_as_published(name: str, parameters: int):
    hf_config = published(name)
    config = FAMILIES[hf_config["model_type"]].read(hf_config)
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in GPT(config).parameters()) == parameters


def test_what_older_configs_say_is_understood():
    gemma = FAMILIES["gemma3_text"].read(published("gemma-3-270m"))
    assert (gemma.rope_theta, gemma.rope_local_theta, gemma.attention_window) == (1e6, 1e4, 512)
    assert [gemma.window(layer) is None for layer in range(7)] == [False] * 5 + [True, False]
    llama = FAMILIES["llama"].read(published("llama-3.2-1b"))
    assert llama.rope_scaling.kind == "llama3" and llama.rope_scaling.original_context == 8192
    assert FAMILIES["gpt_neox"].read(published("pythia-70m")).rotary_dim == 16


@pytest.mark.parametrize(
    ("model_type", "change", "words"),
    [
        ("llama", {"hidden_act": "relu"}, ("LlamaForCausalLM", "hidden_act='relu'", "silu")),
        ("llama", {"hidden_size": None}, ("hidden_size",)),
        ("llama", {"hidden_size": "64"}, ("hidden_size='64'", "a whole number")),
        ("llama", {"num_hidden_layers": 0}, ("num_hidden_layers=0",)),
        ("llama", {"rms_norm_eps": "small"}, ("rms_norm_eps='small'", "a number")),
        ("llama", {"rms_norm_eps": -1.0}, ("norm_eps", "greater than 0")),
        ("llama", {"num_key_value_heads": 3}, ("n_kv_head=3",)),
        ("llama", {"tie_word_embeddings": "yes"}, ("tie_word_embeddings='yes'", "true or false")),
        ("llama", {"rope_parameters": {"rope_type": "longrope"}}, ("rope_type='longrope'", "yarn")),
        ("llama", {"rope_parameters": {"rope_type": "llama3", "factor": 2}}, ("low_freq_factor",)),
        ("llama", {"rope_parameters": 3}, ("rope_parameters=3", "an object")),
        ("llama", {"rope_scaling": {"type": "yarn", "factor": 2, "truncate": False}}, ("truncate=False",)),
        ("llama", {"partial_rotary_factor": 0.5}, ("partial_rotary_factor=0.5",)),
        ("qwen3", {"layer_types": ["full_attention"]}, ("layer_types", "1 entries for 2 layers")),
        ("qwen3", {"layer_types": ["full_attention", "linear_attention"]}, ("linear_attention",)),
        ("qwen3", {"layer_types": "full"}, ("layer_types='full'", "a list")),
        ("olmo", {"clip_qkv": 8.0}, ("clip_qkv=8.0", "no option")),
        ("exaone4", {"sliding_window": 4}, ("sliding_window=4",)),
        ("gemma2", {"use_bidirectional_attention": True}, ("use_bidirectional_attention",)),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, ("scale_attn_by_inverse_layer_idx",)),
        ("gpt2", {"n_embd": 33}, ("n_embd=33",)),
        ("stablelm", {"use_parallel_residual": True}, ("use_parallel_residual",)),
        ("stablelm", {"qk_layernorm": True}, ("qk_layernorm",)),
    ],
)
def test_what_cannot_be_read_is_one_sentence_with_its_name(model_type: str, change: dict[str, Any], words: tuple):
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 8, "num_attention_heads": 2,
                             "num_key_value_heads": 2, "num_hidden_layers": 2, "vocab_size": 9,
                             "max_position_embeddings": 16}  # fmt: skip
    if model_type == "exaone4":
        sizes["sliding_window"] = None
    family = FAMILIES[model_type]
    family.read(sizes if model_type != "gpt2" else {})
    if change == {"hidden_size": None}:
        family.defaults = {**family.defaults, "hidden_size": None}  # type: ignore[attr-defined, misc]
    try:
        with pytest.raises(RequestError) as caught:
            family.read({**sizes, **change})
    finally:
        vars(family).pop("defaults", None)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"logit_softcap": 15.0}, "model.logit_softcap"),
        ({"norm_place": "post"}, "model.norm_place"),
        ({"speed": {"smear": True}}, "model.speed.smear"),
        ({"embedding_multiplier": 2.0}, "model.embedding_multiplier"),
        ({"norm": "layernorm"}, "model.norm"),
        ({"embedding_size": 8}, "model.embedding_size"),
        ({"partial_rotary_factor": 0.5}, "model.partial_rotary_factor"),
        ({"attention_scale": 1.0}, "model.attention_scale"),
        ({"mlp": "relu2"}, "model.mlp"),
        ({"rope_scaling": {"kind": "ntk", "factor": 2.0}}, None),
        ({"attention_window": 16}, None),
        ({"attention_window": 4, "window_pattern": "SSL"}, None),
        ({"attention_scale": 8**-0.5}, None),
        ({"n_kv_head": 1}, None),
    ],
)
def test_what_a_class_cannot_say_is_found_by_reading_what_was_written(changes: dict[str, Any], reason: str | None):
    small = {"n_layer": 3, "n_head": 2, "n_embd": 16, "context_length": 16, "vocab_size": 9}
    config = ModelConfig.model_validate({**small, **changes})
    assert list(unrepresented(FAMILIES["qwen3"], config)) == ([] if reason is None else [reason])
