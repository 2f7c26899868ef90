"""The optimizer of a run: AdamW, or Muon on some groups and AdamW on the others, with one state by parameter names."""

import math
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from minigpt.config import OptimizerConfig
from minigpt.optim.adamw import AdamW
from minigpt.optim.groups import Group, settled_groups
from minigpt.optim.matrices import cost, owners, row_sections
from minigpt.optim.muon import Exchange, Muon, Sections
from minigpt.storage.parts import Part


class Held(Protocol):
    """What this process holds of a network: `minigpt.parallel.Parallel`."""

    model: Any
    world: Any
    parts: dict[str, Part]
    shapes: dict[str, Any]

    def local(self, tensor: Tensor) -> Tensor:
        """The plain tensor on this process of a parameter or gradient."""

    def exchange(self, parts: Mapping[str, Part], owners: Mapping[str, int]) -> Exchange:
        """Between parts and owners, of the processes that have the same parameters."""


class Optimizer:
    """Moves the parameters of its groups, each group by the rule of its `kind`.

    Attributes:
        param_groups: see `settled_groups`.
        state: per parameter that was updated, its rule's tensors by their keys.
    """

    def __init__(self, groups: list[Group], rules: Mapping[str, AdamW | Muon], held: Held | None = None) -> None:
        self.param_groups, self.rules, self.held = groups, rules, held
        self.state: dict[Tensor, dict[str, Tensor]] = {}
        self._members: list[tuple[str, nn.Parameter, AdamW | Muon]] = [
            (name, parameter, rules[group["kind"]])
            for group in groups
            for name, parameter in zip(group["names"], group["params"], strict=True)
        ]

    def set_lr(self, lr: float) -> None:
        """The schedule's learning rate of the next step; each group takes its share."""
        for group in self.param_groups:
            group["lr"] = lr * group["lr_scale"]

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def gradients(self) -> dict[str, Tensor]:
        """Those that there are, by name."""
        return {name: parameter.grad for name, parameter, _ in self._members if parameter.grad is not None}

    def gradient_norm(self) -> Tensor:
        """L2 norm of all gradients together, a scalar on their device, in a run of one process."""
        return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(self.gradients().values()))))

    @torch.no_grad()
    def step(self, factor: float = 1.0) -> None:
        """One update with the gradients times `factor`."""
        for group in self.param_groups:
            named = [(n, p) for n, p in zip(group["names"], group["params"], strict=True) if p.grad is not None]
            if not named:
                continue
            rule = self.rules[group["kind"]]
            parameters = [self._local(parameter) for _, parameter in named]
            for (name, parameter), local in zip(named, parameters, strict=True):
                if parameter not in self.state:
                    self.state[parameter] = rule.fresh(local, self._part(name, parameter).shape)
            rule.update(
                [name for name, _ in named],
                parameters,
                [self._local(parameter.grad) for _, parameter in named],
                [self.state[parameter] for _, parameter in named],
                group,
                factor,
            )

    # ---- state ---------------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """The state, as PARAMETER.KEY: what this process holds of each tensor (nothing before the first step)."""
        return {
            f"{name}.{key}": value
            for name, parameter, _ in self._members
            for key, value in self.state.get(parameter, {}).items()
        }

    def parts(self) -> dict[str, Part]:
        """What this process holds of each tensor that the state has from the first step on.

        Moments are cut as their parameter is; what is not of its shape is whole on every process.
        """
        found = {}
        for name, parameter, rule in self._members:
            part = self._part(name, parameter)
            with torch.device("meta"):
                state = rule.fresh(torch.empty(part.local), part.shape)
            for key, tensor in state.items():
                found[f"{name}.{key}"] = part if tensor.shape == part.local else Part.whole(tensor.shape)
        return found

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back copies of what `tensors` gave.

        Raises ValueError when some of a parameter's state is missing or of another shape, or a tensor is left over.
        """
        left = dict(tensors)
        self.state.clear()
        if not tensors:
            return
        for name, parameter, rule in self._members:
            if not any(key.startswith(f"{name}.") for key in left):
                raise ValueError(f"the optimizer state has nothing for {name}")
            state = rule.fresh(self._local(parameter), self._part(name, parameter).shape)
            for key, tensor in state.items():
                saved = left.pop(f"{name}.{key}", None)
                if saved is None or saved.shape != tensor.shape:
                    what = "nothing" if saved is None else f"the shape {tuple(saved.shape)}"
                    raise ValueError(f"the optimizer state has {what} for {name}.{key} of {tuple(tensor.shape)}")
                tensor.copy_(saved)
            self.state[parameter] = state
        if left:
            raise ValueError(f"the optimizer state has tensors of no parameter: {', '.join(sorted(left)[:3])}")

    def _local(self, tensor: Tensor) -> Tensor:
        return tensor if self.held is None else self.held.local(tensor)

    def _part(self, name: str, parameter: Tensor) -> Part:
        return Part.whole(parameter.shape) if self.held is None else self.held.parts[name]


def make_optimizer(
    groups: Iterable[Mapping[str, Any]], config: OptimizerConfig, held: Held | None = None, *, rounded: bool = False
) -> Optimizer:
    """The optimizer of the config over an objective's groups.

    held: the network that they are of. It may be None in one process if the groups have `names` and nothing is fused.
    rounded: whether matrices are made orthogonal in bf16 on a CPU too, as they are on a GPU: several times as quick
        where the CPU has products in bf16, and as good for training, but not reproducible to fp32's rounding.

    Raises:
        RequestError: see `settled_groups`.
    """
    names = None if held is None else {parameter: name for name, parameter in held.model.named_parameters()}
    elsewhere = () if held is None or held.world.sizes["pp"] == 1 else held.shapes
    settled = settled_groups(groups, config, names, elsewhere)
    rules: dict[str, AdamW | Muon] = {"adamw": AdamW()}
    if config.name == "muon":
        model_config = None if held is None else held.model.config
        sections: Sections = partial(row_sections, config=model_config)
        moved = [p for group in settled if group["kind"] == "muon" for p in group["params"]]
        bf16 = rounded or any(parameter.is_cuda for parameter in moved)
        exchange = None if held is None else _exchange(settled, held, sections)
        rules["muon"] = Muon(config.muon, sections, exchange, torch.bfloat16 if bf16 else torch.float32)
    return Optimizer(settled, rules, held)


def _exchange(groups: list[Group], held: Held, sections: Sections) -> Exchange | None:
    """Of Muon's matrices and their second moments, where several processes share the work."""
    names = [name for group in groups if group["kind"] == "muon" for name in group["names"]]
    processes = math.prod(held.world.sizes[dimension] for dimension in ("dp", "fsdp", "cp", "tp"))
    if processes == 1 or not names:
        return None
    shapes = {name: held.parts[name].shape for name in names}
    of = owners({name: cost(shape, sections(name, shape[-2])) for name, shape in shapes.items()}, processes)
    moments = {f"{name}.second_moment": name for name in names}
    parts = {name: held.parts[name] for name in names}
    parts |= {moment: Part.whole(shapes[name][:-1]) for moment, name in moments.items()}
    return held.exchange(parts, of | {moment: of[name] for moment, name in moments.items()})
