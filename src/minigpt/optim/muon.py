"""Muon: a matrix moves by its momentum made orthogonal, so that all directions of its input and output count alike.

Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks". Updates of AdamW's size, so that one
learning rate and weight decay suit both: Liu et al. 2025, "Muon is Scalable for LLM Training", arXiv:2502.16982,
equation 4. NorMuon: Li et al. 2025, arXiv:2510.05491, algorithm 1. Cautious weight decay: Chen et al. 2025,
arXiv:2510.12402.

On several processes the momentum is where the parameter is, cut as that is cut. What is to be made orthogonal is
collected, whole, at the matrix's owner, and its update is spread from there: each process does its share of the work.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from minigpt.config.optimizer import MuonConfig
from minigpt.optim.orthogonal import orthogonalise

FIRST_MOMENTUM = 0.85
"""Where momentum begins that rises over the first steps (modded-nanogpt)."""

EPS = 1e-10
"""Added to NorMuon's root mean squares."""

NUMBERS_AT_ONCE = 1 << 26
"""About how many numbers are made orthogonal together, which bounds the memory besides the state."""

Sections = Callable[[str, int], Sequence[int]]
"""(name, rows) to how many rows each of the matrices has that a parameter is made of."""


class Exchange(Protocol):
    """Between what each process holds of some tensors and their owners, which get them whole."""

    def collect(self, local: Mapping[str, Tensor], names: Sequence[str] | None = None) -> dict[str, Tensor]:
        """From what this process holds to the whole tensors that it owns."""

    def spread(self, whole: Mapping[str, Tensor], names: Sequence[str] | None = None) -> dict[str, Tensor]:
        """From the whole tensors that this process owns to what it holds of all."""


