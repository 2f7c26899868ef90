"""From queries, keys and values to what each query takes: the scores' options, and which kernel computes them."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt.config import ModelConfig
from minigpt.model.causal_attention import causal_attention
from minigpt.model.position import Rotation
from minigpt.model.span import Span, View


@dataclass(frozen=True)
class Attend:
    """softmax(scale q k^T, capped) v, over what one kind of layer sees.

    The cap is Gemma 2's (Gemma Team 2024, arXiv:2408.00118, section 2): cap * tanh(scores / cap). The window is
    Mistral's (Jiang et al. 2023, arXiv:2310.06825, section 2), after Longformer (Beltagy et al. 2020).
    """

    scale: float
    """Of the scores."""
    softcap: float | None
    window: int | None
    """Tokens that each sees, itself included; None: all."""
    dropout: float
    training_window: int | None = None
    """The window while training (see `GPT.set_training_window`)."""

    @classmethod
    def of(cls, config: ModelConfig, layer: int) -> "Attend":
        """What layer number `layer` does."""
        window = config.window(layer)
        return cls(config.score_scale, config.attention_softcap, window, config.dropout, window)

    def view(self, span: Span) -> View:
        """What this layer's tokens see."""
        return span.full if self.window is None else span.short

    def rotation(self, span: Span, rotation: Rotation | None) -> Rotation | None:
        """This layer's rotation, given that of the layers without a window."""
        return rotation if self.window is None or span.local_rotation is None else span.local_rotation

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, span: Span, training: bool) -> Tensor:
        """q: (B, H, T, D), k: (B, Hkv, S, D), v: (B, Hkv, S, Dv) to (B, T, H, Dv); H / Hkv query heads share a key."""
        view, dropout = self.view(span), self.dropout if training else 0.0
        if self._blockwise(q, v, span, dropout):
            q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, T, heads, D) each
            window = None if view is span.full else self.training_window if training else self.window
            return causal_attention(q, k, v, span.documents, scale=self.scale, softcap=self.softcap, window=window)
        if self.softcap is not None:
            return self._capped(q, k, v, view, dropout).transpose(1, 2)
        shared = q.size(1) != k.size(1)
        if shared and view.mask is not None and q.is_cuda:
            # of CUDA's fused kernels none has both a mask and shared heads, and without one all scores are in memory
            k, v = (x.repeat_interleave(q.size(1) // x.size(1), dim=1) for x in (k, v))
            shared = False
        y = F.scaled_dot_product_attention(
            q, k, v,
            attn_mask=view.mask,
            dropout_p=dropout,
            is_causal=view.causal and view.mask is None,
            scale=self.scale,
            enable_gqa=shared,
        )  # fmt: skip
        return y.transpose(1, 2)

    def _blockwise(self, q: Tensor, v: Tensor, span: Span, dropout: float) -> bool:
        """Whether `causal_attention` can do it, and does it better than the fused kernel or `_capped`."""
        if dropout or q.size(2) == 1 or not span.regular:
            return False
        if self.softcap is not None:
            return True
        # on a CPU the fused kernel computes what a window hides, and there is none for values of another width
        unusual = self.view(span) is not span.full or q.size(-1) != v.size(-1)
        return q.is_cpu and (unusual or (q.dtype == torch.bfloat16 and span.stop == 0))

    def _capped(self, q: Tensor, k: Tensor, v: Tensor, view: View, dropout: float) -> Tensor:
        """(B, H, T, Dv) with all scores at once, in fp32 or more."""
        (B, H, T, D), K, S = q.shape, k.size(1), k.size(2)
        assert self.softcap is not None
        mask = view.mask
        if mask is None and view.causal:
            mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril_()
        scores = q.reshape(B, K, -1, D) @ k.mT  # (B, K, G * T, S)
        scores = scores.to(torch.promote_types(q.dtype, torch.float32)).view(B, H, T, S)
        scores = torch.tanh(scores * (self.scale / self.softcap)) * self.softcap
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        weights = F.dropout(scores.softmax(dim=-1).to(v.dtype), dropout)
        return (weights.reshape(B, K, -1, S) @ v).view(B, H, T, -1)
