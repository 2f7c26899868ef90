"""A part of the network: a feed-forward layer with another activation.

    minigpt train examples/model_part.yaml
    minigpt generate runs/model_part --trust-code

The gated layers of today multiply two projections of their input, one of them through an activation: SiLU in SwiGLU,
GELU in GEGLU, ReLU in ReGLU (Shazeer 2020, "GLU Variants Improve Transformer"). This one squares the ReLU, which the
search of So et al. 2021 ("Primer") found to be better in the ungated layer. Try others: it is one line of `forward`.

The file goes into each model folder, so that the model can be given away. Whoever loads it runs your code, so it asks
for --trust-code.
"""

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from minigpt import ModelConfig, Section


class PowerReGLU(nn.Module):
    """down(relu(gate(x)) ** power * up(x))."""

    class Config(Section):
        power: int = Field(2, ge=1)
        """Exponent of the ReLU: 1 is ReGLU."""

    # Beside its options, a part is given the config of the whole network.
    def __init__(self, config: Config, *, model: ModelConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(model.n_embd, model.inner_size, bias=model.has_mlp_bias)
        self.up = nn.Linear(model.n_embd, model.inner_size, bias=model.has_mlp_bias)
        self.down = nn.Linear(model.inner_size, model.n_embd, bias=model.has_mlp_bias)
        self.power, self.dropout = config.power, model.dropout

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, T, C) to (B, T, C)."""
        y = self.down(F.relu(self.gate(x)) ** self.power * self.up(x))
        return F.dropout(y, self.dropout, self.training)
