"""Parts of the network that have options of their own: rotary scaling, latent attention, experts, the speed family."""

import math
from typing import Literal

from pydantic import Field

from minigpt.config.base import Section

SMEAR_WIDTH = 24
"""Dimensions of an embedding that decide how much of the previous one is added (speed.smear)."""
VALUE_GATE_WIDTH = 32
"""Dimensions of a layer's input that decide how much of a value embedding is added (speed.value_embeddings)."""


class RopeScalingConfig(Section):
    """How rotary positions reach beyond the context that they were trained on."""

    kind: Literal["none", "linear", "ntk", "yarn", "llama3"] = "none"
    """none; linear (Chen et al. 2023, position interpolation); ntk (a larger base); yarn (Peng et al. 2023); llama3."""
    factor: float = Field(1.0, ge=1)
    """How many times longer the context becomes: `model.context_length` is the longer one."""
    original_context: int | None = Field(None, ge=1)
    """Context length before the extension (yarn, llama3)."""
    beta_fast: float = Field(32.0, gt=0)
    """yarn: dimensions that turn more often than this within the original context keep their frequency."""
    beta_slow: float = Field(1.0, gt=0)
    """yarn: dimensions that turn less often than this are interpolated in full."""
    attention_factor: float | None = Field(None, gt=0)
    """yarn: cos and sin are multiplied by this; null means 0.1 ln(factor) + 1."""
    low_freq_factor: float = Field(1.0, gt=0)
    """llama3: wavelengths above original_context / this are interpolated in full."""
    high_freq_factor: float = Field(4.0, gt=0)
    """llama3: wavelengths below original_context / this stay as they are."""

    @property
    def magnitude(self) -> float:
        """What cos and sin are multiplied by."""
        if self.kind != "yarn":
            return 1.0
        return 0.1 * math.log(self.factor) + 1.0 if self.attention_factor is None else self.attention_factor


class LatentConfig(Section):
    """Multi-head latent attention (DeepSeek-AI 2024, DeepSeek-V2, section 2.1): keys and values from one small vector.

    `model.head_dim` is the width of a head's part without positions; the rotary part comes beside it.
    """

    kv_rank: int = Field(512, ge=1)
    """Width of the vector that keys and values are made from, and that the cache keeps beside the rotary key."""
    q_rank: int | None = Field(None, ge=1)
    """Width of the vector that queries are made from; null makes them from the residual stream directly."""
    rope_dim: int = Field(64, ge=2)
    """Width of the rotary part of each query, and of the one rotary key that all heads share."""
    value_dim: int | None = Field(None, ge=1)
    """Width of a head's values; null means `model.head_dim`."""


class MoEConfig(Section):
    """A mixture of experts in place of the feed-forward layer (Shazeer et al. 2017; Fedus et al. 2021)."""

    n_expert: int = Field(0, ge=0)
    """Number of experts of a layer; 0 means a dense model."""
    n_expert_used: int = Field(2, ge=1)
    """Experts that each token goes to (top-k)."""
    n_inner: int | None = Field(None, ge=1)
    """Width of one expert; null means the dense layer's."""
    n_shared: int = Field(0, ge=0)
    """Shared experts, which every token goes to (Dai et al. 2024, DeepSeekMoE): one layer of n_shared * n_inner."""
    shared_gate: bool = False
    """Multiply the shared experts' output by a sigmoid of the token (Qwen2-MoE)."""
    router: Literal["softmax", "sigmoid"] = "softmax"
    """How scores become weights: softmax over all experts, or each expert's sigmoid (DeepSeek-V3)."""
    normalize: bool = True
    """Let the weights of the chosen experts sum to one."""
    weight_scale: float = Field(1.0, gt=0)
    """The weights are multiplied by this at last."""
    balance: Literal["loss", "bias", "none"] = "loss"
    """What keeps experts equally busy: an auxiliary loss (Fedus 2021) or a bias on the choice (Wang et al. 2024)."""
    balance_weight: float = Field(0.01, ge=0)
    """Weight of the auxiliary loss of each layer, which is 1 when all experts are equally busy (balance=loss)."""
    balance_rate: float = Field(0.001, gt=0)
    """Step of the bias after each optimizer step (balance=bias)."""
    z_loss_weight: float = Field(0.0, ge=0)
    """Weight of the router's z-loss (Zoph et al. 2022, ST-MoE)."""
    first_dense: int = Field(0, ge=0)
    """The first so many layers stay dense."""
    period: int = Field(1, ge=1)
    """After them, only every so many-th layer has experts: the last one of each group."""


class SpeedConfig(Section):
    """What the fastest small-GPT recipes add (modded-nanogpt, nanochat); each works alone."""

    value_embeddings: Literal["none", "alternate", "all"] = "none"
    """Add a gated embedding of the token to the values (Zhou et al. 2024): every second layer to the last, or all."""
    residual_scalars: bool = False
    """Before each block: x becomes r x + z x0, with r (from 1) and z (from 0) trained, x0 the embedding."""
    smear: bool = False
    """Add a gated share of the previous token's embedding to each token's."""
    backout: bool = False
    """Take a trained share (from 0) of the middle layer's output off the last one's."""
