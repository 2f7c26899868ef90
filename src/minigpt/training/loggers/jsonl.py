"""The run's own log: one JSON object a line, whose length a checkpoint records."""

import json
import math
import os
from pathlib import Path
from typing import Any

from minigpt.config import WorkError
from minigpt.training.loggers.base import Logger, Metrics


class JsonlLogger(Logger):
    """One JSON object a line, flushed line by line.

    `position` is the file's length, which checkpoints record; `truncate` goes back to it, so that a resumed run's file
    ends up as if the run had never stopped. Numbers that JSON lacks (NaN, infinities) are written as strings.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # Open as long as the run is; without a buffer, which would hold what a full disk refused and fail once more.
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115

    @property
    def position(self) -> int:
        """Length of the file in bytes."""
        return self._file.tell()

    def truncate(self, position: int) -> None:
        """Cut the file to `position` bytes; one that is shorter (somebody has cut it) stays as it is."""
        self._file.truncate(min(position, self._file.seek(0, os.SEEK_END)))
        self._file.seek(0, os.SEEK_END)

    def sync(self) -> None:
        """Wait until what was logged is on the disk. Raises WorkError if the disk refuses."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise WorkError(f"could not write {self.path}: {error.strerror}") from error

    def log(self, metrics: Metrics) -> None:
        """Append one line. Raises WorkError if the disk refuses."""
        data = (json.dumps({k: _json(v) for k, v in metrics.items()}, ensure_ascii=False) + "\n").encode()
        try:
            while data:  # a disk that is nearly full takes a part at first
                data = data[self._file.write(data) :]
        except OSError as error:
            raise WorkError(f"could not write {self.path}: {error.strerror}; the last checkpoint is kept") from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _json(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
