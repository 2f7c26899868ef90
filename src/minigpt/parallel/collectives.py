"""What processes of a group do with a tensor together, so that gradients flow back and the compiler can follow.

These are PyTorch's functional collectives, whose derivatives are the opposite collectives: of gathering it is summing
and scattering, of an all-to-all the way back; a sum gives back the sum of the gradients (Shoeybi et al. 2019,
Megatron-LM, arXiv:1909.08053, section 3; Korthikanti et al. 2022, arXiv:2205.05198, section 4.2).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class Team:
    """The processes of a group, as its collectives need to know them. One that is alone has nothing to do."""

    size: int = 1
    place: int = 0
    """This process's number in the group."""
    name: str = ""
    """The group's, by which PyTorch finds it."""

    @classmethod
    def of(cls, group: "ProcessGroup | None") -> "Team":
        """The processes of a group; None is this process alone."""
        if group is None:
            return cls()
        import torch.distributed._functional_collectives  # noqa: F401  (brings the operators' derivatives)

        return cls(group.size(), group.rank(), group.group_name)

    def sum(self, x: Tensor) -> Tensor:
        """The sum of all processes' tensors of this shape, on every process."""
        return x if self.size == 1 else self._reduce(x, "sum")

    @torch.no_grad()
    def max(self, x: Tensor) -> Tensor:
        """The largest of all processes' tensors of this shape, on every process. No gradient."""
        return x if self.size == 1 else self._reduce(x, "max")

    def _reduce(self, x: Tensor, by: Literal["sum", "max"]) -> Tensor:
        return _done(torch.ops._c10d_functional.all_reduce(x.contiguous(), by, self.name))

    def gather(self, x: Tensor) -> Tensor:
        """(B, t, C) of each process to (B, size * t, C) of all, in the order of their places."""
        if self.size == 1:
            return x
        gathered = torch.ops._c10d_functional.all_gather_into_tensor(x.contiguous(), self.size, self.name)
        return _done(gathered).unflatten(0, (self.size, -1)).transpose(0, 1).flatten(1, 2)

    def sum_and_scatter(self, x: Tensor) -> Tensor:
        """(B, size * t, C) of each process to (B, t, C): the sum of all, of which each process gets its tokens."""
        if self.size == 1:
            return x
        by_place = x.unflatten(1, (self.size, -1)).transpose(0, 1).flatten(0, 1).contiguous()  # (size * B, t, C)
        return _done(torch.ops._c10d_functional.reduce_scatter_tensor(by_place, "sum", self.size, self.name))

    def swap(self, x: Tensor) -> Tensor:
        """(size, n): row i goes to the process at place i, and what comes is in the order of the places."""
        if self.size == 1:
            return x
        each = [1] * self.size
        return _done(torch.ops._c10d_functional.all_to_all_single(x.contiguous(), each, each, self.name))


def _done(started: Tensor) -> Tensor:
    """The result of a collective, which is waited for by the device."""
    result: Tensor = torch.ops._c10d_functional.wait_tensor(started)
    return result
