"""AdamW with the usual groups: weight decay on matrices, none on biases and norms. State is keyed by parameter names.

AdamW: Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2, by PyTorch's fused kernel.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from minigpt.config import OptimizerConfig

Group = dict[str, object]


def parameter_groups(parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[Group]:
    """Two groups of the trainable ones of `parameters`: matrices with decay; vectors (biases, norms) without."""
    trainable = [(name, p) for name, p in parameters if p.requires_grad]
    decayed = [p for _, p in trainable if p.dim() >= 2]
    plain = [p for _, p in trainable if p.dim() < 2]
    groups: list[Group] = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


class AdamW:
    """Updates all parameters of a group by one kernel.

    `torch.optim.AdamW(fused=True)` does the same, but imports PyTorch's compiler: a second and a half at the start of
    every run, and 70 MB.

    Attributes:
        param_groups: dicts of `params`, `lr`, `weight_decay`, `betas`, `eps`; set `lr` before each step.
        state: per parameter that was updated: `step` (a scalar), `exp_avg`, `exp_avg_sq` (its own shape), all fp32.
    """

    def __init__(self, groups: list[Group], *, lr: float, betas: tuple[float, float], eps: float) -> None:
        self.param_groups: list[dict[str, Any]] = [{"lr": lr, "betas": betas, "eps": eps} | group for group in groups]
        self.state: dict[Tensor, dict[str, Tensor]] = {}

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def gradient_norm(self) -> Tensor:
        """L2 norm of all gradients together, a scalar on their device."""
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))

    @torch.no_grad()
    def step(self, factor: float = 1.0) -> None:
        """One update with the gradients times `factor`, which the kernel applies as it reads them."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            states = [self._state(p) for p in parameters]
            steps = [state["step"] for state in states]
            torch._foreach_add_(steps, 1)
            torch._fused_adamw_(
                parameters,
                [p.grad for p in parameters],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],  # the maxima of AMSGrad
                steps,
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
                # the kernel divides by it
                grad_scale=None if factor == 1.0 else torch.tensor(1.0 / factor, device=parameters[0].device),
            )

    def _state(self, parameter: Tensor) -> dict[str, Tensor]:
        if parameter not in self.state:
            self.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        return self.state[parameter]


def make_optimizer(groups: list[Group], config: OptimizerConfig) -> AdamW:
    """The optimizer of the config over these groups."""
    beta1, beta2 = config.betas
    return AdamW(groups, lr=config.lr, betas=(beta1, beta2), eps=config.eps)


def optimizer_tensors(optimizer: AdamW, model: nn.Module) -> dict[str, Tensor]:
    """The optimizer's state as `PARAMETER.STATE` -> tensor (empty before its first step)."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}.{key}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def load_optimizer_tensors(optimizer: AdamW, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave. Raises ValueError when a parameter's state is missing or one is left."""
    left = dict(tensors)
    optimizer.state.clear()
    if not tensors:
        return
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        prefix, state = f"{name}.", {}
        for key in [k for k in left if k.startswith(prefix) and "." not in k.removeprefix(prefix)]:
            # `step` stays as it is saved (fp32 scalar beside the parameter); the moments follow the parameter.
            state[key.removeprefix(prefix)] = left.pop(key).to(parameter.device, copy=True)
        if not state:
            raise ValueError(f"the optimizer state has nothing for {name}")
        optimizer.state[parameter] = state
    if left:
        raise ValueError(f"the optimizer state has tensors of no parameter: {', '.join(sorted(left)[:3])}")
