"""Which number format matrix products run in, for the few places that must know it beforehand."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def compute_dtype(weight: Tensor) -> torch.dtype:
    """The dtype of `linear(x, weight)`: autocast's where it is on for the weight's device, else the weight's own."""
    kind = weight.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return weight.dtype


def no_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Within it every operation keeps the dtypes that it is given."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
