"""Families with experts beside transformers: in, out and back."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from random_hf import CONTEXT, logits, make, save, some_ids
from random_moe import KINDS

from minigpt.config import GenerationConfig, ModelConfig, RequestError
from minigpt.inference import generate
from minigpt.interop.huggingface.families import FAMILIES
from minigpt.interop.huggingface.family import unrepresented
from minigpt.interop.huggingface.reading import build_model, read_config
from minigpt.interop.meaning import differences
from minigpt.interop.tensors import to_ours, to_theirs
from minigpt.model import GPT

TOLERANCE = 1e-4  # of the largest logit or 1: fp32 sums in another order


def theirs(model_type: str, seed: int) -> Any:
    """A random model whose experts are chosen by a bias too, where there is one."""
    model = make(model_type, KINDS[model_type](random.Random(seed)), seed)
    model.set_experts_implementation("eager")  # the others want widths that are multiples of four
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.normal_(0.0, 0.1)
    return model


def check(model_type: str, seed: int, folder: Path) -> tuple[Any, GPT]:
    network = theirs(model_type, seed)
    save(network, folder)
    ours = build_model(folder)
    ids = some_ids(seed)
    expected = logits(network, ids)
    with torch.no_grad():
        got = ours(ids)
    assert (got - expected).abs().max() <= TOLERANCE * max(1.0, float(expected.abs().max())), (model_type, seed)
    family = FAMILIES[model_type]
    assert not unrepresented(family, ours.config), (model_type, seed)
    rules = family.rules(ours.config)
    state = ours.state_dict()
    back = dict(to_ours(rules, dict(to_theirs(rules, state)).__getitem__))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state), "ours to theirs to ours, to the bit"
    return network, ours


@pytest.mark.parametrize("model_type", KINDS)
def test_a_random_model_of_each_family(model_type: str, tmp_path: Path):
    check(model_type, 1, tmp_path / "theirs")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 26))
@pytest.mark.parametrize("model_type", KINDS)
def test_random_models_of_each_family_and_their_greedy_text(model_type: str, seed: int, tmp_path: Path):
    network, ours = check(model_type, seed, tmp_path / "theirs")
    prompt, new = some_ids(seed, rows=1, length=7), CONTEXT - 8
    # Without its cache, which is wrong for a window of one token, and told that no token is padding.
    asked = {"attention_mask": torch.ones_like(prompt), "use_cache": False, "do_sample": False, "eos_token_id": None}
    wanted = network.generate(prompt, max_new_tokens=new, pad_token_id=0, **asked)[0, 7:].tolist()
    config = GenerationConfig(max_new_tokens=new, temperature=0)
    assert generate(ours, None, [prompt[0].tolist()], config)[0].ids == wanted


@pytest.mark.parametrize(
    "model_type, change, named",
    [
        ("deepseek_v3", {"n_group": 4, "topk_group": 2}, "n_group=4"),
        ("deepseek_v3", {"rms_norm_eps": 1e-5}, "rms_norm_eps=1e-05"),
        ("deepseek_v3", {"rope_interleave": False}, "rope_interleave=False"),
        ("deepseek_v3", {"n_routed_experts": None}, "n_routed_experts"),
        ("deepseek_v2", {"topk_method": "group_limited_greedy"}, "topk_method='group_limited_greedy'"),
        ("qwen2_moe", {"shared_expert_intermediate_size": 7, "moe_intermediate_size": 2}, "moe_intermediate_size=2"),
        ("qwen3_moe", {"num_hidden_layers": 4, "mlp_only_layers": [1], "decoder_sparse_step": 1}, "mlp_only_layers"),
        ("qwen3_moe", {"mlp_only_layers": ["x"]}, "mlp_only_layers=['x']"),
        ("olmoe", {"clip_qkv": 8.0}, "clip_qkv=8.0"),
        ("mixtral", {"num_local_experts": 2, "num_experts_per_tok": 3}, "n_expert_used=3"),
    ],
)
def test_what_cannot_be_read_is_named(model_type: str, change: dict[str, Any], named: str):
    fields = KINDS[model_type](random.Random(1)) | change
    with pytest.raises(RequestError) as error:
        FAMILIES[model_type].read(fields)
    assert named in str(error.value) and FAMILIES[model_type].architecture in str(error.value)


def test_layers_of_experts_are_compared_not_how_they_are_said(tmp_path: Path):
    sizes = {"n_layer": 4, "n_head": 2, "n_embd": 16, "vocab_size": 61}
    one = ModelConfig(**sizes, moe={"n_expert": 4, "first_dense": 1, "period": 2})
    other = ModelConfig(**sizes, moe={"n_expert": 4, "first_dense": 0, "period": 3})
    assert not differences(one, other)
    assert "model.moe.first_dense and model.moe.period" in differences(
        one, ModelConfig(**sizes, moe={"n_expert": 4, "first_dense": 1, "period": 1})
    )


def test_names_of_transformers_5_and_4(tmp_path: Path):
    """transformers 5 saves `num_local_experts` where 4 saved `num_experts`."""
    folder = save(theirs("qwen3_moe", 4), tmp_path / "theirs")
    wanted = read_config(folder)
    text = (folder / "config.json").read_text()
    assert '"num_local_experts"' in text or '"num_experts"' in text
    (folder / "config.json").write_text(text.replace('"num_local_experts"', '"num_experts"'))
    assert read_config(folder) == wanted
