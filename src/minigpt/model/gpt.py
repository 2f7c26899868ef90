"""The GPT: embeddings, a stack of blocks, a norm and a vocabulary head (Radford et al. 2019).

Which parts it is made of is the config's choice; every combination works. Names of the parameters, also in files (those
in brackets are there with an option; each `.weight`, some with a `.bias`; tied tensors appear once):
    embed, [embed_up] (factorised), [embedding_norm], [position] (learned),
    [smear_gate, smear_scale], [residual_scale, input_scale], [backout_scale] (speed),
    blocks.0.[attention_norm], .attention.{qkv, [q_norm, k_norm], out, [value_embed, value_gate]}, or, latent,
        .attention.{q or (q_down, q_norm, q_up), kv_down, kv_norm, kv_up, out}, .[attention_post_norm],
        .[mlp_norm], .mlp.{gate_up (gated) or up, down}, or, with experts, .mlp.router, .mlp.experts.{gate_up or up,
        down} (no `.weight`: one tensor of all experts), .mlp.[shared.{gate_up or up, down}, shared_gate],
        .mlp.[balance_bias] (a buffer), .[mlp_post_norm],
    blocks.1...., norm, [head_down] (factorised), [head] (not tied)
"""

from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.config import ModelConfig
from minigpt.model import checkpointing, count, loss, speed
from minigpt.model.autocast import compute_dtype
from minigpt.model.block import Block, scaled
from minigpt.model.cache import KVCache
from minigpt.model.init import init_weights
from minigpt.model.moe import MoE
from minigpt.model.norm import build_norm
from minigpt.model.position import build_positions
from minigpt.model.routing import Routers
from minigpt.model.span import Span, plan_pass
from minigpt.model.spread import Spread


