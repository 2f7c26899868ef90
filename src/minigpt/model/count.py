"""Parameters and arithmetic of a model, from its config alone.

Needs no torch, so that plans are instant, unless a part is the user's own: then it is made, to be counted.
"""

from minigpt.config.extension import Extension
from minigpt.config.model import GATED, ModelConfig


def count_parameters(config: ModelConfig, embeddings: bool = True) -> int:
    """Number of trained parameters; tied ones count once.

    Args:
        config: the architecture, `vocab_size` set.
        embeddings: False leaves out the tables that are indexed by a token or a position (a separate head
            included): the size that scaling laws are stated in (Kaplan et al. 2020, section 2.1).

    Returns:
        The number of parameters.
    """
    tables = _token_table(config) * (1 if config.tie_embeddings else 2) + _position_table(config)
    return _network(config) + (tables if embeddings else 0)


def flops_per_token(config: ModelConfig, length: int | None = None) -> int:
    """Floating-point operations to train on one token, forward and backward (PaLM, appendix B: 6 N + 12 L H Q T).

    N counts the parameters that take part in matrix products: all but the position table and, when the head is
    separate, the input embedding (a lookup). As in the paper, attention counts in full although half of it is masked.

    Args:
        config: the architecture, `vocab_size` set.
        length: tokens in a row (T); None means `context_length`.

    Returns:
        Operations (a multiply-add is two).
    """
    multiplied = _network(config) + _token_table(config)
    attention = config.n_layer * config.n_head * config.head_size * (length or config.context_length)
    return 6 * multiplied + 12 * attention


def _token_table(config: ModelConfig) -> int:
    return config.padded_vocab_size * config.embed_size


def _position_table(config: ModelConfig) -> int:
    return config.context_length * config.n_embd if config.position == "learned" else 0


def _network(config: ModelConfig) -> int:
    """Everything but the tables."""
    width, heads, kv_heads, head = config.n_embd, config.n_head, config.kv_heads, config.head_size
    norm = width * (2 if config.norm == "layernorm" and config.bias else 1)

    def linear(n_in: int, n_out: int) -> int:
        return n_in * n_out + (n_out if config.bias else 0)

    attention = linear(width, (heads + 2 * kv_heads) * head) + linear(heads * head, width)
    qk_norm = 2 * head if config.qk_norm == "head" else 0
    if isinstance(config.mlp, Extension):
        from minigpt.model.feedforward import count_mlp_parameters

        mlp = count_mlp_parameters(config)
    else:
        inner = config.inner_size * (2 if config.mlp in GATED else 1)
        mlp = linear(width, inner) + linear(config.inner_size, width)
    factors = 2 * width * config.embed_size if config.embedding_size is not None else 0
    return config.n_layer * (attention + qk_norm + mlp + 2 * norm) + norm + factors
