"""AdamW: Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2, by PyTorch's fused kernel.

`torch.optim.AdamW(fused=True)` does the same, but imports PyTorch's compiler: a second and a half at the start of every
run, and 70 MB.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class AdamW:
    """The update of one group: every number by itself, so each process updates what it holds.

    Of each parameter the state is `step` (a scalar), `exp_avg` and `exp_avg_sq` (as the parameter), all fp32.
    """

    def fresh(self, local: Tensor, shape: Sequence[int]) -> dict[str, Tensor]:
        """The state before the first step of a parameter of this whole `shape`, held here as `local`."""
        return {
            "step": torch.zeros((), dtype=torch.float32, device=local.device),
            "exp_avg": torch.zeros_like(local),
            "exp_avg_sq": torch.zeros_like(local),
        }

    def update(
        self, names: list[str], local: list[Tensor], gradients: list[Tensor], states: list[dict[str, Tensor]],
        group: dict[str, Any], factor: float,
    ) -> None:  # fmt: skip
        """One step of the parameters `local`, in place, with the gradients times `factor`."""
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1)
        torch._fused_adamw_(
            local,
            gradients,
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
            grad_scale=None if factor == 1.0 else torch.tensor(1.0 / factor, device=local[0].device),
        )
