"""Multi-head latent attention: what is kept of a token is one small vector that all heads' keys and values come from.

DeepSeek-AI 2024 (DeepSeek-V2, arXiv:2405.04434, section 2.1), with the details of DeepSeek-V3's published model: both
latent vectors pass an RMSNorm, and positions are in a rotary part of their own, beside the rest of each query and in
one key that all heads share.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.config import ModelConfig
from minigpt.model.attend import Attend
from minigpt.model.cache import LayerCache
from minigpt.model.norm import RMSNorm
from minigpt.model.position import Rotation, rotate
from minigpt.model.span import Span


class LatentAttention(nn.Module):
    """The rows of `q` (or `q_up`) and `kv_up` come head by head: of queries, the part without positions, then the
    rotary one; of the others, keys, then values. Those of `kv_down` are the latent vector's, then the rotary key's.

    With biases of queries, keys and values it is the projections down to a latent vector that have them.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        latent, C = config.latent, config.n_embd
        self.n_head, self.key_dim, self.value_dim = config.n_head, config.head_size, config.value_size
        self.rank, self.rope_dim = latent.kv_rank, latent.rope_dim
        if latent.q_rank is None:
            self.q = nn.Linear(C, self.n_head * config.query_size, bias=False)
        else:
            self.q_down = nn.Linear(C, latent.q_rank, bias=config.has_qkv_bias)
            self.q_norm = RMSNorm(latent.q_rank, config.norm_eps, weight=config.norm_weight)
            self.q_up = nn.Linear(latent.q_rank, self.n_head * config.query_size, bias=False)
        self.has_query_latent = latent.q_rank is not None
        self.kv_down = nn.Linear(C, self.rank + self.rope_dim, bias=config.has_qkv_bias)
        self.kv_norm = RMSNorm(self.rank, config.norm_eps, weight=config.norm_weight)
        self.kv_up = nn.Linear(self.rank, self.n_head * (self.key_dim + self.value_dim), bias=False)
        self.out = nn.Linear(self.n_head * self.value_dim, C, bias=config.has_out_bias)
        self.attend = Attend.of(config, layer)
        self.dropout = config.dropout

    def forward(self, x: Tensor, span: Span, rotation: Rotation | None, cache: LayerCache | None = None) -> Tensor:
        """x: (B, T, C) to (B, T, C)."""
        B, T, _ = x.shape
        rotation = self.attend.rotation(span, rotation)
        assert rotation is not None
        q, q_rotary = self._queries(x).split([self.key_dim, self.rope_dim], dim=-1)  # (B, T, H, width) each
        q_rotary = rotate(q_rotary, rotation)
        latent, k_rotary = self.kv_down(x).split([self.rank, self.rope_dim], dim=-1)  # (B, T, R), (B, T, rope_dim)
        latent = self.kv_norm(latent).to(k_rotary.dtype)[:, None]  # (B, 1, T, R)
        k_rotary = rotate(k_rotary[:, :, None], rotation).transpose(1, 2)  # (B, 1, T, rope_dim)
        if cache is not None:
            latent, k_rotary = cache.update((latent, k_rotary), span, self.attend.view(span).first)  # (B, 1, S, width)
        if cache is None or span.start == 0:
            y = self._expanded(q, q_rotary, latent, k_rotary, span)
        else:
            y = self._absorbed(q, q_rotary, latent, k_rotary, span)
        y = y.reshape(B, T, self.n_head * self.value_dim)
        return F.dropout(self.out(y), self.dropout, self.training)

    def _queries(self, x: Tensor) -> Tensor:
        """(B, T, H, D + rope_dim) before the rotation."""
        if self.has_query_latent:
            down = self.q_down(x)
            q = self.q_up(self.q_norm(down).to(down.dtype))
        else:
            q = self.q(x)
        return q.unflatten(-1, (self.n_head, -1))

    def _expanded(self, q: Tensor, q_rotary: Tensor, latent: Tensor, k_rotary: Tensor, span: Span) -> Tensor:
        """(B, T, H, Dv) by each head's keys and values, made from the latent vectors: for many queries."""
        made = self.kv_up(latent[:, 0]).unflatten(-1, (self.n_head, -1)).transpose(1, 2)  # (B, H, S, D + Dv)
        k, v = made.split([self.key_dim, self.value_dim], dim=-1)
        k = torch.cat([k, k_rotary.expand(-1, self.n_head, -1, -1)], dim=-1)
        q = torch.cat([q, q_rotary], dim=-1).transpose(1, 2)
        return self.attend(q, k, v, span, self.training)

    def _absorbed(self, q: Tensor, q_rotary: Tensor, latent: Tensor, k_rotary: Tensor, span: Span) -> Tensor:
        """The same by associativity, (W latent) q = latent (W^T q), which spares making keys and values of all that is
        stored for a few queries: each head asks the latent vectors themselves (DeepSeek-V2, section 2.1.2).
        """
        w = self.kv_up.weight.view(self.n_head, self.key_dim + self.value_dim, self.rank)
        w_key, w_value = w.split([self.key_dim, self.value_dim], dim=1)
        q = torch.einsum("bthd,hdr->bhtr", q, w_key)
        q = torch.cat([q, q_rotary.transpose(1, 2)], dim=-1)  # (B, H, T, R + rope_dim)
        k = torch.cat([latent, k_rotary], dim=-1)  # (B, 1, S, R + rope_dim)
        y = self.attend(q, k, latent, span, self.training)  # (B, T, H, R)
        return torch.einsum("bthr,hvr->bthv", y, w_value)

    def make_cache(self, batch: int, length: int, dtype: torch.dtype, device: torch.device) -> LayerCache:
        """An empty cache of latent vectors and rotary keys for `batch` rows of up to `length` tokens."""
        return LayerCache(batch, 1, length, (self.rank, self.rope_dim), dtype, device)
