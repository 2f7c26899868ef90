"""The GPT: embeddings, a stack of pre-norm blocks, a norm and a vocabulary head (Radford et al. 2019).

Which parts it is made of is the config's choice; every combination works. Names of the parameters, also in files
(each `.weight`, some with a `.bias`; tied tensors appear once):
    embed, embed_up (factorised), position (learned),
    blocks.0.attention_norm, blocks.0.attention.{qkv, q_norm, k_norm, out}, blocks.0.mlp_norm,
    blocks.0.mlp.{gate_up (gated) or up, down}, blocks.1...., norm, head_down (factorised), head (not tied)
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.config import ModelConfig
from minigpt.model import count, loss
from minigpt.model.attention import Attention
from minigpt.model.autocast import compute_dtype
from minigpt.model.cache import KVCache, LayerCache, Span
from minigpt.model.feedforward import build_mlp
from minigpt.model.init import init_weights
from minigpt.model.norm import build_norm
from minigpt.model.position import Rotation, build_positions


class Block(nn.Module):
    """Attention, then feed-forward, each on a normalised copy of the residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = build_norm(config)
        self.attention = Attention(config)
        self.mlp_norm = build_norm(config)
        self.mlp = build_mlp(config)

    def forward(self, x: Tensor, span: Span, rotation: Rotation | None, cache: LayerCache | None = None) -> Tensor:
        """x: (B, T, C) to (B, T, C)."""
        x = x + self.attention(self.attention_norm(x), span, rotation, cache)
        return x + self.mlp(self.mlp_norm(x))


