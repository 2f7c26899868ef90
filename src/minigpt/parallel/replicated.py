"""Data parallel: every process has the whole network (or what tensor parallel leaves of it) and other rows.

Gradients are summed in buckets while the backward pass goes on, as in PyTorch's DistributedDataParallel (Li et al.
2020, arXiv:2006.15704, section 3.2), with two differences. They are summed, not averaged, since the loss is divided by
the valid targets of the whole step already. And what is in which bucket never changes: DistributedDataParallel orders
its buckets anew after the first step of a process, so that a run which goes on after an interruption adds in another
order than one which was not interrupted, and differs from it in the last bits.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from minigpt.model import GPT
from minigpt.parallel.parallel import Parallel
from minigpt.parallel.world import World

BUCKET_NUMBERS = 1 << 23
"""Gradients that are summed by one message (32 MB of fp32): fewer wait for the network, more wait for each other."""


class SpreadParallel(Parallel):
    """What all layouts of several processes share.

    summed: names of the parameters of which each tensor-parallel process has a part of the gradient.
    """

    def __init__(self, model: GPT, world: World, summed: frozenset[str] = frozenset()) -> None:
        super().__init__(model, world)
        self.summed = summed

    @torch.no_grad()
    def finish_gradients(self) -> None:
        """Sum over the tensor-parallel processes what they have in parts."""
        group = self.world.group("tp")
        if group is not None:
            gradients = [p.grad for name, p in self.model.named_parameters() if name in self.summed]
            sum_in_place([self.local(gradient) for gradient in gradients if gradient is not None], group)


class ReplicatedParallel(SpreadParallel):
    """Copies of the network, which context-parallel processes have as well."""

    def __init__(self, model: GPT, world: World, summed: frozenset[str] = frozenset()) -> None:
        super().__init__(model, world, summed)
        self._last = False
        group = world.group("dp", "cp")
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        # the gradients of what is used last come first
        self._buckets = [] if group is None else [_Bucket(members, group) for members in _bucketed(trained[::-1])]
        self._sent: int | None = None  # buckets on their way; None between two steps
        for bucket in self._buckets:
            for parameter in bucket.parameters:
                parameter.register_post_accumulate_grad_hook(self._arrival_in(bucket))

    @contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        """Gradients are summed over the processes while the last backward pass goes on."""
        self._last = last
        if last:
            self._sent = 0
            for bucket in self._buckets:
                bucket.missing = len(bucket.parameters)
        try:
            yield
        finally:
            self._last = False

    def finish_gradients(self) -> None:
        """Wait for the sums."""
        if self._sent is not None:
            for bucket in self._buckets[self._sent :]:  # of parameters that nothing used
                bucket.send()
            for bucket in self._buckets:
                bucket.receive()
            self._sent = None
        super().finish_gradients()

    def _arrival_in(self, bucket: "_Bucket") -> Callable[[Tensor], None]:
        def arrived(parameter: Tensor) -> None:
            if not self._last or self._sent is None:
                return
            bucket.missing -= 1
            while self._sent < len(self._buckets) and not self._buckets[self._sent].missing:
                self._buckets[self._sent].send()  # in the same order on every process
                self._sent += 1

        return arrived


class _Bucket:
    """Gradients that travel together, each followed by whether there is one."""

    def __init__(self, parameters: list[nn.Parameter], group: dist.ProcessGroup) -> None:
        self.parameters, self.group, self.missing = parameters, group, 0
        self.sizes = [parameter.numel() for parameter in parameters]
        self._flat: Tensor | None = None
        self._work: dist.Work | None = None

    @torch.no_grad()
    def send(self) -> None:
        """Begin to sum."""
        there = [parameter.grad is not None for parameter in self.parameters]
        numbers = [
            torch.zeros_like(parameter).flatten() if parameter.grad is None else parameter.grad.flatten()
            for parameter in self.parameters
        ]
        flags = numbers[0].new_ones(len(there)) if all(there) else numbers[0].new_tensor(there)
        self._flat = torch.cat([*numbers, flags])
        self._work = dist.all_reduce(self._flat, group=self.group, async_op=True)

    @torch.no_grad()
    def receive(self) -> None:
        """The sums become the gradients. What no process has a gradient of keeps none."""
        assert self._flat is not None and self._work is not None
        self._work.wait()
        *sums, there = self._flat.split([*self.sizes, len(self.sizes)])
        for i, (parameter, values) in enumerate(zip(self.parameters, sums, strict=True)):
            if parameter.grad is not None:
                parameter.grad.copy_(values.view_as(parameter))
            elif there[i]:
                parameter.grad = values.view_as(parameter).clone()
        self._flat = self._work = None


def _bucketed(parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Neighbours together, up to `BUCKET_NUMBERS` of them and of one dtype."""
    buckets: list[list[nn.Parameter]] = []
    room = 0
    for parameter in parameters:
        if not buckets or parameter.numel() > room or parameter.dtype != buckets[-1][0].dtype:
            buckets.append([])
            room = BUCKET_NUMBERS
        buckets[-1].append(parameter)
        room -= parameter.numel()
    return buckets


def sum_in_place(tensors: list[Tensor], group: dist.ProcessGroup) -> None:
    """Sum each tensor over the processes of the group, all by one message."""
    if not tensors:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat, group=group)
    for tensor, values in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(values.view_as(tensor))
