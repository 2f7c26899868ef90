"""The state of a training source that cannot be indexed, in checkpoints: it travels with the batch that it produced."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from minigpt.data.streaming.stream import StreamRows, StreamState
from minigpt.objectives import Objective

TENSORS = "stream:"  # begins the names of a stream's tensors among the optimizer's


def has_stream(objective: Objective) -> bool:
    """Whether the rows must be made one after the other."""
    return _stream(objective) is not None


def stream_state(objective: Objective) -> StreamState | None:
    """How far the objective's stream has been read; None for rows that follow from their number."""
    stream = _stream(objective)
    return None if stream is None else stream.snapshot()


def stream_tensors(state: StreamState | None) -> dict[str, Tensor]:
    """The tokens that a stream holds, for a checkpoint."""
    if state is None:
        return {}
    return {f"{TENSORS}{name}": torch.from_numpy(np.array(values)) for name, values in state.tensors().items()}


def load_stream(objective: Objective, position: dict[str, Any] | None, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Bring the objective's stream to where a checkpoint was saved; returns the tensors that are not the stream's.

    position: what `StreamState.position` was, None for the beginning. RequestError if the text has changed since.
    """
    stream = _stream(objective)
    if stream is not None:
        held = {key.removeprefix(TENSORS): t.numpy() for key, t in tensors.items() if key.startswith(TENSORS)}
        stream.restore(None if position is None else StreamState.saved(position, held))
    return {key: tensor for key, tensor in tensors.items() if not key.startswith(TENSORS)}


def refuse_gone_by(objective: Objective, position: dict[str, Any] | None, row: int) -> None:
    """RequestError if the objective's stream, brought to where a checkpoint was saved, cannot go on at this row."""
    stream = _stream(objective)
    if stream is not None and position is not None:
        stream.require_ahead(position, row)


def close_stream(objective: Objective) -> None:
    """Have the objective's stream, if it has one, stop reading ahead; a row that waits for text is given up."""
    stream = _stream(objective)
    if stream is not None:
        stream.close()


def _stream(objective: Objective) -> StreamRows | None:
    return getattr(objective, "stream", None)  # an objective of one's own may know nothing of it
