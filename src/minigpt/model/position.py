"""How the model knows positions: a learned table (GPT-2), or rotary embeddings (Su et al. 2021, RoFormer).

Both kinds offer the same two methods: `add` changes the embeddings, `rotation` gives what `rotate` needs in each layer.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.config import ModelConfig

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


class RotaryPositions(nn.Module):
    """No parameters; each pair of dimensions (i, i + rotary_dim / 2) turns by position * theta^(-2 i / rotary_dim).

    The table is neither a parameter nor a buffer: it is computed in fp32 where it is first needed, so that `.to(dtype)`
    cannot coarsen it, and construction on the meta device followed by `to_empty` needs no further step.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.length, self.dim, self.theta = config.context_length, config.rotary_dim, config.rope_theta
        self.table: Tensor | None = None

    def add(self, x: Tensor, positions: Tensor) -> Tensor:
        """The embeddings as they are."""
        return x

    def rotation(self, positions: Tensor, dtype: torch.dtype) -> Rotation:
        """cos and signed sin at positions (B or 1, T)."""
        if self.table is None or self.table.device != positions.device:
            self.table = rotary_table(self.length, self.dim, self.theta, positions.device)
        cos, sin = self.table[positions].to(dtype).unsqueeze(2).chunk(2, dim=-1)
        return cos, sin


def rotary_table(length: int, dim: int, theta: float, device: torch.device) -> Tensor:
    """(length, 2 * dim) fp32: cos of each dimension's angle, then sin with the first half negated (see `rotate`)."""
    with torch.inference_mode(False), torch.no_grad():  # a table made while generating must also serve training
        frequency = theta ** -(torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim)  # (dim / 2,)
        angle = torch.arange(length, dtype=torch.float32, device=device)[:, None] * frequency  # (length, dim / 2)
        cos, sin = angle.cos(), angle.sin()
        return torch.cat([cos, cos, -sin, sin], dim=-1)


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
