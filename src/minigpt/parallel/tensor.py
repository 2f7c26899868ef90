"""Tensor parallel: each process has some heads of every attention, some of the inner dimensions of every feed-forward
layer and expert, and some of the vocabulary (Shoeybi et al. 2019, Megatron-LM, arXiv:1909.08053, section 3).

Between sub-layers each process has some of the tokens of every row instead, so that norms, dropout and the residual
stream are not computed by all (sequence parallel: Korthikanti et al. 2022, arXiv:2205.05198, section 4.2). A sub-layer
gathers the tokens, and what its processes make of them is summed and scattered by tokens again. So each process knows
only a part of the gradient of a parameter that is not cut: these parts are to be summed.

The modules stay what they are, only smaller, under their names; what they hold of each tensor is said by Parts.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.model import GPT
from minigpt.model.attention import Attention
from minigpt.model.autocast import compute_dtype
from minigpt.model.block import Block
from minigpt.model.experts import Experts
from minigpt.model.feedforward import MLP, GatedMLP
from minigpt.model.latent_attention import LatentAttention
from minigpt.model.moe import MoE
from minigpt.model.norm import RMSNorm
from minigpt.model.spread import Summand
from minigpt.parallel.collectives import Team
from minigpt.parallel.vocab import SharedEmbedding
from minigpt.parallel.world import World
from minigpt.storage.parts import Box, Part, Shape


class Split(NamedTuple):
    """What `split` did to a network."""

    parts: dict[str, Part]
    """By name, of the tensors that are cut: what is here."""
    summed: frozenset[str]
    """Names of the parameters whose gradients are to be summed over the tensor-parallel processes."""


def split(model: GPT, world: World) -> Split:
    """Leave this process its share of a whole network (or of a stage of one), which may be on the meta device.

    The network then needs `context.spread`, too. With one tensor-parallel process nothing changes.
    """
    team = Team.of(world.group("tp"))
    if team.size == 1:
        return Split({}, frozenset())
    cutter = _Cutter(model, team)
    for block in model.blocks.children():
        assert isinstance(block, Block)
        _ATTENTIONS[type(block.attention)](block.attention, cutter)
        _split_mlp(block.mlp, cutter)
    _split_vocabulary(model, cutter)
    trained = {name for name, _ in model.named_parameters()}
    return Split(cutter.parts, frozenset(trained - cutter.parts.keys()))


def part_of(shape: Shape, dim: int, sizes: list[int], team: Team) -> Part:
    """The part of a tensor of which dimension `dim` is made of pieces of these sizes: a share of each."""
    local, boxes, begins = 0, [], 0
    for size in sizes:
        start, stop = size * team.place // team.size, size * (team.place + 1) // team.size
        offset, extent, at = [0] * len(shape), list(shape), [0] * len(shape)
        offset[dim], extent[dim], at[dim] = begins + start, stop - start, local
        boxes.append(Box(tuple(offset), tuple(extent), tuple(at)))
        begins, local = begins + size, local + stop - start
    assert begins == shape[dim]
    return Part(shape, (*shape[:dim], local, *shape[dim + 1 :]), tuple(boxes))


class _Cutter:
    """Cuts parameters of a model's modules, and remembers how."""

    def __init__(self, model: nn.Module, team: Team) -> None:
        self.team = team
        self.parts: dict[str, Part] = {}
        self._names = {id(parameter): name for name, parameter in model.named_parameters()}

    def cut(self, module: nn.Module, key: str, dim: int, sizes: list[int]) -> nn.Parameter:
        """Leave `module.key` a share of each of its pieces along `dim`."""
        whole = module.get_parameter(key)
        part = part_of(tuple(whole.shape), dim, sizes, self.team)
        values = whole.new_empty(part.local) if whole.is_meta else part.cut(whole.detach())
        local = nn.Parameter(values, requires_grad=whole.requires_grad)
        setattr(module, key, local)
        self.parts[self._names[id(whole)]] = part
        return local

    def rows(self, linear: nn.Linear, sizes: list[int]) -> None:
        """A share of the outputs of a product."""
        linear.out_features = self.cut(linear, "weight", 0, sizes).size(0)
        if linear.bias is not None:
            self.cut(linear, "bias", 0, sizes)

    def columns(self, linear: nn.Linear) -> None:
        """A share of the inputs of a product, whose results are then to be summed."""
        linear.in_features = self.cut(linear, "weight", 1, [linear.in_features]).size(1)
        linear.__class__ = Summand