class Muon:
    """The update of one group's matrices.

    Of each parameter the state is `step` (a scalar), `momentum` (as the parameter) and, with NorMuon, `second_moment`
    (..., rows), whole on every process.

    Args:
        config: the options.
        sections: where one parameter is several matrices.
        exchange: of the parameters by NAME, and with NorMuon of the second moments by NAME.second_moment; None where
            this process holds everything and does all of the work.
        dtype: of the arithmetic that makes matrices orthogonal.
    """

    def __init__(
        self,
        config: MuonConfig,
        sections: Sections,
        exchange: Exchange | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.config, self.sections, self.exchange, self.dtype = config, sections, exchange, dtype

    def fresh(self, local: Tensor, shape: Sequence[int]) -> dict[str, Tensor]:
        """The state before the first step of a parameter of this whole `shape`, held here as `local`."""
        state = {"step": torch.zeros((), dtype=torch.float32), "momentum": torch.zeros_like(local)}
        if self.config.normalise:
            state["second_moment"] = torch.zeros(tuple(shape[:-1]), dtype=torch.float32, device=local.device)
        return state

    def update(
        self, names: list[str], local: list[Tensor], gradients: list[Tensor], states: list[dict[str, Tensor]],
        group: dict[str, Any], factor: float,
    ) -> None:  # fmt: skip
        """One step of the parameters `local` (what is held here of them), in place, with the gradients times `factor`.

        group: its `lr` and `weight_decay`.
        """
        ahead = dict(zip(names, self._ahead(gradients, states, factor), strict=True))
        moments: dict[str, Tensor] = {}
        if self.config.normalise:
            moments = {name: state["second_moment"] for name, state in zip(names, states, strict=True)}
        if self.exchange is None:
            self._become_updates(ahead, moments)
        else:
            own = self.exchange.collect(ahead, names)
            self._become_updates(own, moments)
            own |= {_moment(name): moments[name] for name in own if name in moments}
            ahead = self.exchange.spread(own, [*names, *map(_moment, moments)])
            for name, moment in moments.items():
                moment.copy_(ahead[_moment(name)])
        self._apply(local, [ahead[name] for name in names], group["lr"], group["weight_decay"])

    def _ahead(self, gradients: list[Tensor], states: list[dict[str, Tensor]], factor: float) -> list[Tensor]:
        """Add the gradients to the momenta; what is to be made orthogonal, new tensors of the same shapes."""
        warmup, momentum = self.config.momentum_warmup_steps, self.config.momentum
        if warmup:
            done = min(1.0, float(states[0]["step"]) / warmup)
            momentum = FIRST_MOMENTUM + (momentum - FIRST_MOMENTUM) * done
        torch._foreach_add_([state["step"] for state in states], 1)
        momenta = [state["momentum"] for state in states]
        torch._foreach_mul_(momenta, momentum)
        torch._foreach_add_(momenta, gradients, alpha=(1 - momentum) * factor)
        if not self.config.nesterov:
            return [tensor.clone() for tensor in momenta]
        ahead = list(torch._foreach_mul(momenta, momentum))
        torch._foreach_add_(ahead, gradients, alpha=(1 - momentum) * factor)
        return ahead

    def _become_updates(self, whole: dict[str, Tensor], moments: dict[str, Tensor]) -> None:
        """Each of the whole tensors becomes its update, in place; its second moment in `moments` moves on."""
        by_shape: dict[tuple[int, int], list[_Piece]] = {}
        for name, tensor in whole.items():
            for piece in _pieces(tensor, moments.get(name), list(self.sections(name, tensor.size(-2)))):
                by_shape.setdefault((piece.matrices.size(1), piece.matrices.size(2)), []).append(piece)
        for (rows, columns), pieces in by_shape.items():
            for some in _batches(pieces):
                asked = torch.cat([piece.matrices.to(self.dtype) for piece in some])
                made = orthogonalise(asked, self.config.method, self.config.steps).float()
                if self.config.normalise:
                    made = self._normalised(made, some)
                made *= self._scale(rows, columns)
                for piece, update in zip(some, made.split([piece.stack for piece in some]), strict=True):
                    piece.matrices.copy_(update)

    def _normalised(self, made: Tensor, pieces: "list[_Piece]") -> Tensor:
        """NorMuon: each row of (N, rows, columns) over its running root mean square; each matrix keeps its norm."""
        running = []
        for piece, squares in zip(pieces, made.square().mean(-1).split([p.stack for p in pieces]), strict=True):
            assert piece.moment is not None
            piece.moment.lerp_(squares, 1 - self.config.beta2)
            running.append(piece.moment)
        divided = made / (torch.cat(running).sqrt()[..., None] + EPS)
        before, after = (torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) for x in (made, divided))
        return divided * (before / after.clamp(min=EPS))

    def _scale(self, rows: int, columns: int) -> float:
        """Of the update of a matrix."""
        if self.config.scale == "spectral":
            return math.sqrt(max(1.0, rows / columns))
        return 0.2 * math.sqrt(max(rows, columns))

    def _apply(self, local: list[Tensor], updates: list[Tensor], lr: float, decay: float) -> None:
        """Decay the parameters and move them."""
        if decay and self.config.cautious:
            for parameter, update in zip(local, updates, strict=True):
                parameter.sub_(parameter * (parameter * update > 0), alpha=lr * decay)
        elif decay:
            torch._foreach_mul_(local, 1 - lr * decay)
        torch._foreach_add_(local, updates, alpha=-lr)


class _Piece(NamedTuple):
    """Matrices of one shape that belong to one parameter; views."""

    matrices: Tensor
    """(N, rows, columns)"""
    moment: Tensor | None
    """(N, rows)"""

    @property
    def stack(self) -> int:
        """N."""
        return self.matrices.size(0)


def _pieces(tensor: Tensor, moment: Tensor | None, sections: list[int]) -> Iterable[_Piece]:
    """The separate matrices of a parameter (rows, columns), or of a stack of them (N, rows, columns)."""
    if tensor.dim() == 2:
        tensor, moment = tensor[None], None if moment is None else moment[None]
    moments: Sequence[Tensor | None] = [None] * len(sections) if moment is None else moment.split(sections, 1)
    return map(_Piece, tensor.split(sections, 1), moments)


def _batches(pieces: list[_Piece]) -> list[list[_Piece]]:
    """As many together as make no more than NUMBERS_AT_ONCE, but at least one."""
    batches: list[list[_Piece]] = []
    room = 0
    for piece in pieces:
        if not batches or piece.matrices.numel() > room:
            batches.append([])
            room = NUMBERS_AT_ONCE
        batches[-1].append(piece)
        room -= piece.matrices.numel()
    return batches


def _moment(name: str) -> str:
    return f"{name}.second_moment"
