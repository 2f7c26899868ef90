"""How the model knows positions: a learned table (GPT-2), or rotary embeddings (Su et al. 2021, RoFormer).

Both kinds offer the same methods: `add` changes the embeddings, `rotation` gives what `rotate` needs in each layer, and
`local_rotation` what it needs instead in layers with a window, if that is something else.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.config import ModelConfig
from minigpt.config.architecture import RopeScalingConfig

Rotation = tuple[Tensor, Tensor]
"""cos and signed sin, each (B or 1, T, 1, rotary_dim), in the dtype of the queries and keys."""


class LearnedPositions(nn.Module):
    """One trained vector for each position up to `context_length`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(config.context_length, config.n_embd))

    def add(self, x: Tensor, positions: Tensor) -> Tensor:
        """x: (B, T, C) plus the vectors of positions (B or 1, T)."""
        return x + F.embedding(positions, self.weight)

    def rotation(self, positions: Tensor, dtype: torch.dtype) -> None:
        """Nothing rotates."""

    def local_rotation(self, positions: Tensor, dtype: torch.dtype) -> None:
        """Nor here."""


class RotaryPositions(nn.Module):
    """No parameters; each pair of dimensions (i, i + rotary_dim / 2) turns by position * frequency i (see below).

    The tables are neither parameters nor buffers: they are computed in fp32 where they are first needed, so that
    `.to(dtype)` cannot coarsen them, and construction on the meta device followed by `to_empty` needs no further step.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.length, self.dim, self.theta = config.context_length, config.rotary_dim, config.rope_theta
        self.scaling = config.rope_scaling
        self.local_theta = config.rope_local_theta
        self.table: Tensor | None = None
        self.local_table: Tensor | None = None

    def add(self, x: Tensor, positions: Tensor) -> Tensor:
        """The embeddings as they are."""
        return x

    def rotation(self, positions: Tensor, dtype: torch.dtype) -> Rotation:
        """cos and signed sin at positions (B or 1, T)."""
        if self.table is None or self.table.device != positions.device:
            self.table = rotary_table(self.length, self.dim, self.theta, positions.device, self.scaling)
        return _looked_up(self.table, positions, dtype)

    def local_rotation(self, positions: Tensor, dtype: torch.dtype) -> Rotation | None:
        """The same in layers with a window, where `rope_local_theta` makes it another one: without scaling."""
        if self.local_theta is None:
            return None
        if self.local_table is None or self.local_table.device != positions.device:
            self.local_table = rotary_table(self.length, self.dim, self.local_theta, positions.device)
        return _looked_up(self.local_table, positions, dtype)


def _looked_up(table: Tensor, positions: Tensor, dtype: torch.dtype) -> Rotation:
    cos, sin = table[positions].to(dtype).unsqueeze(2).chunk(2, dim=-1)
    return cos, sin


def rotary_table(
    length: int, dim: int, theta: float, device: torch.device, scaling: RopeScalingConfig | None = None
) -> Tensor:
    """(length, 2 * dim) fp32: cos of each dimension's angle, then sin with the first half negated (see `rotate`)."""
    scaling = scaling or RopeScalingConfig()
    with torch.inference_mode(False), torch.no_grad():  # a table made while generating must also serve training
        frequency = rotary_frequencies(dim, theta, device, scaling)  # (dim / 2,)
        angle = torch.arange(length, dtype=torch.float32, device=device)[:, None] * frequency  # (length, dim / 2)
        cos, sin = angle.cos(), angle.sin()
        table = torch.cat([cos, cos, -sin, sin], dim=-1)
        return table if scaling.magnitude == 1 else table * scaling.magnitude


def rotary_frequencies(dim: int, theta: float, device: torch.device, scaling: RopeScalingConfig) -> Tensor:
    """(dim / 2,) fp32 radians a position: theta^(-2 i / dim), changed so as to reach a context `factor` times as long.

    linear: all divided by the factor (Chen et al. 2023, arXiv:2306.15595).
    ntk: a base larger by factor^(dim / (dim - 2)), which divides the slowest by the factor and leaves the fastest
        (bloc97 2023; Peng et al. 2023, arXiv:2309.00071, definition 1).
    yarn: those that turn less than `beta_slow` times in the original context are divided, those that turn more than
        `beta_fast` times are left, with a straight ramp over the dimensions between (Peng et al. 2023, section 3.2).
    llama3: those with a wavelength above original / `low_freq_factor` are divided, those below original /
        `high_freq_factor` are left, blended between (Llama 3.1's reference code; Grattafiori et al. 2024).
    """
    if scaling.kind == "ntk" and dim > 2:  # a single pair is the fastest
        theta *= scaling.factor ** (dim / (dim - 2))
    frequency = theta ** -(torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim)
    if scaling.kind == "linear":
        return frequency / scaling.factor
    if scaling.kind == "yarn":
        keep = _yarn_share(dim, theta, device, scaling)
    elif scaling.kind == "llama3":
        keep = _llama3_share(frequency, scaling)
    else:
        return frequency
    return frequency * keep + frequency / scaling.factor * (1 - keep)


def _yarn_share(dim: int, theta: float, device: torch.device, scaling: RopeScalingConfig) -> Tensor:
    """(dim / 2,) how much of each frequency stays: 1, a ramp, 0. The ramp's ends are whole dimensions."""

    def dimension(turns: float) -> float:
        """The dimension pair that turns so many times within the original context."""
        assert scaling.original_context is not None
        return dim * math.log(scaling.original_context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(dimension(scaling.beta_fast)), 0)
    high = min(math.ceil(dimension(scaling.beta_slow)), dim - 1)
    width = high - low or 0.001  # a step
    return 1 - ((torch.arange(dim // 2, dtype=torch.float32, device=device) - low) / width).clamp(0, 1)


def _llama3_share(frequency: Tensor, scaling: RopeScalingConfig) -> Tensor:
    """(dim / 2,) how much of each frequency stays."""
    assert scaling.original_context is not None
    turns = scaling.original_context * frequency / (2 * math.pi)  # within the original context
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    return ((turns - low) / (high - low)).clamp(0, 1)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn the first rotary_dim dimensions of each head ("rotate half": the layout of Hugging Face's Llama, GPT-NeoX).

    Args:
        x: (B, T, heads, head_dim).
        rotation: from `RotaryPositions.rotation`.

    Returns:
        The same shape. With x = (a, b) in halves this is (a cos - b sin, b cos + a sin): rolling by half the width
        swaps the halves and the sign is in the table, which takes fewer kernels than negating and joining.
    """
    cos, sin = rotation
    dim = cos.size(-1)
    turning = x[..., :dim]
    turned = torch.addcmul(turning * cos, turning.roll(dim // 2, dims=-1), sin)
    return turned if dim == x.size(-1) else torch.cat([turned, x[..., dim:]], dim=-1)


POSITIONS: dict[str, type[LearnedPositions] | type[RotaryPositions]] = {
    "learned": LearnedPositions,
    "rope": RotaryPositions,
}


def build_positions(config: ModelConfig) -> LearnedPositions | RotaryPositions:
    """The kind of positions that `config.position` names."""
    return POSITIONS[config.position](config)