class _SharedNorm(RMSNorm):
    """An RMSNorm over the numbers of all processes, `width` in all, of which each has some."""

    def __init__(self, width: int, norm: RMSNorm, team: Team) -> None:
        nn.Module.__init__(self)
        self.width, self.eps, self.team = width, norm.eps, team
        self.weight = norm.weight

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., its share of width) to the same shape and dtype."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        squares = self.team.sum(wide.square().sum(-1, keepdim=True))
        normed = wide * torch.rsqrt(squares / self.width + self.eps)
        return (normed if self.weight is None else normed * self.weight).to(x.dtype)


def _split_attention(attention: nn.Module, cutter: _Cutter) -> None:
    assert isinstance(attention, Attention)
    D, queries, keys = attention.head_dim, attention.n_head, attention.n_kv_head
    cutter.rows(attention.qkv, [queries * D, keys * D, keys * D])
    cutter.columns(attention.out)
    if attention.has_value_embedding:
        cutter.cut(attention.value_embed, "weight", 1, [keys * D])
        cutter.rows(attention.value_gate, [keys])
    if attention.full_norm:
        for name, heads in (("q_norm", queries), ("k_norm", keys)):
            norm = cast(RMSNorm, getattr(attention, name))
            if norm.weight is not None:
                cutter.cut(norm, "weight", 0, [heads * D])
            setattr(attention, name, _SharedNorm(heads * D, norm, cutter.team))
    attention.n_head, attention.n_kv_head = queries // cutter.team.size, keys // cutter.team.size
    _enclose(attention, cutter.team, first="qkv", last="out")


def _split_latent_attention(attention: nn.Module, cutter: _Cutter) -> None:
    assert isinstance(attention, LatentAttention)
    queries = attention.q_up if attention.has_query_latent else attention.q
    for linear in (queries, attention.kv_up):
        cutter.rows(linear, [linear.out_features])
    cutter.columns(attention.out)
    attention.n_head //= cutter.team.size
    _enclose(attention, cutter.team, first="kv_down", last="out")


_ATTENTIONS: dict[type[nn.Module], Callable[[nn.Module, _Cutter], None]] = {
    Attention: _split_attention,
    LatentAttention: _split_latent_attention,
}


def _split_mlp(mlp: nn.Module, cutter: _Cutter) -> None:
    if isinstance(mlp, MoE):
        _split_experts(mlp.experts, cutter)
        if mlp.shared is not None:
            _split_products(mlp.shared, cutter)
        _enclose(mlp, cutter.team)
    else:
        _split_products(mlp, cutter)
        _enclose(mlp, cutter.team, first="gate_up" if isinstance(mlp, GatedMLP) else "up", last="down")


def _split_products(mlp: nn.Module, cutter: _Cutter) -> None:
    assert isinstance(mlp, MLP | GatedMLP)
    inner = mlp.down.in_features
    if isinstance(mlp, GatedMLP):
        cutter.rows(mlp.gate_up, [inner, inner])
    else:
        cutter.rows(mlp.up, [inner])
    cutter.columns(mlp.down)


def _split_experts(experts: Experts, cutter: _Cutter) -> None:
    inner = experts.down.size(2)
    cutter.cut(experts, *(("gate_up", 1, [inner, inner]) if experts.gated else ("up", 1, [inner])))
    cutter.cut(experts, "down", 2, [inner])


def _split_vocabulary(model: GPT, cutter: _Cutter) -> None:
    """The rows of the embedding and of the head, as far as they are here (a stage may have neither)."""
    if isinstance(model.embed, nn.Embedding):
        size = model.embed.num_embeddings
        weight = cutter.cut(model.embed, "weight", 0, [size])
        model.embed = SharedEmbedding(weight, cutter.team, size * cutter.team.place // cutter.team.size)
    if model.head is not None:
        cutter.rows(model.head, [model.head.out_features])


def _enclose(module: nn.Module, team: Team, *, first: str | None = None, last: str | None = None) -> None:
    """Around a sub-layer: gather the tokens; sum what the processes made of them, and keep the own tokens of it.

    first: name of a product that reads the tokens, which are cast to its dtype beforehand so that less travels; None:
        something reads them as they are (a router).
    last: name of the last product, of which the bias is then added, once. Dropout comes last.
    """
    dropout: float = cast(Any, module).dropout
    cast(Any, module).dropout = 0.0

    def before(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        x, *others = inputs
        x = x if first is None else x.to(compute_dtype(_product(module, first).weight))
        return (team.gather(x), *others)

    def after(module: nn.Module, inputs: tuple[Any, ...], y: Tensor) -> Tensor:
        y, bias = team.sum_and_scatter(y), None if last is None else _product(module, last).bias
        if bias is not None:
            y = y + bias.to(y.dtype)
        return F.dropout(y, dropout, module.training)

    module.register_forward_pre_hook(before)
    module.register_forward_hook(after)


def _product(module: nn.Module, name: str) -> nn.Linear:
    return cast(nn.Linear, getattr(module, name))
