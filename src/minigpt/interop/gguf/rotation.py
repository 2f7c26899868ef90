"""Rotary positions in GGUF's keys, and the table that divides their frequencies.

llama.cpp turns pair i of n dimensions by position * base^(-2i/n) / table[i], and knows linear and YaRN scaling. The
table (the tensor `rope_freqs`) says two things more: the frequencies of Llama 3, and, with very large numbers, pairs
that do not turn. The base of a part of r dimensions of each head is then base^(n/r), so that its pairs turn as they
should.
"""

import math
from collections.abc import Mapping
from typing import Any

from minigpt.config import ModelConfig, RequestError
from minigpt.config.architecture import RopeScalingConfig

TABLE = "rope_freqs"
"""Key under which the table is among the others here; in a file it is a tensor."""
STILL = 1e30
"""Divisor of the frequency of pairs that do not turn."""
OWN = "minigpt.rope_scaling."
"""Keys that llama.cpp does not read: what a table of Llama 3 was made from."""
LLAMA3 = ("factor", "original_context", "low_freq_factor", "high_freq_factor")
YARN_BETAS = (32.0, 1.0)  # fast and slow: llama.cpp's, which most of its architectures read no keys for


def write(config: ModelConfig, *, partial: bool, tables: bool, scaling: bool) -> dict[str, Any]:
    """The keys of a model's rotation, as far as an architecture has them.

    partial: whether it lets a part of each head rotate. tables: whether it has the table.
    """
    head, turning, scaled = config.head_size, config.rotary_dim, config.rope_scaling
    keys: dict[str, Any] = {"rope.freq_base": config.rope_theta}
    keys["rope.dimension_count"] = turning if partial else head
    factors = _llama3_factors(config) if scaled.kind == "llama3" and tables else [1.0] * (turning // 2)
    if 0 < turning < head and not partial and tables and scaled.kind != "yarn" and head % 2 == 0:
        keys["rope.freq_base"] = config.rope_theta ** (head / turning)
        factors += [STILL] * (head // 2 - turning // 2)
    if any(factor != 1.0 for factor in factors):
        keys[TABLE] = factors
    if scaled.kind == "llama3" and tables:
        keys |= {OWN + name: getattr(scaled, name) for name in LLAMA3}
    if scaled.kind == "linear" and scaling:
        keys |= {"rope.scaling.type": "linear", "rope.scaling.factor": scaled.factor}
    if scaled.kind == "yarn" and scaling and (scaled.beta_fast, scaled.beta_slow) == YARN_BETAS:
        keys |= {"rope.scaling.type": "yarn", "rope.scaling.factor": scaled.factor}
        keys["rope.scaling.original_context_length"] = scaled.original_context
        keys["rope.scaling.attn_factor"] = scaled.magnitude / (0.1 * math.log(scaled.factor) + 1.0)
    return keys


def read(keys: Mapping[str, Any], head: int, *, partial: bool) -> dict[str, Any]:
    """The options of the keys, for heads of `head` dimensions. RequestError: no option represents them."""
    turning = keys.get("rope.dimension_count", head)
    theta, table = keys.get("rope.freq_base", 10000.0), list(keys.get(TABLE, []))
    still = sum(factor >= STILL / 10 for factor in table)
    if still:
        turning = head - 2 * still
        theta **= turning / head
    part = turning / head
    if int(head * part) != turning:  # rounded down
        part = math.nextafter(part, 1.0)
    options: dict[str, Any] = {"rope_theta": theta, "partial_rotary_factor": part}
    kind, factor = keys.get("rope.scaling.type", "none"), keys.get("rope.scaling.factor", 1.0)
    if kind == "linear" and factor not in (0, 1):
        options["rope_scaling"] = {"kind": "linear", "factor": factor}
    elif kind == "yarn":
        magnitude = (0.1 * math.log(factor) + 1.0) * keys.get("rope.scaling.attn_factor", 1.0)
        original = keys.get("rope.scaling.original_context_length")
        options["rope_scaling"] = {"kind": "yarn", "factor": factor, "original_context": original}
        options["rope_scaling"]["attention_factor"] = magnitude
    elif kind not in ("none", "linear"):
        raise RequestError(f"the GGUF file has rope.scaling.type={kind}, which minigpt has no option for")
    if any(factor != 1.0 for factor in table[: len(table) - still]):
        options["rope_scaling"] = _read_llama3(keys)
    return options


def _read_llama3(keys: Mapping[str, Any]) -> dict[str, Any]:
    if any(OWN + name not in keys for name in LLAMA3):
        raise RequestError("the GGUF file has a table of rotary frequencies (rope_freqs) that minigpt did not write")
    return {"kind": "llama3", **{name: keys[OWN + name] for name in LLAMA3}}


def _llama3_factors(config: ModelConfig) -> list[float]:
    """What Llama 3.1 divides each frequency by: 1 for short wavelengths, `factor` for long ones, smooth between."""
    scaled: RopeScalingConfig = config.rope_scaling
    original = scaled.original_context or config.context_length
    low, high = original / scaled.low_freq_factor, original / scaled.high_freq_factor
    factors = []
    for pair in range(config.rotary_dim // 2):
        wavelength = 2 * math.pi * config.rope_theta ** (2 * pair / config.rotary_dim)
        if wavelength < high:
            factors.append(1.0)
        elif wavelength > low:
            factors.append(scaled.factor)
        else:
            smooth = (original / wavelength - scaled.low_freq_factor) / (
                scaled.high_freq_factor - scaled.low_freq_factor
            )
            factors.append(1 / ((1 - smooth) / scaled.factor + smooth))
    return factors
