"""What the training loop asks of the processes: a step's passes, its gradients, and what each process holds.

This is the form of a single process, where each of these is trivial. `build.py` makes the others.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from minigpt.model import GPT
from minigpt.parallel.world import World
from minigpt.storage.parts import Part, Shape

if TYPE_CHECKING:
    from minigpt.parallel.exchange import Exchange

Batch = dict[str, Tensor]
Pass = Callable[[int, nn.Module, Batch], Tensor]
"""(number of the micro-batch in the step, network, batch) to the sum of the loss; sets arithmetic and seeds itself."""


class Parallel:
    """A model on this process and its share of the work.

    Attributes:
        model: the network, or what of it this process holds, under the canonical names.
        network: what a training pass calls: `model` itself, or what is wrapped around it.
        parts: by name, of every parameter and buffer that `model` has: what this process holds of it.
        shapes: by name, of every parameter and buffer of the whole network, in its order.
    """

    def __init__(self, model: GPT, world: World | None = None) -> None:
        self.world = world or World()
        self.model, self.network = model, model
        self.shapes: dict[str, Shape] = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        self.parts: dict[str, Part] = {name: Part.whole(shape) for name, shape in self.shapes.items()}

    # ---- a step --------------------------------------------------------------------------------------------------

    def forward_backward(self, numbers: Sequence[int], batches: Sequence[Batch], run: Pass, scale: float) -> Tensor:
        """Passes over this process's micro-batches; gradients of `scale` times the loss accumulate.

        numbers: which micro-batches of the step they are. Returns the sum of the losses, on the device.
        """
        total = self.zero()
        for i, (number, batch) in enumerate(zip(numbers, batches, strict=True)):
            with self.accumulating(last=i + 1 == len(batches)):
                loss = run(number, self.network, batch)
                (loss * scale).backward()
            total += loss.detach()
        return total

    def forward(self, numbers: Sequence[int], batches: Sequence[Batch], run: Pass) -> Tensor:
        """The sum of the losses without gradients. Every process must bring equally many micro-batches."""
        total = self.zero()
        with torch.no_grad():
            for number, batch in zip(numbers, batches, strict=True):
                total += run(number, self.network, batch)
        return total

    def accumulating(self, last: bool) -> AbstractContextManager[object]:
        """Around the passes of a micro-batch; gradients are exchanged at the latest in the last one of a step."""
        return nullcontext()

    def finish_gradients(self) -> None:
        """After the last pass of a step: what remains to be summed between processes."""

    def zero(self) -> Tensor:
        """Where losses are summed, on the device: in float64, where it has that, since they may be many."""
        device = next(self.model.parameters()).device
        return torch.zeros((), dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)

    # ---- tensors -------------------------------------------------------------------------------------------------

    def local(self, tensor: Tensor) -> Tensor:
        """The plain tensor on this process of a parameter, gradient or buffer (of a DTensor its local one)."""
        return tensor

    def squares(self, gradients: dict[str, Tensor]) -> Tensor:
        """This process's share of the sum of the squares of all gradients: summed over processes, the whole of it."""
        values = [(self.local(g), self.parts[name].copies) for name, g in gradients.items()]
        shares = [torch.linalg.vector_norm(g, dtype=torch.float32).square() / copies for g, copies in values]
        return torch.stack(shares).sum() if shares else torch.zeros(())

    def exchange(self, parts: Mapping[str, Part], owners: Mapping[str, int]) -> "Exchange":
        """Between parts of tensors and their owners, of all processes with the same parameters: those of a stage.

        owners: by name, a number among them. Every one of them must call it alike.
        """
        from minigpt.parallel.exchange import Exchange, GroupLink

        device = next(self.model.parameters()).device
        return Exchange(parts, owners, GroupLink(self.world.group("dp", "fsdp", "cp", "tp")), device=device)
