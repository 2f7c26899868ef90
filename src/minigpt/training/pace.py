"""Rows cut into shorter ones, as `schedule.context_length` wants them at a step (see `minigpt.config.pace`)."""

import numpy as np

from minigpt.config.pace import Pace as Pace
from minigpt.objectives import Row


def cut_rows(rows: list[Row], length: int) -> list[Row]:
    """Each row as rows of at most `length` positions, in order: the same ids, targets and documents."""
    return [piece for row in rows for piece in _pieces(row, length)]


def _pieces(row: Row, length: int) -> list[Row]:
    total = len(row["targets"])
    if total <= length:
        return [row]
    pieces = [{name: values[at : at + length] for name, values in row.items()} for at in range(0, total, length)]
    for piece in pieces:
        if "positions" in piece:
            piece["positions"] = _from_zero(piece["positions"])
    return pieces


def _from_zero(positions: np.ndarray) -> np.ndarray:
    """Positions whose first unbroken stretch, the rest of one that begins in an earlier piece, begins at 0."""
    breaks = np.flatnonzero(np.diff(positions) != 1)
    end = int(breaks[0]) + 1 if len(breaks) else len(positions)
    first = max(0, int(positions[0]))  # padding is -1, and stays so
    return np.concatenate([positions[:end] - first, positions[end:]])
