"""Scaled rotary frequencies against transformers', and the properties that the papers promise."""

import math
import random
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from minigpt.config import ModelConfig
from minigpt.config.architecture import RopeScalingConfig
from minigpt.model.position import RotaryPositions, rotary_frequencies

CPU = torch.device("cpu")


def theirs(kind: str, dim: int, theta: float, scaling: RopeScalingConfig) -> tuple[Tensor, float]:
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters: dict[str, Any] = {"rope_type": kind, "rope_theta": theta, "factor": scaling.factor}
    if kind in ("yarn", "llama3"):
        parameters["original_max_position_embeddings"] = scaling.original_context
    names = {"yarn": ("beta_fast", "beta_slow", "attention_factor"), "llama3": ("low_freq_factor", "high_freq_factor")}
    parameters |= {name: getattr(scaling, name) for name in names.get(kind, ())}
    config = transformers.LlamaConfig(
        hidden_size=dim, num_attention_heads=1, head_dim=dim, max_position_embeddings=2**20, rope_parameters=parameters
    )
    return ROPE_INIT_FUNCTIONS[kind](config, CPU)


@pytest.mark.parametrize("kind", ["linear", "yarn", "llama3"])
def test_frequencies_and_magnitude_are_those_of_transformers(kind: str) -> None:
    draw = random.Random(kind)
    for _ in range(40):
        dim, theta = 2 * draw.randint(1, 64), draw.choice([10.0, 10000.0, 500000.0])
        beta_slow, low = draw.uniform(0.5, 4), draw.uniform(0.5, 3)
        scaling = RopeScalingConfig(
            kind=kind, factor=draw.choice([1.0, 2.0, 8.0, 40.0]), original_context=draw.choice([16, 100, 4096, 8192]),
            beta_slow=beta_slow, beta_fast=beta_slow + draw.uniform(0.1, 40), low_freq_factor=low,
            high_freq_factor=low + draw.uniform(0.1, 6), attention_factor=draw.choice([None, None, 0.8]),
        )  # fmt: skip
        expected, magnitude = theirs(kind, dim, theta, scaling)
        # fp32 in another order; the difference of near numbers in a ramp costs a digit
        torch.testing.assert_close(rotary_frequencies(dim, theta, CPU, scaling), expected, rtol=1e-5, atol=0)
        assert scaling.magnitude == pytest.approx(magnitude if kind == "yarn" else 1.0)


def test_the_ntk_base_divides_the_slowest_and_leaves_the_fastest() -> None:
    for dim in (2, 4, 64):
        plain = rotary_frequencies(dim, 10000.0, CPU, RopeScalingConfig())
        scaled = rotary_frequencies(dim, 10000.0, CPU, RopeScalingConfig(kind="ntk", factor=8.0))
        assert scaled[0] == plain[0] == 1
        if dim > 2:
            torch.testing.assert_close(scaled[-1], plain[-1] / 8, rtol=1e-5, atol=0)
            assert ((plain / scaled).diff() > 0).all()  # the slower, the more


def test_the_table_turns_by_the_scaled_frequencies() -> None:
    scaling = {"kind": "yarn", "factor": 4.0, "original_context": 8}
    config = ModelConfig(n_head=1, n_embd=16, context_length=32, rope_scaling=scaling)
    cos, sin = RotaryPositions(config).rotation(torch.arange(32)[None], torch.float32)
    frequency = rotary_frequencies(16, 10000.0, CPU, config.rope_scaling).double()
    angle = torch.arange(32)[:, None] * frequency
    magnitude = 0.1 * math.log(4.0) + 1
    torch.testing.assert_close(cos[0, :, 0, :8].double(), magnitude * angle.cos(), atol=1e-5, rtol=0)
    torch.testing.assert_close(sin[0, :, 0, 8:].double(), magnitude * angle.sin(), atol=1e-5, rtol=0)


def test_the_local_base_is_never_scaled() -> None:
    scaling = {"kind": "linear", "factor": 4.0}
    options = {"n_head": 1, "n_embd": 16, "context_length": 32, "attention_window": 4}
    at = torch.arange(32)[None]
    both = RotaryPositions(ModelConfig(**options, rope_theta=900.0, rope_local_theta=50.0, rope_scaling=scaling))
    local = both.local_rotation(at, torch.float32)
    assert local is not None
    plain = RotaryPositions(ModelConfig(**options, rope_theta=50.0))
    for mine, expected in zip(local, plain.rotation(at, torch.float32), strict=True):
        assert torch.equal(mine, expected)
    assert plain.local_rotation(at, torch.float32) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rope_scaling": {"kind": "yarn", "factor": 2.0}}, "needs model.rope_scaling.original_context"),
        ({"rope_scaling": {"kind": "llama3", "factor": 2.0}}, "needs model.rope_scaling.original_context"),
        ({"rope_scaling": {"kind": "linear", "factor": 0.5}}, "greater than or equal to 1"),
        ({"rope_scaling": {"kind": "yarn", "original_context": 8, "beta_fast": 1.0}}, "beta_slow=1.0 must be below"),
        (
            {"rope_scaling": {"kind": "llama3", "original_context": 8, "low_freq_factor": 4.0}},
            "low_freq_factor=4.0 must be below",
        ),
        (
            {"rope_scaling": {"kind": "yarn", "original_context": 8}, "rope_theta": 1.0},
            "model.rope_theta=1.0 lets all dimensions turn alike",
        ),
        ({"attention": "latent", "position": "learned"}, "needs model.position=rope"),
        ({"attention": "latent", "latent": {"rope_dim": 3}}, "model.latent.rope_dim=3 must be even"),
        ({"attention": "latent", "speed": {"value_embeddings": "all"}}, "use model.attention=standard"),
        ({"window_pattern": "SX"}, "window_pattern"),
        ({"attention_window": 0}, "attention_window"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ModelConfig(**options)
