"""fp32, bf16 and fp16 arithmetic: autocast around the network, and loss scaling for fp16.

Mixed precision with fp32 master weights and loss scaling: Micikevicius et al. 2018, "Mixed Precision Training",
section 3. The scale's rules (halve on overflow, double after a quiet while) are those of PyTorch's GradScaler.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """The context in which the network runs."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[precision])


class LossScaler:
    """Scales the loss so that small gradients survive fp16. With enabled=False the scale is 1 and stays so."""

    INITIAL, MAXIMUM = 2.0**16, 2.0**24
    GROWTH_INTERVAL = 2000  # good steps before the scale doubles, as in PyTorch's GradScaler

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self.scale = self.INITIAL if enabled else 1.0
        self.good_steps = 0

    def update(self, overflow: bool) -> None:
        """Adapt the scale after a step."""
        if not self.enabled:
            return
        if overflow:
            self.scale, self.good_steps = self.scale / 2, 0
        else:
            self.good_steps += 1
            if self.good_steps == self.GROWTH_INTERVAL:
                self.scale, self.good_steps = min(self.MAXIMUM, self.scale * 2), 0

    @property
    def can_shrink(self) -> bool:
        """Whether an overflow may still be the scale's fault rather than the model's."""
        return self.enabled and self.scale > 1.0

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"scale": self.scale, "good_steps": self.good_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.scale, self.good_steps = state["scale"], state["good_steps"]
