"""The depth dial: what follows from a number of layers, and what is no depth."""

import itertools
import math

import pytest

from minigpt.config import RequestError, config_yaml, is_preset, load_config
from minigpt.config.depth import DEEPEST, SHALLOWEST, depth_of
from minigpt.model.count import count_parameters, flops_per_token

EVERY = range(SHALLOWEST, DEEPEST + 1)


@pytest.mark.parametrize("depth", [2, 3, 4, 7, 12, 13, 20, 32, 64])
def test_the_rules(depth: int) -> None:
    config, notes = load_config(f"d{depth}")
    model, training = config.model, config.training
    assert notes == [] and config.run.name == config.preset == f"d{depth}"
    assert model.n_layer == model.n_head == depth and model.n_embd == 64 * depth and model.head_size == 64
    assert model.n_embd % 32 == model.inner_size % 32 == 0  # exports exactly, quantized too
    model = model.model_copy(update={"vocab_size": config.tokenizer.vocab_size})
    parameters = count_parameters(model)
    assert training.max_steps is not None
    tokens = training.max_steps * training.batch_tokens
    assert tokens / parameters == pytest.approx(20, rel=0.04)  # the rule leaves out norms and the rounding of widths
    head = 6 * model.padded_vocab_size * model.embed_size
    operations = tokens * (flops_per_token(model) - head)
    assert config.optimizer.lr == pytest.approx(0.3118 * operations**-0.125, rel=0.04)
    assert abs(math.log2(training.batch_tokens / (0.2920 * operations**0.3271))) < 0.52
    assert training.batch_tokens % model.context_length == 0
    assert config.schedule.warmup_steps == pytest.approx(0.02 * training.max_steps, abs=1)
    assert model.init_std == pytest.approx(0.02 * math.sqrt(768 / model.n_embd), rel=0.04)  # two digits


def test_the_dial_goes_one_way() -> None:
    configs = [load_config(f"d{depth}")[0] for depth in EVERY]
    for smaller, larger in itertools.pairwise(configs):
        assert larger.optimizer.lr <= smaller.optimizer.lr and larger.model.init_std <= smaller.model.init_std
        assert larger.training.batch_tokens >= smaller.training.batch_tokens


def test_gpt2s_size_has_gpt2s_weights() -> None:
    assert load_config("d12")[0].model.init_std == 0.02


def test_it_is_a_preset_like_any_other(tmp_path) -> None:
    config, notes = load_config("d4", ["model.n_head=2", "training.epochs=2.0"])
    assert config.model.n_head == 2 and notes == ["training.max_steps=3520 is dropped because training.epochs sets the "
                                                  "length of the run"]  # fmt: skip
    (tmp_path / "mine.yaml").write_text("preset: d4\noptimizer: {lr: 0.5}\n")
    config, _ = load_config(tmp_path / "mine.yaml")
    assert config.optimizer.lr == 0.5 and config.model.n_layer == 4 and config.preset == "d4"
    (tmp_path / "again.yaml").write_text(config_yaml(config))
    assert config_yaml(load_config(tmp_path / "again.yaml")[0]) == config_yaml(config)


@pytest.mark.parametrize("name", ["d", "d-4", "d4.5", "d12 ", "D12", "dd", "d１２"])
def test_what_is_no_depth(name: str) -> None:
    assert depth_of(name) is None and not is_preset(name)
    with pytest.raises(RequestError, match=r"is neither a file nor a preset: .*minigpt train --help lists the presets"):
        load_config(name)


@pytest.mark.parametrize("name", ["d0", "d1", "d65", "d04", "d999999999999"])
def test_where_the_dial_ends(name: str) -> None:
    assert depth_of(name) is None and not is_preset(name)
    with pytest.raises(RequestError, match=r"is neither a file nor a preset: the dial goes from d2 to d64$"):
        load_config(name)
    with pytest.raises(RequestError, match=r"is not a preset: the dial goes from d2 to d64$"):
        load_config({"preset": name})
