"""AdamW with the usual groups: weight decay on matrices, none on biases and norms. State is keyed by parameter names.

AdamW: Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2; PyTorch's fused kernel.
"""

from collections.abc import Iterable

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


def make_optimizer(groups: list[Group], config: OptimizerConfig) -> torch.optim.AdamW:
    """The optimizer of the config over these groups."""
    beta1, beta2 = config.betas
    return torch.optim.AdamW(groups, lr=config.lr, betas=(beta1, beta2), eps=config.eps, fused=True)


def step_scaled(optimizer: torch.optim.AdamW, factor: float) -> None:
    """One update with gradients times `factor`, which the fused kernel applies as it reads them (leaves it in them)."""
    if factor == 1.0:
        optimizer.step()
        return
    device = optimizer.param_groups[0]["params"][0].device
    # an attribute by which PyTorch's GradScaler hands it to the kernel, which divides by it
    setattr(optimizer, "grad_scale", torch.tensor(1.0 / factor, device=device))  # noqa: B010
    try:
        optimizer.step()
    finally:
        delattr(optimizer, "grad_scale")


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The optimizer's state as `PARAMETER.STATE` -> tensor (empty before its first step)."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}.{key}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: dict[str, Tensor]) -> None:
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
