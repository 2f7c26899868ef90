"""Causal self-attention: multi-head (Vaswani et al. 2017), grouped-query (Ainslie et al. 2023, arXiv:2305.13245) or
multi-query (Shazeer 2019, arXiv:1911.02150), as there are key heads. Latent attention is in a module of its own.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.config import ModelConfig
from minigpt.config.architecture import VALUE_GATE_WIDTH
from minigpt.model.attend import Attend
from minigpt.model.cache import LayerCache
from minigpt.model.latent_attention import LatentAttention
from minigpt.model.norm import RMSNorm
from minigpt.model.position import Rotation, rotate
from minigpt.model.span import Span


class Attention(nn.Module):
    """The rows of `qkv` are the query heads', then the key heads', then the value heads'.

    Queries and keys may pass an RMSNorm (whatever `norm` is) before the rotation: each head by itself (Henry et al.
    2020, arXiv:2010.04245; Qwen3) or all heads at once (OLMo 2, arXiv:2501.00656, section 3.3). To the values may be
    added an embedding of the token, times a gate from 0 to 2 (Zhou et al. 2024, arXiv:2410.17897; nanochat).
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.n_head, self.n_kv_head, self.head_dim = config.n_head, config.kv_heads, config.head_size
        n_rows = (self.n_head + 2 * self.n_kv_head) * self.head_dim
        self.qkv = nn.Linear(config.n_embd, n_rows, bias=config.has_qkv_bias)
        self.out = nn.Linear(self.n_head * self.head_dim, config.n_embd, bias=config.has_out_bias)
        self.full_norm = config.qk_norm == "full"
        self.q_norm = _query_key_norm(config, self.n_head)
        self.k_norm = _query_key_norm(config, self.n_kv_head)
        self.has_value_embedding = config.has_value_embedding(layer)
        if self.has_value_embedding:
            table = torch.empty(config.padded_vocab_size, self.n_kv_head * self.head_dim)
            self.value_embed = nn.Embedding.from_pretrained(table, freeze=False)
            self.value_gate = nn.Linear(min(VALUE_GATE_WIDTH, config.n_embd), self.n_kv_head, bias=False)
        self.attend = Attend.of(config, layer)
        self.dropout = config.dropout

    def forward(self, x: Tensor, span: Span, rotation: Rotation | None, cache: LayerCache | None = None) -> Tensor:
        """x: (B, T, C) to (B, T, C)."""
        B, T, _ = x.shape
        heads = self.qkv(x).view(B, T, self.n_head + 2 * self.n_kv_head, self.head_dim)
        q, k, v = heads.split([self.n_head, self.n_kv_head, self.n_kv_head], dim=2)  # (B, T, heads, D) each
        if self.full_norm:
            q, k = self.q_norm(q.flatten(2)).view_as(q), self.k_norm(k.flatten(2)).view_as(k)
        else:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = q.to(v.dtype), k.to(v.dtype)  # some autocasts make norms fp32
        if self.has_value_embedding:
            v = v + self._value_embedding(x, span).to(v.dtype)
        rotation = self.attend.rotation(span, rotation)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, heads, T, D) each
        if cache is not None:
            k, v = cache.update((k, v), span, self.attend.view(span).first)  # (B, Hkv, S, D)
        y = self.attend(q, k, v, span, self.training).reshape(B, T, self.n_head * self.head_dim)
        return F.dropout(self.out(y), self.dropout, self.training)

    def _value_embedding(self, x: Tensor, span: Span) -> Tensor:
        """(B, T, Hkv, D): what is added to the values."""
        gate = 2 * torch.sigmoid(self.value_gate(x[..., : self.value_gate.in_features]))  # (B, T, Hkv)
        embedded: Tensor = self.value_embed(span.ids)
        return gate[..., None] * embedded.unflatten(-1, (self.n_kv_head, self.head_dim))

    def make_cache(self, batch: int, length: int, dtype: torch.dtype, device: torch.device) -> LayerCache:
        """An empty cache of keys and values for `batch` rows of up to `length` tokens."""
        return LayerCache(batch, self.n_kv_head, length, (self.head_dim, self.head_dim), dtype, device)


def _query_key_norm(config: ModelConfig, n_head: int) -> nn.Module:
    """The normalisation of queries or keys with so many heads."""
    widths = {"head": config.head_size, "full": n_head * config.head_size}
    if config.qk_norm == "none":
        return nn.Identity()
    return RMSNorm(widths[config.qk_norm], config.norm_eps, weight=config.norm_weight)


ATTENTIONS: dict[str, type[Attention] | type[LatentAttention]] = {"standard": Attention, "latent": LatentAttention}


def build_attention(config: ModelConfig, layer: int) -> Attention | LatentAttention:
    """The attention that `config.attention` names, for layer number `layer` (from 0)."""
    return ATTENTIONS[config.attention](config, layer)
