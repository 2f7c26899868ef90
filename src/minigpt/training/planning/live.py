"""Which tensors' memory lives at which moment of a computation that is not done: shapes are followed, numbers are not.

PyTorch's fake tensors know their shape, dtype and storage but hold no data (`torch._subclasses.fake_tensor`). Running
a training step on them makes, keeps and frees the same storages as a real one, at once and for any size.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from minigpt.model import loss


@dataclass
class Block:
    """A storage that was made."""

    size: int
    """Bytes."""
    phase: str
    """What was being done when it was made."""


class Storages(TorchDispatchMode):
    """Keeps the books of all storages made within it.

    Attributes:
        blocks: every storage so far, in the order in which they were made.
        events: (number of a block, whether it was made or freed), in the order of time.
        phase: what is being done; written to every block that is made.
    """

    def __init__(self) -> None:
        super().__init__()
        self.blocks: list[Block] = []
        self.events: list[tuple[int, bool]] = []
        self.phase = "other"
        self._alive: dict[int, int] = {}  # address of a storage: number of its block
        self._recording = True

    def number(self, tensor: Tensor) -> int:
        """The number of a tensor's block, which is new if nobody has seen it."""
        storage = tensor.untyped_storage()
        address = storage._cdata
        known = self._alive.get(address)
        if known is not None:
            return known
        number = self._alive[address] = len(self.blocks)
        self.blocks.append(Block(storage.nbytes(), self.phase))
        self.events.append((number, True))
        weakref.finalize(storage, self._gone, address, number).atexit = False
        return number

    def _gone(self, address: int, number: int) -> None:
        self._alive.pop(address, None)
        self.events.append((number, False))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return args[0].dtype.is_floating_point * 0.0 or 0  # nothing has a value; none of the shapes depends on it
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor):
                self.number(tensor)
        return out

    def peak(self, part: Callable[[int], str]) -> dict[str, int]:
        """Bytes by part at the moment when most are alive. part: the number of a block to the name of its part."""
        live = most = at = 0
        for i, (number, made) in enumerate(self.events):
            live += self.blocks[number].size if made else -self.blocks[number].size
            if live > most:
                most, at = live, i
        parts: dict[str, int] = {}
        for number, made in self.events[: at + 1]:
            name = part(number)
            parts[name] = parts.get(name, 0) + (self.blocks[number].size if made else -self.blocks[number].size)
        return parts


class AsOnGPU(TorchFunctionMode):
    """Lets the network take the paths that it takes on a GPU, with fake tensors of the CPU: no GPU is needed.

    A PyTorch without CUDA can make fake CUDA tensors but not differentiate them.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _IS_CUDA:
            return True
        if func is _IS_CPU:
            return False
        if func is F.scaled_dot_product_attention:
            return _fused(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


_IS_CUDA, _IS_CPU = torch.Tensor.is_cuda.__get__, torch.Tensor.is_cpu.__get__  # type: ignore[attr-defined]


def _fused(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    """What a fused kernel of a GPU takes and keeps: as the CPU's, which knows fewer shapes."""
    if q.size(-1) == v.size(-1):
        mask = options.get("attn_mask")
        out, _ = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, mask is None, attn_mask=None if mask is None else mask.to(q.dtype), scale=1.0
        )
        return cast(Tensor, out)
    return cast(Tensor, _Fused.apply(q, k, v))


class _Fused(torch.autograd.Function):
    """What a fused attention kernel keeps (FlashAttention 2, Dao 2023, section 3.1): its inputs, its output, and a
    number a query."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = q.new_empty(*q.shape[:3], v.size(-1))
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:3], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:
        q, k, v, *_ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


@contextmanager
def simulation(on_gpu: bool) -> Iterator[Storages]:
    """Within it tensors are fake; gives the books of their storages. on_gpu: take the paths of a GPU.

    Of the loss's many equal pieces two are followed: each of the others takes the place of the one before it.
    """
    saved = dict(loss.CHUNK_BYTES), dict(loss.SLICE_BYTES), loss._chunks, loss._slices
    loss._chunks, loss._slices = _first_two(loss._chunks), _first_two(loss._slices)
    try:
        with FakeTensorMode(), Storages() as books:
            if not on_gpu:
                yield books
                return
            loss.CHUNK_BYTES.clear()
            loss.SLICE_BYTES.clear()
            with AsOnGPU():
                yield books
    finally:
        loss.CHUNK_BYTES.update(saved[0])
        loss.SLICE_BYTES.update(saved[1])
        loss._chunks, loss._slices = saved[2:]


def _first_two(pieces: Callable[..., Iterator[slice]]) -> Callable[..., Iterator[slice]]:
    return lambda *arguments: islice(pieces(*arguments), 2)
