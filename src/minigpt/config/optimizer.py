"""The optimizer, and what changes over the run: learning rate, batch, row length and window."""

from itertools import pairwise
from typing import Literal, Self

from pydantic import Field, model_validator

from minigpt.config.base import Section


class MuonConfig(Section):
    """Muon (Jordan et al. 2024): matrices move by their momentum made orthogonal, everything else by AdamW."""

    lr: float | None = Field(None, gt=0)
    """Peak learning rate of the matrices; null means optimizer.lr."""
    momentum: float = Field(0.95, ge=0, lt=1)
    """Decay rate of the momentum."""
    momentum_warmup_steps: int = Field(0, ge=0)
    """Steps over which the momentum rises linearly from 0.85."""
    nesterov: bool = True
    """Look ahead: orthogonalise the gradient mixed with the momentum, not the momentum itself."""
    method: Literal["newton-schulz", "polar-express"] = "polar-express"
    """Iteration that makes a matrix orthogonal: Jordan's quintic, or Polar Express (Amsel et al. 2025)."""
    steps: int = Field(5, ge=1, le=20)
    """Steps of that iteration."""
    scale: Literal["rms", "spectral"] = "rms"
    """Size of the update: as AdamW's, 0.2 sqrt(max(rows, columns)) (Liu et al. 2025), or sqrt(max(1, rows/columns))."""
    normalise: bool = False
    """NorMuon (Li et al. 2025): divide each neuron's update by its running root mean square."""
    beta2: float = Field(0.95, ge=0, lt=1)
    """Decay rate of NorMuon's second moment."""
    cautious: bool = False
    """Cautious weight decay (Chen et al. 2025): only where decay and update agree in sign."""


class GroupConfig(Section):
    """Settings of the parameters whose names match."""

    match: str = Field(min_length=1)
    """Shell pattern of parameter names, such as embed.weight, blocks.*.attention.* or *norm*."""
    optimizer: Literal["adamw", "muon"] | None = None
    """Which optimizer moves them, with optimizer.name=muon; null means the usual one."""
    lr_scale: float = Field(1.0, ge=0)
    """Times the learning rate."""
    weight_decay: float | None = Field(None, ge=0)
    """Instead of the usual weight decay."""
    betas: list[float] | None = Field(None, min_length=2, max_length=2)
    """Instead of optimizer.betas."""


class OptimizerConfig(Section):
    """The optimizer."""

    name: Literal["adamw", "muon"] = "adamw"
    """AdamW (Loshchilov and Hutter 2019), or Muon on the matrices of the blocks and AdamW on the rest."""
    lr: float = Field(6e-4, gt=0)
    """Peak learning rate."""
    betas: list[float] = Field([0.9, 0.95], min_length=2, max_length=2)
    """Decay rates of AdamW's two moments."""
    eps: float = Field(1e-8, gt=0)
    """Added to the denominator of AdamW's update."""
    weight_decay: float = Field(0.1, ge=0)
    """Decoupled weight decay, on matrices only (not on biases and norms)."""
    muon: MuonConfig = MuonConfig()
    """Options of Muon."""
    groups: list[GroupConfig] = Field([])
    """Other settings for some parameters; of several that match, the first counts."""
    ema_decay: float | None = Field(None, gt=0, lt=1)
    """Keep an exponential moving average of the weights with this decay, and evaluate and export that; null: no."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        groups = [(f"optimizer.groups.{i}.betas", group.betas) for i, group in enumerate(self.groups)]
        for where, betas in [("optimizer.betas", self.betas), *groups]:
            if betas is not None and not all(0 <= beta < 1 for beta in betas):
                raise ValueError(f"{where}={betas} must lie in [0, 1)")
        if self.name != "muon" and any(group.optimizer == "muon" for group in self.groups):
            raise ValueError(f"optimizer.groups asks for Muon, which needs optimizer.name=muon and not {self.name}")
        return self


Steps = list[list[int]]
"""What holds from when: [[0, 8], [8750, 16]] is 8 from the start and 16 from 8,750 on."""


class ScheduleConfig(Section):
    """What changes over the run."""

    kind: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    """Shape after the warm-up: cosine or linear decay, warm-up-stable-decay (wsd), or constant."""
    warmup_steps: int = Field(0, ge=0)
    """Steps over which the learning rate rises linearly from near zero to its peak."""
    min_lr: float = Field(0.0, ge=0)
    """Learning rate at the end of the run."""
    decay_fraction: float = Field(0.2, gt=0, le=1)
    """Share of the run over which wsd decays linearly to `min_lr`."""
    unit: Literal["steps", "tokens"] = "steps"
    """What the first numbers of the three lists below count: optimizer steps made, or tokens trained on."""
    accumulation: Steps | None = None
    """Micro-batches of a step, all processes together, as [[0, 8], [8750, 16]]; null: training.batch_tokens always."""
    context_length: Steps | None = None
    """Tokens in a row over the run, as [[0, 256], [1000, 1024]]: rows are cut into shorter ones, the tokens stay."""
    window: Steps | None = None
    """model.attention_window over the run, as [[0, 128], [1000, 512]]."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        for key in ("accumulation", "context_length", "window"):
            steps: Steps | None = getattr(self, key)
            if steps is None:
                continue
            if not steps or any(len(pair) != 2 for pair in steps):
                raise ValueError(f"schedule.{key}={steps} must be pairs [from, value], as [[0, 8], [8750, 16]]")
            if steps[0][0] != 0 or any(value < 1 for _, value in steps):
                raise ValueError(f"schedule.{key}={steps} must begin at 0, with values of at least 1")
            if any(later[0] <= earlier[0] for earlier, later in pairwise(steps)):
                raise ValueError(f"schedule.{key}={steps} must be in the order of the run")
        return self
