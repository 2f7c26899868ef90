"""Pipeline parallel: each process holds some consecutive blocks and hands the residual stream on to the next.

The first stage has the embedding besides, the last one the final norm and the head; a tied embedding is on both, and
so are the few numbers that belong to all layers at once: their gradients are summed. Which micro-batch goes where, and
when, is the business of `torch.distributed.pipelining`: all forward, then all backward (Huang et al. 2019, GPipe,
arXiv:1811.06965), or one forward, one backward, which keeps the activations of at most as many micro-batches as there
are stages (Narayanan et al. 2021, Megatron-LM, arXiv:2104.04473, section 2.2).

Only hidden states travel. Every process has the batches, so each stage knows the tokens, their positions and documents
by itself. What a step computes is what one process computes, in the same arithmetic.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.config import ModelConfig
from minigpt.model import GPT
from minigpt.model.gpt import Stream
from minigpt.model.loss import IGNORED
from minigpt.model.moe import MoE
from minigpt.model.routing import Routers
from minigpt.parallel.parallel import Batch, Parallel, Pass
from minigpt.parallel.replicated import sum_in_place
from minigpt.storage.parts import Part

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

BUCKET = 2**23
"""Numbers that are summed between processes at once: fewer wait for the network, more take memory."""
STAGE_SEED = 0x9E3779B97F4A7C15
"""An odd number without pattern (the golden ratio's bits), by which the seeds of the stages differ."""


class Stage(GPT):
    """One stage of a GPT: what is elsewhere is the identity here, and what is here has its canonical name.

    Its forward pass takes `received` from the stage before and returns what the next stage is to receive; the last one
    returns the summed loss.

    Args:
        config: of the whole network.
        place, stages: which stage of how many.

    Attributes:
        parts: what is here of each parameter and buffer, and how many stages have the same.
        shared: names of the parameters that several stages have: all stages, or the two ends.
        received: ([n], B, T, C) from the stage before.
        scale: what the loss is multiplied by before its backward pass.
    """

    def __init__(self, config: ModelConfig, place: int, stages: int) -> None:
        super().__init__(config)
        self.place, self.stages = place, stages
        self.is_first, self.is_last = place == 0, place == stages - 1
        self.received: Tensor | None = None
        self.scale = 1.0
        here = stage_layers(config.n_layer, place, stages)
        for layer in set(range(config.n_layer)) - set(here):
            delattr(self.blocks, str(layer))
        self.routers = Routers([module for module in self.blocks.modules() if isinstance(module, MoE)])
        if not self.is_first:
            self._leave_out_entrance()
        if not self.is_last:
            self.norm, self.head_down, self.head, self.backout_scale = nn.Identity(), nn.Identity(), None, None
        ends = {"embed.weight"} if config.tie_embeddings and (self.is_first or self.is_last) else set()
        everywhere = {"residual_scale.weight", "input_scale.weight"} if config.speed.residual_scalars else set()
        self.shared = {"ends": sorted(ends), "all": sorted(everywhere)}
        self.parts = {name: Part.whole(tensor.shape) for name, tensor in self.state_dict().items()}
        for name in ends:
            self.parts[name] = Part.whole(self.parts[name].shape, int(self.is_last), 2)
        for name in everywhere:
            self.parts[name] = Part.whole(self.parts[name].shape, place, stages)

    def _leave_out_entrance(self) -> None:
        if not (self.is_last and self.config.tie_embeddings):
            self.embed = nn.Identity()
        self.embed_up, self.embedding_norm = nn.Identity(), nn.Identity()
        self.smear_gate = self.smear_scale = None
        if hasattr(self.position, "weight"):
            del self.position.weight  # positions are added to the embedding; a rotation takes place in every layer

    def forward(  # type: ignore[override]
        self, ids: Tensor, *, targets: Tensor, positions: Tensor | None = None, document_ids: Tensor | None = None
    ) -> Tensor:
        """This stage's share of a pass: arguments as for `GPT.forward`."""
        span = self.plan(ids, positions=positions, document_ids=document_ids)
        if self.training and self.config.dropout and not self.is_first:
            torch.manual_seed((torch.initial_seed() + self.place * STAGE_SEED) % 2**63)  # not the first stage's masks
        if self.received is None:
            x = self.enter(span, positions=positions, document_ids=document_ids)
            stream = Stream(x, x, x)
        else:
            stream = self._unpacked(self.received)
        stream = self.through_blocks(stream, span)
        if self.is_last:
            return self.summed_loss(self.leave(stream), targets)
        return self._with_auxiliary_losses(self._packed(stream), targets)

    @property
    def carried(self) -> tuple[str, ...]:
        """What goes from one stage to the next."""
        speed = self.config.speed
        return ("x", *["first"] * speed.residual_scalars, *["middle"] * speed.backout)

    def _packed(self, stream: Stream) -> Tensor:
        if len(self.carried) == 1:
            return stream.x
        return torch.stack([getattr(stream, name) for name in self.carried])

    def _unpacked(self, received: Tensor) -> Stream:
        values = [received] if len(self.carried) == 1 else received.unbind()
        named = dict(zip(self.carried, values, strict=True))
        return Stream(named["x"], named.get("first", named["x"]), named.get("middle", named["x"]))

    def _with_auxiliary_losses(self, x: Tensor, targets: Tensor) -> Tensor:
        """`x`, whose backward pass sees the auxiliary losses of this stage's experts besides."""
        if all(layer.routing is None for layer in self.routers.layers):
            return x
        weight = self.scale * (targets != IGNORED).sum()
        attached: Tensor = _Attached.apply(x, self.routers.auxiliary_loss() * weight)
        return attached


def stage_layers(n_layer: int, place: int, stages: int) -> range:
    """The blocks of a stage: equally many, and of what is left over one each for the first stages, since the last one
    has the head."""
    size, more = divmod(n_layer, stages)
    start = place * size + min(place, more)
    return range(start, start + size + (place < more))


class PipelineParallel(Parallel):
    """A stage, its schedule, and how gradients are summed; `inner` is what the stage is without the others.

    kind: the schedule. With fewer micro-batches than stages both do the same.
    """

    def __init__(self, inner: Parallel, kind: Literal["1f1b", "gpipe"]) -> None:
        self.inner, self.world = inner, inner.world
        self.parts, self.shapes = inner.parts, inner.shapes
        self.model, self.network = inner.model, inner.network
        self.kind = kind
        self._passes = _Passes(self.stage, self.network, self.world.sizes["tp"] * self.world.sizes["cp"])
        self._schedules: dict[bool, tuple[tuple[int, ...], Any]] = {}

    @property
    def stage(self) -> Stage:
        """The model."""
        assert isinstance(self.model, Stage)
        return self.model

    def forward_backward(self, numbers: Sequence[int], batches: Sequence[Batch], run: Pass, scale: float) -> Tensor:
        """As without stages; only the last stage knows the losses, the others return 0."""
        return self._run(numbers, batches, run, scale, backward=True)

    def forward(self, numbers: Sequence[int], batches: Sequence[Batch], run: Pass) -> Tensor:
        """As without stages; only the last stage knows the losses, the others return 0."""
        with torch.no_grad():
            total = self._run(numbers, batches, run, 1.0, backward=False)
        return total + self.inner.forward((), (), run)  # what it does after a pass

    def _run(
        self, numbers: Sequence[int], batches: Sequence[Batch], run: Pass, scale: float, *, backward: bool
    ) -> Tensor:
        self._passes.begin(numbers, batches, run, scale)
        schedule = self._schedule(len(batches), backward)
        index = torch.arange(len(batches))
        try:
            schedule.step(index=index, target=index if backward else None, return_outputs=False)
        except RuntimeError as error:
            if isinstance(error.__cause__, Exception) and "failed to run forward" in str(error):
                raise error.__cause__ from None  # what went wrong, without the list of arguments around it
            raise
        return self._passes.end()

    def _schedule(self, count: int, backward: bool) -> Any:
        """The schedule for so many micro-batches of the passes' shape; made anew when these change."""
        from torch.distributed.pipelining import Schedule1F1B, ScheduleGPipe

        passes, stage = self._passes, self.stage
        key = (count, passes.rows, passes.tokens)
        if self._schedules.get(backward, ((), None))[0] != key:
            weight = next(stage.parameters())
            several = [len(stage.carried)] if len(stage.carried) > 1 else []
            shape = (*several, passes.rows, passes.tokens, stage.config.n_embd)
            example = torch.empty(shape, dtype=weight.dtype, device="meta", requires_grad=backward)
            piece = _make_piece(passes, weight.device, example, self)
            kind = Schedule1F1B if self.kind == "1f1b" and count >= stage.stages else ScheduleGPipe
            schedule = kind(piece, count, loss_fn=_as_it_is if backward else None, scale_grads=False)
            self._schedules[backward] = key, schedule
        return self._schedules[backward][1]

    # ---- gradients and tensors -----------------------------------------------------------------------------------

    def accumulating(self, last: bool) -> AbstractContextManager[object]:
        """As without stages."""
        return self.inner.accumulating(last)

    @torch.no_grad()
    def finish_gradients(self) -> None:
        """As without stages, and besides: over the copies of the stage, and over the stages that have the same."""
        self.inner.finish_gradients()
        gradients = {name: self.local(_gradient(p)) for name, p in self.model.named_parameters() if p.requires_grad}
        copies, stages = self.world.group("dp", "cp"), self.world.group("pp")
        assert stages is not None
        if copies is not None and self.world.sizes["fsdp"] == 1:
            sum_gradients(list(gradients.values()), copies)
        sum_gradients([gradients[name] for name in self.stage.shared["all"]], stages)
        for name in self.stage.shared["ends"]:
            self._sum_ends(gradients[name], stages)

    def _sum_ends(self, mine: Tensor, group: "ProcessGroup") -> None:
        """Add the other end's gradient of a parameter that the first and the last stage have."""
        import torch.distributed as dist

        sent, other = mine.contiguous(), torch.empty_like(mine, memory_format=torch.contiguous_format)
        peer = dist.get_global_rank(group, self.stage.stages - 1 if self.stage.is_first else 0)
        for work in dist.batch_isend_irecv(
            [dist.P2POp(dist.isend, sent, peer, group), dist.P2POp(dist.irecv, other, peer, group)]
        ):
            work.wait()
        mine.add_(other)  # a + b and b + a are the same bits, so that both copies stay equal

    def local(self, tensor: Tensor) -> Tensor:
        """As without stages."""
        return self.inner.local(tensor)


def sum_gradients(gradients: Sequence[Tensor], group: "ProcessGroup") -> None:
    """Sum these tensors over a group's processes, in place, some at a time."""
    bucket: list[Tensor] = []
    for gradient in gradients:
        if bucket and sum(g.numel() for g in bucket) + gradient.numel() > BUCKET:
            sum_in_place(bucket, group)
            bucket = []
        bucket.append(gradient)
    sum_in_place(bucket, group)


def _gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


class _Passes(nn.Module):
    """The stage as a schedule calls it: with the number of a micro-batch, of which everything but the hidden states is
    known here already.

    Hidden states travel in tensors of one shape, as schedules want it: what shorter rows, and fewer, leave of it is
    zeros, which nobody reads. split: over how many processes the tokens of a row are spread.
    """

    def __init__(self, stage: Stage, network: nn.Module, split: int) -> None:
        super().__init__()
        self.stage, self.network, self.split = stage, network, split
        self.numbers: Sequence[int] = ()
        self.batches: Sequence[Batch] = ()
        self.losses: list[Tensor] = []

    def begin(self, numbers: Sequence[int], batches: Sequence[Batch], run: Pass, scale: float) -> None:
        """What the next calls are about."""
        self.numbers, self.batches, self.run = numbers, batches, run
        self.stage.scale = self.scale = scale
        shapes = [self._here(batch) for batch in batches]
        self.rows, self.tokens = (max(sizes) for sizes in zip(*shapes, strict=True))
        self.losses = []

    def end(self) -> Tensor:
        """The sum of the losses, on the device."""
        self.batches = ()
        device = next(self.stage.parameters()).device
        return torch.stack([torch.zeros((), device=device), *self.losses]).sum()

    def forward(self, *received: Tensor, index: Tensor) -> Tensor:
        """The next stage's hidden states, or the loss times the scale."""
        i, stage = int(index), self.stage
        rows, tokens = self._here(self.batches[i])
        stage.received = received[0][..., :rows, :tokens, :] if received else None
        result = self.run(self.numbers[i], self.network, self.batches[i])
        stage.received = None
        if stage.is_last:
            self.losses.append(result.detach())
            return result * self.scale
        wide = result.to(next(stage.parameters()).dtype)
        return F.pad(wide, (0, 0, 0, self.tokens - tokens, 0, self.rows - rows)).contiguous()

    def _here(self, batch: Batch) -> tuple[int, int]:
        """Rows, and tokens of each, whose hidden states this process has."""
        rows, tokens = batch["ids"].shape
        return rows, -(-tokens // self.split)


def _make_piece(passes: _Passes, device: torch.device, example: Tensor, parallel: "PipelineParallel") -> Any:
    """The stage in the form that torch's schedules take."""
    from torch.distributed.pipelining import PipelineStage

    class Piece(PipelineStage):
        def backward_one_chunk(
            self, bwd_chunk_id: int, loss: Any = None, full_backward: bool = True, last_backward: bool = False
        ) -> None:
            with parallel.accumulating(last_backward):
                super().backward_one_chunk(bwd_chunk_id, loss, full_backward, last_backward)

    stage = passes.stage
    loss = torch.empty((), device="meta", requires_grad=example.requires_grad)
    return Piece(
        passes,
        stage.place,
        stage.stages,
        device,
        input_args=() if stage.is_first else example,
        output_args=loss if stage.is_last else example,
        group=parallel.world.group("pp"),
    )


def _as_it_is(loss: Tensor, target: Tensor) -> Tensor:
    return loss


class _Attached(torch.autograd.Function):
    """The first argument; the gradient of the second is 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, auxiliary: Tensor) -> Tensor:
        ctx.one = torch.ones_like(auxiliary)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, d_x: Tensor) -> tuple[Tensor, Tensor]:
        return d_x, ctx.one