class Stream(NamedTuple):
    """What flows between blocks, each (B, T, C)."""

    x: Tensor
    """The residual stream."""
    first: Tensor
    """It as it was before the first block (read by `input_scale`)."""
    middle: Tensor
    """It as it was halfway through the blocks, once it has come there (read by `backout_scale`)."""


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
        self.embedding_norm = build_norm(config) if config.embedding_norm else nn.Identity()
        self.position = build_positions(config)
        self.smear_gate = speed.smear_gate(config) if config.speed.smear else None
        self.smear_scale = speed.Scale(1) if config.speed.smear else None
        self.residual_scale = speed.Scale(config.n_layer) if config.speed.residual_scalars else None
        self.input_scale = speed.Scale(config.n_layer) if config.speed.residual_scalars else None
        self.backout_scale = speed.Scale(1) if config.speed.backout else None
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.routers = Routers([module for module in self.blocks.modules() if isinstance(module, MoE)])
        self.norm = build_norm(config)
        self.head_down = nn.Linear(C, E, bias=False) if factorised else nn.Identity()
        self.head = None if config.tie_embeddings else nn.Linear(E, config.padded_vocab_size, bias=False)
        self.spread: Spread | None = None
        self.z_loss, self.training_window = loss.ZLoss(), config.attention_window
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
            targets: the summed cross-entropy in nats, an fp32 scalar (divide by your count of targets). In training the
            backward pass of a mixture of experts sees the auxiliary losses besides (see `minigpt.model.routing`).

        Raises:
            ValueError: more tokens than `context_length`, or positions that do not fit the cache.
        """
        hidden = self.hidden_states(ids, cache=cache, positions=positions, document_ids=document_ids)
        return self.logits(hidden) if targets is None else self.summed_loss(hidden, targets)

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
        span = self.plan(ids, cache=cache, positions=positions, document_ids=document_ids)
        x = self.enter(span, cache=cache, positions=positions, document_ids=document_ids)
        stream = self.through_blocks(Stream(x, x, x), span, cache)
        if cache is not None:
            cache.commit(span)
        return self.leave(stream)

    def enter(
        self,
        span: Span,
        *,
        cache: KVCache | None = None,
        positions: Tensor | None = None,
        document_ids: Tensor | None = None,
    ) -> Tensor:
        """The tokens of a span as the first block reads them: (B, T, C)."""
        assert span.ids is not None
        x = self._embedded(span.ids)  # (B, T, C)
        if self.smear_gate is not None:
            if cache is None:
                if self.spread is not None:
                    positions, document_ids = self.spread.pad(positions, 0), self.spread.pad(document_ids, -1)
                before = speed.before_each(x, positions, document_ids)
            else:
                before = self._embedded_before(span.ids, span, cache)
            x = x + self._smear(x, before)
        x = F.dropout(self.position.add(x, span.positions), self.config.dropout, self.training)
        return x if self.spread is None else self.spread.own(x)

    def through_blocks(self, stream: Stream, span: Span, cache: KVCache | None = None) -> Stream:
        """Through the blocks that are here: all of them, or those of one stage of a pipeline."""
        x, first, middle = stream
        if self.spread is not None:
            span = self.spread.begin(span, draws=self.training and self.config.dropout > 0)
        dtype = compute_dtype(x)
        rotation = self.position.rotation(span.positions, dtype)
        span.local_rotation = self.position.local_rotation(span.positions, dtype)
        for name, block in self.blocks.named_children():
            i = int(name)
            if self.residual_scale is not None and self.input_scale is not None:
                x = self.residual_scale.weight[i] * x + self.input_scale.weight[i] * first
            x = block(x, span, rotation, None if cache is None else cache.layers[i])
            if i + 1 == self.config.n_layer // 2:
                middle = x
        return Stream(x, first, middle)

    def leave(self, stream: Stream) -> Tensor:
        """From behind the last block to what the head reads: (B, T, E)."""
        x = stream.x
        if self.backout_scale is not None:
            x = x - self.backout_scale.weight * stream.middle
        hidden: Tensor = self.head_down(self.norm(x))
        return scaled(hidden, self.config.logit_multiplier)

    def summed_loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """The summed cross-entropy of hidden states (B, T, E) and targets (B, T): what `forward` gives with targets."""
        spread = self.spread
        hidden, here = (hidden, targets) if spread is None else spread.before_head(hidden, targets)
        summed = loss.cross_entropy(
            hidden.flatten(0, 1),
            self.head_weight,
            here.flatten(),
            vocab_size=self.vocab_size,
            softcap=self.config.logit_softcap,
            z_loss=self.z_loss,
            vocabulary=loss.WHOLE if spread is None else spread.vocabulary,
        )
        return self.routers.attach(summed, targets)

    def _embedded(self, ids: Tensor) -> Tensor:
        """(B, T) ids to (B, T, C), each by itself."""
        x = self.embed_up(self.embed(ids)).to(self.embed.weight.dtype)  # autocast must not narrow the residual stream
        normed: Tensor = self.embedding_norm(scaled(x, self.config.embedding_multiplier))
        return normed

    def _smear(self, x: Tensor, before: Tensor) -> Tensor:
        """What each of x (B, T, C) gets of the token before it, (B, T, C)."""
        assert self.smear_gate is not None and self.smear_scale is not None
        gate = torch.sigmoid(self.smear_gate(x[..., : self.smear_gate.in_features]))  # (B, T, 1)
        return self.smear_scale.weight * gate * before

    def _embedded_before(self, ids: Tensor, span: Span, cache: KVCache) -> Tensor:
        """The embedding of the token before each of ids (B, T), with a cache: (B, T, C), zeros at position 0."""
        tokens = cast(speed.TokenCache, cache.layers[-1])
        return self._embedded(tokens.previous(ids, span)) * (span.positions > 0)[:, :, None]

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., E) hidden states to (..., vocab_size) logits, at least fp32."""
        if self.spread is not None:
            raise ValueError("the logits are spread over several processes: give the model `targets` to get the loss")
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
        device = weight.device
        parts: list[Any] = [
            cast(Block, block).attention.make_cache(batch, length, kind, device) for block in self.blocks
        ]
        if self.smear_gate is not None:
            parts.append(speed.TokenCache(batch, length, device))
        return KVCache(parts, batch, length, device, self.config.attention_window)

    def compile_blocks(self, backend: str = "inductor", stages: int = 1) -> None:
        """Compile each block with `torch.compile`: blocks of a kind share one compilation, which PyTorch keeps on disk.

        Each kind is compiled anew for validation, for another shape or window (of which training has so many `stages`),
        and so on. By itself PyTorch would stop at eight in all.
        """
        config, layers = self.config, range(self.config.n_layer)
        kinds = {(config.window(i), config.has_value_embedding(i), config.has_experts(i)) for i in layers}
        for mixture in self.routers.layers:
            mixture.experts.stay_uncompiled()
        for block in self.blocks.children():
            block.compile(backend=backend, recompile_limit=8 * len(kinds) * stages)

    def set_training_window(self, window: int) -> None:
        """While training, layers with a short window see so many tokens from now on; otherwise what the config says."""
        self.training_window = window
        for block in self.blocks.children():
            attention = cast(Block, block).attention
            if attention.attend.window is not None:
                attention.attend = replace(attention.attend, training_window=window)

    def set_checkpointing(self, level: str) -> None:
        """What the blocks compute again in the backward pass: none, selective or full (see `checkpointing`)."""
        for block in self.blocks.children():
            cast(Block, block).recompute = checkpointing.recompute(level, self.config)

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Draw the weights anew (see `minigpt.model.init`)."""
        init_weights(self, self.config, generator)

    def num_parameters(self, embeddings: bool = True) -> int:
        """Number of parameters (see `minigpt.model.count.count_parameters`)."""
        return count.count_parameters(self.config, embeddings)

    def flops_per_token(self, length: int | None = None) -> int:
        """Operations to train on one token (see `minigpt.model.count.flops_per_token`)."""
        return count.flops_per_token(self.config, length)

    def plan(
        self,
        ids: Tensor,
        *,
        cache: KVCache | None = None,
        positions: Tensor | None = None,
        document_ids: Tensor | None = None,
    ) -> Span:
        """Where the tokens stand and what they see; arguments as for `forward`."""
        if self.spread is not None:
            ids, positions = self.spread.pad(ids, 0), self.spread.pad(positions, 0)
            document_ids = self.spread.pad(document_ids, -1)
        (B, T), longest, window = ids.shape, self.config.context_length, self.config.attention_window
        window = self.training_window if self.training and cache is None else window
        if longest < T:
            raise ValueError(f"{T} tokens in a row are more than model.context_length={longest}: shorten the rows")
        if cache is None:
            span = plan_pass(T, ids.device, longest, window, positions, document_ids)
        elif document_ids is None:
            span = cache.plan(B, T, positions)
        else:
            raise ValueError("document_ids cannot be combined with a cache: give each document a row of its own")
        span.ids = ids
        return span
