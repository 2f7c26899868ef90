"""Causal self-attention: multi-head (Vaswani et al. 2017) or grouped-query (Ainslie et al. 2023), by a fused kernel."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.config import ModelConfig
from minigpt.model.cache import LayerCache, Span
from minigpt.model.causal_attention import causal_attention
from minigpt.model.norm import RMSNorm
from minigpt.model.position import Rotation, rotate


class Attention(nn.Module):
    """Full causal attention. The rows of `qkv` are the query heads', then the key heads', then the value heads'.

    With `qk_norm` each head's queries and keys pass an RMSNorm (whatever `norm` is) before the rotation, as in Qwen3.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_head, self.n_kv_head, self.head_dim = config.n_head, config.kv_heads, config.head_size
        self.qkv = nn.Linear(config.n_embd, (self.n_head + 2 * self.n_kv_head) * self.head_dim, bias=config.bias)
        self.out = nn.Linear(self.n_head * self.head_dim, config.n_embd, bias=config.bias)
        self.q_norm = RMSNorm(self.head_dim, config.norm_eps) if config.qk_norm == "head" else nn.Identity()
        self.k_norm = RMSNorm(self.head_dim, config.norm_eps) if config.qk_norm == "head" else nn.Identity()
        self.dropout = config.dropout

    def forward(self, x: Tensor, span: Span, rotation: Rotation | None, cache: LayerCache | None = None) -> Tensor:
        """x: (B, T, C) to (B, T, C)."""
        B, T, _ = x.shape
        heads = self.qkv(x).view(B, T, self.n_head + 2 * self.n_kv_head, self.head_dim)
        q, k, v = heads.split([self.n_head, self.n_kv_head, self.n_kv_head], dim=2)  # (B, T, heads, D) each
        q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)  # some autocasts make norms fp32
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        if cache is None and self._blockwise(q, span):
            y = causal_attention(q, k, v, span.documents).reshape(B, T, self.n_head * self.head_dim)
            return F.dropout(self.out(y), self.dropout, self.training)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, heads, T, D) each
        if cache is not None:
            k, v = cache.update(k, v, span)  # (B, Hkv, S, D)
        y = F.scaled_dot_product_attention(
            q, k, v,
            attn_mask=span.mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=span.causal and span.mask is None,
            enable_gqa=self.n_kv_head != self.n_head,
        )  # fmt: skip
        y = y.transpose(1, 2).reshape(B, T, self.n_head * self.head_dim)
        return F.dropout(self.out(y), self.dropout, self.training)

    def _blockwise(self, q: Tensor, span: Span) -> bool:
        """Whether `causal_attention` does it faster than the fused kernel."""
        masked = span.mask is not None and span.documents is None
        plain = span.causal and not masked and not (self.dropout and self.training)
        return plain and q.is_cpu and q.dtype == torch.bfloat16 and q.size(1) > 1

    def make_cache(self, batch: int, length: int, dtype: torch.dtype, device: torch.device) -> LayerCache:
        """An empty cache for `batch` rows of up to `length` tokens."""
        return LayerCache(batch, self.n_kv_head, length, self.head_dim, dtype, device)
