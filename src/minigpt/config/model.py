"""The network: sizes and the choice of its parts. The defaults are the family that Hugging Face calls Qwen3."""

from typing import Literal, Self

from pydantic import Field, model_validator

from minigpt.config.base import Section
from minigpt.config.extension import Extension

GATED = ("swiglu", "geglu")


class ModelConfig(Section):
    """Architecture of the network."""

    n_layer: int = Field(12, ge=1)
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
    """Kind of normalisation before each sub-layer."""
    norm_eps: float = Field(1e-6, gt=0)
    """Added to the variance inside each normalisation."""
    position: Literal["rope", "learned"] = "rope"
    """How the model knows positions: rotary embeddings or a learned table."""
    rope_theta: float = Field(10000.0, gt=0)
    """Base of the rotary frequencies."""
    partial_rotary_factor: float = Field(1.0, gt=0, le=1)
    """Fraction of each head that rotates."""
    mlp: Literal["swiglu", "geglu", "gelu", "gelu_tanh", "relu2"] | Extension = "swiglu"
    """Kind of feed-forward layer, or one of your own: path/to/file.py:Class, or {kind: ...} and its options."""
    qk_norm: bool = True
    """Normalise (RMS) each head's queries and keys before the rotation."""
    tie_embeddings: bool = True
    """Use the input embedding as the output head."""
    embedding_size: int | None = Field(None, ge=1)
    """Width of factorised embeddings, projected up to `n_embd`; null means not factorised."""
    bias: bool = False
    """Biases in the linear layers and in LayerNorm."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Probability of dropping an activation while training."""
    logit_softcap: float | None = Field(None, gt=0)
    """Cap logits smoothly to within plus or minus this: cap * tanh(logits / cap)."""
    init_std: float = Field(0.02, gt=0)
    """Standard deviation of the initial weights; residual projections get it divided by sqrt(2 * n_layer)."""
    init_from: str | None = None
    """Start from the weights of this model (a run, a checkpoint or a model folder) instead of random ones."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
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
        if self.position == "rope" and self.rotary_dim % 2:
            raise ValueError(
                f"model.partial_rotary_factor={self.partial_rotary_factor} of model.head_dim={self.head_size} "
                f"gives an odd rotary width of {self.rotary_dim}: it must be even, since dimensions turn in pairs"
            )
        if self.position == "rope" and self.rotary_dim == 0:
            raise ValueError(
                f"model.partial_rotary_factor={self.partial_rotary_factor} of model.head_dim={self.head_size} "
                "leaves nothing to rotate: raise it"
            )
        return self

    @property
    def kv_heads(self) -> int:
        """Number of key/value heads."""
        return self.n_kv_head or self.n_head

    @property
    def head_size(self) -> int:
        """Width of one head."""
        return self.head_dim or self.n_embd // self.n_head

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
        return int(self.head_size * self.partial_rotary_factor) if self.position == "rope" else 0

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding table."""
        if self.vocab_size is None:
            raise ValueError("model.vocab_size is not known before the tokenizer is")
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple
