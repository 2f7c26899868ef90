"""Parameters, arithmetic and cache of a model, from its config alone.

Needs no torch, so that a plan for any size is instant, unless a part is the user's own: then it is made, to be counted.
Counts are by kind of parameter: the network (what a token is multiplied with), and tables (what it is looked up in).
"""

from minigpt.config.architecture import SMEAR_WIDTH, VALUE_GATE_WIDTH
from minigpt.config.extension import Extension
from minigpt.config.model import GATED, ModelConfig


def count_parameters(config: ModelConfig, embeddings: bool = True, active: bool = False) -> int:
    """Number of trained parameters; tied ones count once.

    Args:
        config: the architecture, `vocab_size` set.
        embeddings: False leaves out the tables that are indexed by a token or a position (a separate head
            included): the size that scaling laws are stated in (Kaplan et al. 2020, section 2.1).
        active: True counts, of a mixture's experts, only those that one token goes to, shared ones included.

    Returns:
        The number of parameters.
    """
    return _network(config, active) + (_tables(config) if embeddings else 0)


def forward_flops_per_token(config: ModelConfig, length: int | None = None) -> int:
    """Floating-point operations to make one token's logits (PaLM, appendix B: 2 N + 4 L H Q T).

    N counts the parameters that take part in matrix products: those of the network that are active, and the head's.
    As in the paper, attention counts in full although half of it is masked; a layer with a window counts the window.

    Args:
        config: the architecture, `vocab_size` set.
        length: tokens in a row (T); None means `context_length`.

    Returns:
        Operations (a multiply-add is two).
    """
    seen = length or config.context_length
    tokens = sum(min(seen, config.window(layer) or seen) for layer in range(config.n_layer))
    attention = tokens * config.n_head * (config.query_size + config.value_size)  # scores, then sums of values
    return 2 * (_network(config, active=True) + _token_table(config)) + 2 * attention


def backward_flops_per_token(config: ModelConfig, length: int | None = None) -> int:
    """Operations of the backward pass: twice the forward pass, since each product has two gradients."""
    return 2 * forward_flops_per_token(config, length)


def flops_per_token(config: ModelConfig, length: int | None = None) -> int:
    """Operations to train on one token, forward and backward: 6 N + 12 L H Q T. Arguments as for the forward pass."""
    return forward_flops_per_token(config, length) + backward_flops_per_token(config, length)


def kv_cache_bytes_per_token(config: ModelConfig, dtype_bytes: int = 2) -> int:
    """Bytes by which a row's cache grows with a token (also where windows are short: all positions are kept).

    Args:
        config: the architecture.
        dtype_bytes: bytes of a number: 2 for bf16, 4 for fp32.

    Returns:
        Bytes: keys and values of all layers; with latent attention, latent vectors and rotary keys. With smearing,
        also the token's id.
    """
    latent = config.attention == "latent"
    layer = config.latent.kv_rank + config.latent.rope_dim if latent else 2 * config.kv_heads * config.head_size
    return dtype_bytes * config.n_layer * layer + 8 * config.speed.smear


# ---- tables ----------------------------------------------------------------------------------------------------------


def _tables(config: ModelConfig) -> int:
    tokens = _token_table(config) * (1 if config.tie_embeddings else 2)
    positions = config.context_length * config.n_embd if config.position == "learned" else 0
    values = config.padded_vocab_size * config.kv_heads * config.head_size
    return tokens + positions + values * sum(map(config.has_value_embedding, range(config.n_layer)))


def _token_table(config: ModelConfig) -> int:
    return config.padded_vocab_size * config.embed_size


# ---- the network -----------------------------------------------------------------------------------------------------


def _network(config: ModelConfig, active: bool) -> int:
    """Everything but the tables."""
    width, layers = config.n_embd, range(config.n_layer)
    norms = {"pre": 2, "post": 2, "sandwich": 4}[config.norm_place] * config.n_layer + 1 + config.embedding_norm
    factors = 2 * width * config.embed_size if config.embedding_size is not None else 0
    attention = _latent_attention(config) if config.attention == "latent" else _attention(config)
    experts = sum(map(config.has_experts, layers))
    feedforward = (config.n_layer - experts) * _mlp(config) + experts * _moe(config, active)
    return norms * _norm(config) + factors + config.n_layer * attention + feedforward + _speed(config)


def _linear(n_in: int, n_out: int, bias: bool = False) -> int:
    return n_in * n_out + (n_out if bias else 0)


def _norm(config: ModelConfig) -> int:
    return config.n_embd * (config.norm_weight + config.has_norm_bias)


def _attention(config: ModelConfig) -> int:
    width, heads, kv_heads, head = config.n_embd, config.n_head, config.kv_heads, config.head_size
    qkv = _linear(width, (heads + 2 * kv_heads) * head, config.has_qkv_bias)
    normed = {"none": 0, "head": 2 * head, "full": (heads + kv_heads) * head}[config.qk_norm]
    return qkv + config.norm_weight * normed + _linear(heads * head, width, config.has_out_bias)


def _latent_attention(config: ModelConfig) -> int:
    width, heads, latent = config.n_embd, config.n_head, config.latent
    bias, rank = config.has_qkv_bias, latent.q_rank
    if rank is None:
        queries = _linear(width, heads * config.query_size)
    else:
        queries = _linear(width, rank, bias) + config.norm_weight * rank + _linear(rank, heads * config.query_size)
    down = _linear(width, latent.kv_rank + latent.rope_dim, bias) + config.norm_weight * latent.kv_rank
    up = _linear(latent.kv_rank, heads * (config.head_size + config.value_size))
    return queries + down + up + _linear(heads * config.value_size, width, config.has_out_bias)


def _mlp(config: ModelConfig) -> int:
    if isinstance(config.mlp, Extension):
        from minigpt.model.feedforward import count_mlp_parameters

        return count_mlp_parameters(config)
    return _plain_mlp(config, config.inner_size)


def _plain_mlp(config: ModelConfig, inner: int) -> int:
    up = inner * (2 if config.mlp in GATED else 1)
    return _linear(config.n_embd, up, config.has_mlp_bias) + _linear(inner, config.n_embd, config.has_mlp_bias)


def _moe(config: ModelConfig, active: bool) -> int:
    moe = config.moe
    experts = (moe.n_expert_used if active else moe.n_expert) * _plain_mlp(config, config.expert_size)
    shared = _plain_mlp(config, moe.n_shared * config.expert_size) + (config.n_embd if moe.shared_gate else 0)
    return moe.n_expert * config.n_embd + experts + (shared if moe.n_shared else 0)


def _speed(config: ModelConfig) -> int:
    """Scalars and gates of the speed family."""
    speed, layers = config.speed, range(config.n_layer)
    smear = min(SMEAR_WIDTH, config.n_embd) + 1
    gate = min(VALUE_GATE_WIDTH, config.n_embd) * config.kv_heads
    gates = gate * sum(map(config.has_value_embedding, layers))
    return gates + speed.smear * smear + speed.residual_scalars * 2 * config.n_layer + speed.backout
