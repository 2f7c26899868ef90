"""The network: sizes and the choice of its parts. The defaults are the family that Hugging Face calls Qwen3."""

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from minigpt.config.architecture import LatentConfig, MoEConfig, RopeScalingConfig, SpeedConfig
from minigpt.config.base import Section
from minigpt.config.extension import Extension

GATED = ("swiglu", "geglu", "geglu_tanh")
LARGEST_NTK = 1_000_000
"""Largest factor of rope_scaling.kind=ntk: a power of it multiplies the base, which must stay a number."""


class ModelConfig(Section):
    """Architecture of the network."""

    n_layer: int = Field(12, ge=1, le=10_000)
    """Number of transformer blocks."""
    n_head: int = Field(12, ge=1)
    """Number of attention heads."""
    n_kv_head: int | None = Field(None, ge=1)
    """Number of key/value heads (grouped-query attention); null means as many as `n_head`."""
    n_embd: int = Field(768, ge=1)
    """Width of the residual stream."""
    head_dim: int | None = Field(None, ge=1)
    """Width of one attention head; null means `n_embd / n_head`."""
    n_inner: int | None = Field(None, ge=1)
    """Width of the feed-forward layer; null means 4 x `n_embd`, or 8/3 of it (up to a multiple of 32) if gated."""
    context_length: int = Field(1024, ge=1)
    """Number of tokens that the model sees at once."""
    vocab_size: int | None = Field(None, ge=1)
    """Number of token ids; null means the tokenizer's."""
    vocab_multiple: int = Field(1, ge=1)
    """Embedding rows are padded to a multiple of this, for speed (128 turns 50,257 into 50,304)."""
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    """Kind of normalisation."""
    norm_eps: float = Field(1e-6, gt=0)
    """Added to the variance inside each normalisation."""
    norm_weight: bool = True
    """Whether normalisations (of queries and keys too) have trained weights."""
    norm_place: Literal["pre", "post", "sandwich"] = "pre"
    """Normalise what a sub-layer reads (GPT-2), what it adds to the residual stream (OLMo 2), or both (Gemma 2)."""
    parallel_residual: bool = False
    """Attention and feed-forward layer read the same residual stream (GPT-NeoX), not one after the other."""
    embedding_norm: bool = False
    """Normalise the embeddings before the first block."""
    position: Literal["rope", "learned"] = "rope"
    """How the model knows positions: rotary embeddings or a learned table."""
    rope_theta: float = Field(10000.0, gt=0)
    """Base of the rotary frequencies."""
    rope_local_theta: float | None = Field(None, gt=0)
    """Base in the layers with a short window, which then are not scaled either (Gemma 3); null means as all others."""
    partial_rotary_factor: float = Field(1.0, gt=0, le=1)
    """Fraction of each head that rotates."""
    rope_scaling: RopeScalingConfig = RopeScalingConfig()
    """Longer contexts for rotary positions."""
    attention: Literal["standard", "latent"] = "standard"
    """Keys and values by head (multi-head, grouped-query, multi-query: see `n_kv_head`), or latent ones (MLA)."""
    latent: LatentConfig = LatentConfig()
    """Sizes of latent attention."""
    qk_norm: Literal["none", "head", "full"] = "head"
    """Normalise (RMS) queries and keys before the rotation: each head (Qwen3), or all heads at once (OLMo 2)."""
    attention_window: int | None = Field(None, ge=1)
    """Tokens that a layer with a short window sees, the current one included; null: all layers see everything."""
    window_pattern: str = "S"
    """Which layers have the short window: S (short) and L (long: everything), layer by layer, repeated to the last."""
    attention_scale: float | None = Field(None, gt=0)
    """Factor of the scores before the softmax; null means 1 / sqrt(width of a head's queries)."""
    attention_softcap: float | None = Field(None, gt=0)
    """Cap attention's scores smoothly: cap * tanh(scores / cap) (Gemma 2)."""
    mlp: Literal["swiglu", "geglu", "geglu_tanh", "gelu", "gelu_tanh", "relu", "relu2"] | Extension = "swiglu"
    """Kind of feed-forward layer, or one of your own: path/to/file.py:Class, or {kind: ...} and its options."""
    moe: MoEConfig = MoEConfig()
    """Mixture of experts."""
    tie_embeddings: bool = True
    """Use the input embedding as the output head."""
    embedding_size: int | None = Field(None, ge=1)
    """Width of factorised embeddings, projected up to `n_embd`; null means not factorised."""
    embedding_multiplier: float = Field(1.0, gt=0)
    """The embeddings are multiplied by this (muP; Gemma: sqrt(n_embd))."""
    residual_multiplier: float = Field(1.0, gt=0)
    """What each sub-layer adds to the residual stream is multiplied by this (Granite)."""
    logit_multiplier: float = Field(1.0, gt=0)
    """The logits are multiplied by this, before any cap (muP: 1 / relative width)."""
    bias: bool = False
    """Biases in the linear layers and in LayerNorm; the next four say otherwise for some of them."""
    qkv_bias: bool | None = None
    """Biases of queries, keys and values (latent: of the projections down to a latent vector); null means as `bias`."""
    out_bias: bool | None = None
    """Bias of attention's output; null means as `bias`."""
    mlp_bias: bool | None = None
    """Biases of the feed-forward layer; null means as `bias`."""
    norm_bias: bool | None = None
    """Biases of LayerNorm; null means as `bias`."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Probability of dropping an activation while training."""
    logit_softcap: float | None = Field(None, gt=0)
    """Cap logits smoothly to within plus or minus this: cap * tanh(logits / cap)."""
    speed: SpeedConfig = SpeedConfig()
    """What the fastest recipes add."""
    init_std: float = Field(0.02, gt=0)
    """Standard deviation of the initial weights."""
    init_residual: Literal["scaled", "zero"] = "scaled"
    """Projections into the residual stream begin with init_std / sqrt(2 * n_layer) (GPT-2), or as zeros."""
    init_head_std: float | None = Field(None, ge=0)
    """Standard deviation of an untied head's initial weights; null means `init_std`."""
    init_from: str | None = None
    """Start from the weights and with the tokenizer of this model: a run, a checkpoint, a model folder of any kind."""

    @field_validator("qk_norm", mode="before")
    @classmethod
    def _as_before(cls, value: Any) -> Any:
        """true and false, which it once was, still say `head` and `none`."""
        return {True: "head", False: "none"}[value] if isinstance(value, bool) else value

    @field_validator("window_pattern")
    @classmethod
    def _letters(cls, value: str) -> str:
        if not value or set(value) - set("SL"):
            raise ValueError(
                f"model.window_pattern={value!r} is not possible: it is made of the letters S (short window) and L "
                "(everything), such as SSSL"
            )
        return value

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.init_from is not None and len(self.model_fields_set) < len(type(self).model_fields):
            return self  # the other keys are that model's: whether they fit is seen when it is there
        if self.head_dim is None and self.n_embd % self.n_head:
            raise ValueError(
                f"model.n_embd={self.n_embd} is not divisible by model.n_head={self.n_head}: "
                f"change one of them or set model.head_dim"
            )
        if self.n_head % self.kv_heads:
            raise ValueError(
                f"model.n_kv_head={self.n_kv_head} does not divide model.n_head={self.n_head}: "
                "each key/value head serves the same number of heads"
            )
        self._require_latent()
        if self.position == "rope" and self.rotary_dim % 2:
            share = f"model.partial_rotary_factor={self.partial_rotary_factor} of "
            heads = f"model.n_embd={self.n_embd} / model.n_head={self.n_head}"
            raise ValueError(
                f"{share if self.partial_rotary_factor != 1 else ''}"
                f"{heads if self.head_dim is None else f'model.head_dim={self.head_dim}'} "
                f"gives an odd rotary width of {self.rotary_dim}: it must be even, since dimensions turn in pairs"
            )
        if self.position == "rope" and self.rotary_dim == 0:
            raise ValueError(
                f"model.partial_rotary_factor={self.partial_rotary_factor} of model.head_dim={self.head_size} "
                "leaves nothing to rotate: raise it"
            )
        self._require_rope_scaling()
        self._require_experts()
        return self

    def _require_rope_scaling(self) -> None:
        scaling = self.rope_scaling
        if scaling.kind in ("yarn", "llama3") and scaling.original_context is None:
            raise ValueError(
                f"model.rope_scaling.kind={scaling.kind} needs model.rope_scaling.original_context: the context length "
                "before the extension"
            )
        if scaling.kind == "llama3" and scaling.low_freq_factor >= scaling.high_freq_factor:
            raise ValueError(
                f"model.rope_scaling.low_freq_factor={scaling.low_freq_factor} must be below "
                f"model.rope_scaling.high_freq_factor={scaling.high_freq_factor}"
            )
        if scaling.kind == "yarn" and scaling.beta_slow >= scaling.beta_fast:
            raise ValueError(
                f"model.rope_scaling.beta_slow={scaling.beta_slow} must be below "
                f"model.rope_scaling.beta_fast={scaling.beta_fast}"
            )
        if scaling.kind == "ntk" and scaling.factor > LARGEST_NTK:
            raise ValueError(
                f"model.rope_scaling.factor={scaling.factor} makes the base too large a number: use at most "
                f"{LARGEST_NTK:,} with model.rope_scaling.kind=ntk"
            )
        if scaling.kind == "yarn" and self.rope_theta <= 1:
            raise ValueError(
                f"model.rope_theta={self.rope_theta} lets all dimensions turn alike or ever faster: "
                "model.rope_scaling.kind=yarn needs a base above 1"
            )

    def _require_latent(self) -> None:
        if self.attention != "latent":
            return
        if self.position != "rope":
            raise ValueError("model.attention=latent has a rotary part of its own: it needs model.position=rope")
        if self.latent.rope_dim % 2:
            raise ValueError(
                f"model.latent.rope_dim={self.latent.rope_dim} must be even, since dimensions turn in pairs"
            )
        if self.speed.value_embeddings != "none":
            raise ValueError(
                f"model.speed.value_embeddings={self.speed.value_embeddings} adds to values of a layer, which "
                "model.attention=latent makes anew from its cache: use model.attention=standard"
            )

    def _require_experts(self) -> None:
        moe = self.moe
        if moe.n_expert == 0:
            return
        if isinstance(self.mlp, Extension):
            raise ValueError(f"model.moe.n_expert={moe.n_expert} needs one of the built-in kinds of model.mlp")
        if moe.n_expert_used > moe.n_expert:
            raise ValueError(
                f"model.moe.n_expert_used={moe.n_expert_used} is more than model.moe.n_expert={moe.n_expert}"
            )
        if self.has_mlp_bias:
            key = "bias" if self.mlp_bias is None else "mlp_bias"
            raise ValueError(
                f"model.{key}=true is not possible with model.moe.n_expert={moe.n_expert}, whose experts have no "
                "biases: set model.mlp_bias=false"
            )
        if not any(self.has_experts(layer) for layer in range(self.n_layer)):
            raise ValueError(
                f"model.moe.first_dense={moe.first_dense} and model.moe.period={moe.period} leave none of the "
                f"{self.n_layer} layers with experts"
            )

    @property
    def kv_heads(self) -> int:
        """Number of key/value heads."""
        return self.n_kv_head or self.n_head

    @property
    def head_size(self) -> int:
        """Width of one head (with latent attention: of its part without positions)."""
        return self.head_dim or self.n_embd // self.n_head

    @property
    def query_size(self) -> int:
        """Width of one head's queries and keys."""
        return self.head_size + self.latent.rope_dim if self.attention == "latent" else self.head_size

    @property
    def value_size(self) -> int:
        """Width of one head's values."""
        return self.latent.value_dim or self.head_size if self.attention == "latent" else self.head_size

    @property
    def score_scale(self) -> float:
        """What attention's scores are multiplied by."""
        return self.query_size**-0.5 if self.attention_scale is None else self.attention_scale

    @property
    def has_qkv_bias(self) -> bool:
        """Whether the projections to queries, keys and values have biases."""
        return self.bias if self.qkv_bias is None else self.qkv_bias

    @property
    def has_out_bias(self) -> bool:
        """Whether attention's output projection has a bias."""
        return self.bias if self.out_bias is None else self.out_bias

    @property
    def has_mlp_bias(self) -> bool:
        """Whether the feed-forward layer's projections have biases."""
        return self.bias if self.mlp_bias is None else self.mlp_bias

    @property
    def has_norm_bias(self) -> bool:
        """Whether LayerNorm has a bias: never without a weight, and RMSNorm never."""
        return (
            self.norm == "layernorm" and self.norm_weight and (self.bias if self.norm_bias is None else self.norm_bias)
        )

    def window(self, layer: int) -> int | None:
        """Tokens that layer number `layer` (from 0) sees, the current one included; None: all."""
        short = self.window_pattern[layer % len(self.window_pattern)] == "S"
        return self.attention_window if short else None

    def has_experts(self, layer: int) -> bool:
        """Whether layer number `layer` (from 0) is a mixture of experts."""
        after = layer - self.moe.first_dense
        return self.moe.n_expert > 0 and after >= 0 and (after + 1) % self.moe.period == 0

    def has_value_embedding(self, layer: int) -> bool:
        """Whether layer number `layer` (from 0) adds an embedding of the token to its values."""
        kind = self.speed.value_embeddings
        return kind == "all" or (kind == "alternate" and (self.n_layer - 1 - layer) % 2 == 0)

    @property
    def expert_size(self) -> int:
        """Width of one expert."""
        return self.moe.n_inner or self.inner_size

    @property
    def inner_size(self) -> int:
        """Width of the feed-forward layer."""
        if self.n_inner is not None:
            return self.n_inner
        if self.mlp in GATED:  # three matrices instead of two: 2/3 of the width keeps the parameter count
            return -(-(8 * self.n_embd // 3) // 32) * 32
        return 4 * self.n_embd

    @property
    def embed_size(self) -> int:
        """Width of an embedding row."""
        return self.embedding_size or self.n_embd

    @property
    def rotary_dim(self) -> int:
        """How many dimensions of each head rotate (0 without rotary positions)."""
        if self.position != "rope":
            return 0
        if self.attention == "latent":
            return self.latent.rope_dim
        return int(self.head_size * self.partial_rotary_factor)

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding table."""
        if self.vocab_size is None:
            raise ValueError("model.vocab_size is not known before the tokenizer is")
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple
