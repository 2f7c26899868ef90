"""Context parallel: the tokens of a row are spread over processes, and for attention the heads are instead, so that
each process computes whole rows of some heads (DeepSpeed-Ulysses: Jacobs et al. 2023, arXiv:2309.14509, section 3).

Attention itself stays as it is, with all its options. Each token's queries, keys and values travel once, and what is
made of them travels back. Key heads that are fewer than the processes are repeated.
"""

from dataclasses import dataclass, field, fields, replace
from math import gcd
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt.model import GPT
from minigpt.model.attend import Attend
from minigpt.model.block import Block
from minigpt.model.loss import IGNORED, WHOLE
from minigpt.model.moe import MoE
from minigpt.model.span import Span
from minigpt.model.spread import Maybe
from minigpt.parallel.collectives import Team
from minigpt.parallel.vocab import SharedVocabulary
from minigpt.parallel.world import World

PLACE_SEED = 0xD1342543DE82EF95
"""An odd number without pattern (a multiplier of Steele & Vigna 2021), by which the seeds of the processes differ."""


def spread(model: GPT, world: World) -> None:
    """Let the blocks of this process compute its share of each row's tokens, after `tensor.split`.

    With neither tensor nor context parallel processes nothing changes.
    """
    tokens = Tokens(Team.of(world.group("tp")), Team.of(world.group("cp")), model.config.padded_vocab_size)
    if tokens.size == 1:
        return
    model.spread, model.routers.share = tokens, 1 / tokens.size
    if tokens.cp.size == 1:
        return
    for block in model.blocks.children():
        attention = cast(Block, block).attention
        options = {option.name: getattr(attention.attend, option.name) for option in fields(Attend)}
        attention.attend = AttendByHeads(**options, team=tokens.cp)
        mlp = cast(Block, block).mlp
        if isinstance(mlp, MoE):
            mlp.total = tokens.cp.sum


class Tokens:
    """Which tokens of each row are this process's: a `model.spread.Spread`.

    Rows are cut over the context-parallel processes, and what each has, between sub-layers, over the tensor-parallel
    ones, which are neighbours. The tensor-parallel ones share the vocabulary.
    """

    def __init__(self, tp: Team, cp: Team, vocabulary_rows: int) -> None:
        self.tp, self.cp = tp, cp
        self.size, self.place = tp.size * cp.size, cp.place * tp.size + tp.place
        first = vocabulary_rows * tp.place // tp.size
        self.vocabulary = WHOLE if tp.size == 1 else SharedVocabulary(tp, first, vocabulary_rows)

    def pad(self, tokens: Maybe, value: int) -> Maybe:
        """(B, T) with `value` behind, so that all processes have equally many; None stays None."""
        if tokens is None:
            return tokens
        return cast(Maybe, F.pad(tokens, (0, -tokens.size(1) % self.size), value=value))

    def own(self, x: Tensor) -> Tensor:
        """(B, T, C) to (B, t, C)."""
        return _share(x, self.place, self.size)

    def begin(self, span: Span, draws: bool) -> Span:
        """The positions and ids of the tokens that the products of this process see; views stay those of whole rows."""
        if draws and self.place:  # otherwise all would drop the same
            torch.manual_seed((torch.initial_seed() + self.place * PLACE_SEED) % 2**63)
        if self.cp.size == 1:
            return replace(span)
        assert span.ids is not None
        place, size = self.cp.place, self.cp.size
        return replace(span, positions=_share(span.positions, place, size), ids=_share(span.ids, place, size))

    def before_head(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states (B, t, E) and all targets (B, T) to those of this context-parallel process, all its tokens."""
        return self.tp.gather(hidden), _share(self.pad(targets, IGNORED), self.cp.place, self.cp.size)


def _share(x: Tensor, place: int, size: int) -> Tensor:
    """The tokens (dimension 1) of one of `size` processes."""
    length = x.size(1) // size
    return x[:, place * length : (place + 1) * length]


@dataclass(frozen=True)
class AttendByHeads(Attend):
    """As `Attend`, for queries, keys and values of which the other processes have the other tokens."""

    team: Team = field(default_factory=Team)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, span: Span, training: bool) -> Tensor:
        """q: (B, H, t, D), k: (B, Hkv, t, D), v: (B, Hkv, t, Dv) of the own tokens to (B, t, H, Dv)."""
        size = self.team.size
        repeats = size // gcd(size, k.size(1))
        if repeats > 1:
            k, v = (x.repeat_interleave(repeats, dim=1) for x in (k, v))
        q, k, v = self._by_heads(q, k, v)
        y = super().__call__(q, k, v, span, training)  # (B, T, H / size, Dv)
        B, T, heads, width = y.shape
        there = y.unflatten(1, (size, -1)).transpose(0, 1)  # (size, B, t, H / size, Dv)
        back = self.team.swap(there.flatten(1)).view(size, B, T // size, heads, width)
        return back.permute(1, 2, 0, 3, 4).flatten(2, 3)

    def _by_heads(self, *tensors: Tensor) -> list[Tensor]:
        """(B, heads, t, width) of the own tokens each to (B, heads / size, T, width), all by one message."""
        size = self.team.size
        pieces = [x.unflatten(1, (size, -1)).transpose(0, 1) for x in tensors]  # (size, B, heads / size, t, width)
        came = self.team.swap(torch.cat([piece.flatten(1) for piece in pieces], dim=1))
        parts = came.split([piece[0].numel() for piece in pieces], dim=1)
        shaped = [part.view(piece.shape) for part, piece in zip(parts, pieces, strict=True)]
        return [part.permute(1, 2, 0, 3, 4).flatten(2, 3) for part in shaped]