class GPT(nn.Module):
    """A decoder-only transformer.

    Args:
        config: the architecture, `vocab_size` set.
        generator: CPU generator of the initial weights; None means torch's global one. On the meta device nothing is
            drawn: call `to_empty` and then `init_weights`, or load weights.
    """

    def __init__(self, config: ModelConfig, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if config.vocab_size is None:
            raise ValueError("model.vocab_size is not set: take the tokenizer's")
        self.config, self.vocab_size = config, config.vocab_size
        C, E, factorised = config.n_embd, config.embed_size, config.embedding_size is not None
        # not drawn here: `init_weights` does, and on the meta device drawing would import the compiler
        self.embed = nn.Embedding.from_pretrained(torch.empty(config.padded_vocab_size, E), freeze=False)
        self.embed_up = nn.Linear(E, C, bias=False) if factorised else nn.Identity()
        self.position = build_positions(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = build_norm(config)
        self.head_down = nn.Linear(C, E, bias=False) if factorised else nn.Identity()
        self.head = None if config.tie_embeddings else nn.Linear(E, config.padded_vocab_size, bias=False)
        if not self.embed.weight.is_meta:
            self.init_weights(generator)

    @property
    def head_weight(self) -> Tensor:
        """(V_padded, E): the head's matrix, which is the embedding's when they are tied."""
        return self.embed.weight if self.head is None else self.head.weight

    def forward(
        self,
        ids: Tensor,
        *,
        cache: KVCache | None = None,
        positions: Tensor | None = None,
        document_ids: Tensor | None = None,
        targets: Tensor | None = None,
    ) -> Tensor:
        """Logits of the next token after each one, or the loss.

        Args:
            ids: (B, T) int64 token ids.
            cache: continue the rows that it holds and store these tokens in it.
            positions: (B, T) int64 absolute positions, -1 for padding (seen by none; its own output means nothing).
                None counts from 0, from each row's length with a cache, or anew in each document.
            document_ids: (B, T) int64; tokens see only those of the same number. Not with a cache.
            targets: (B, T) int64 ids to predict, IGNORED (-100) where there is none.

        Returns:
            Without targets: (B, T, vocab_size) logits, at least fp32, those of padding vocabulary rows cut off. With
            targets: the summed cross-entropy in nats, an fp32 scalar (divide by your count of targets).

        Raises:
            ValueError: more tokens than `context_length`, or positions that do not fit the cache.
        """
        hidden = self.hidden_states(ids, cache=cache, positions=positions, document_ids=document_ids)
        if targets is None:
            return self.logits(hidden)
        return loss.cross_entropy(
            hidden.flatten(0, 1),
            self.head_weight,
            targets.flatten(),
            vocab_size=self.vocab_size,
            softcap=self.config.logit_softcap,
        )

    def hidden_states(
        self,
        ids: Tensor,
        *,
        cache: KVCache | None = None,
        positions: Tensor | None = None,
        document_ids: Tensor | None = None,
    ) -> Tensor:
        """What the head reads: (B, T, E); arguments as for `forward`.

        `model.logits(hidden[:, -1])` spares a prompt's other logits.
        """
        span = self._span(ids, cache, positions, document_ids)
        x = self.position.add(self.embed_up(self.embed(ids)), span.positions)  # (B, T, C)
        x = F.dropout(x, self.config.dropout, self.training)
        rotation = self.position.rotation(span.positions, compute_dtype(self.embed.weight))
        for i, block in enumerate(self.blocks):
            x = block(x, span, rotation, None if cache is None else cache.layers[i])
        if cache is not None:
            cache.commit(span)
        hidden: Tensor = self.head_down(self.norm(x))
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., E) hidden states to (..., vocab_size) logits, at least fp32."""
        logits = F.linear(hidden, self.head_weight)[..., : self.vocab_size]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        cap = self.config.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    @torch.no_grad()
    def token_losses(self, ids: Tensor, targets: Tensor) -> Tensor:
        """(B, T) fp32 negative log-likelihood of each target in nats, 0 where ignored. No gradient."""
        losses = loss.token_losses(
            self.hidden_states(ids).flatten(0, 1),
            self.head_weight,
            targets.flatten(),
            vocab_size=self.vocab_size,
            softcap=self.config.logit_softcap,
        )
        return losses.view_as(targets)

    def make_cache(self, batch: int, length: int, *, dtype: torch.dtype | None = None) -> KVCache:
        """An empty cache for `batch` rows of up to `length` tokens, in the dtype of the matrix products unless given.

        Raises:
            ValueError: `length` is more than `context_length`.
        """
        if length > self.config.context_length:
            raise ValueError(
                f"a cache of {length} tokens is longer than model.context_length={self.config.context_length}"
            )
        weight = self.embed.weight
        kind = compute_dtype(weight) if dtype is None else dtype
        layers = [cast(Block, block).attention.make_cache(batch, length, kind, weight.device) for block in self.blocks]
        return KVCache(layers, batch, length, weight.device)

    def compile_blocks(self) -> None:
        """Compile each block with `torch.compile`: all share one compilation, which PyTorch keeps on disk."""
        for block in self.blocks:
            block.compile()

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Draw the weights anew (see `minigpt.model.init`)."""
        init_weights(self, self.config.init_std, self.config.n_layer, generator)

    def num_parameters(self, embeddings: bool = True) -> int:
        """Number of parameters (see `minigpt.model.count.count_parameters`)."""
        return count.count_parameters(self.config, embeddings)

    def flops_per_token(self, length: int | None = None) -> int:
        """Operations to train on one token (see `minigpt.model.count.flops_per_token`)."""
        return count.flops_per_token(self.config, length)

    def _span(self, ids: Tensor, cache: KVCache | None, positions: Tensor | None, document_ids: Tensor | None) -> Span:
        """Where the tokens stand and what they see."""
        (B, T), longest = ids.shape, self.config.context_length
        if longest < T:
            raise ValueError(f"{T} tokens in a row are more than model.context_length={longest}: shorten the rows")
        if cache is not None:
            if document_ids is not None:
                raise ValueError("document_ids cannot be combined with a cache: give each document a row of its own")
            return cache.plan(B, T, positions)
        index = torch.arange(T, device=ids.device)
        if positions is None:
            if document_ids is None:
                return Span(index[None])
            return Span(_positions_in_documents(document_ids, index), _visible(index, document_ids), document_ids)
        if positions.device.type == "cpu" and positions.numel() and int(positions.max()) >= longest:
            raise ValueError(f"position {int(positions.max())} is beyond model.context_length={longest}")
        positions = positions.to(ids.device)
        # padding is seen by none but itself: with nothing at all to see, some kernels give NaN
        mask = (_visible(index, document_ids) & (positions >= 0)[:, None, None, :]) | (index == index[:, None])
        padded = positions.device.type != "cpu" or bool((positions < 0).any())
        return Span(positions.clamp(min=0), mask, None if padded else document_ids)


def _visible(index: Tensor, document_ids: Tensor | None) -> Tensor:
    """(B or 1, 1, T, T) bool: a query sees the tokens up to itself, of its own document."""
    visible = (index <= index[:, None])[None]
    if document_ids is not None:
        visible = visible & (document_ids[:, :, None] == document_ids[:, None, :])
    return visible[:, None]


def _positions_in_documents(document_ids: Tensor, index: Tensor) -> Tensor:
    """(B, T) positions that begin at 0 where a document does, so that each document is read as if it stood alone."""
    first = torch.ones_like(document_ids, dtype=torch.bool)
    first[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    return index - torch.where(first, index, 0).cummax(dim=1).values
