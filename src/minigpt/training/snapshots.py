"""Checkpoints that are written while training goes on.

The state is copied to memory of its own between two steps, which is quick; a thread then writes it to disk. At most
one is being written at a time. An error there ends the run with its own message at the next step.
"""

import threading
from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def copy_to_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies that later steps do not change."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def all_finite(tensors: Mapping[str, Tensor]) -> bool:
    """Whether no tensor holds NaN or an infinity."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values() if tensor.is_floating_point())


class BackgroundWriter:
    """Runs one job at a time in a thread; with enabled=False at once."""

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def submit(self, job: Callable[[], None]) -> None:
        """Start `job` when the one before has ended."""
        self.wait()
        if not self.enabled:
            job()
            return

        def run() -> None:
            try:
                job()
            except BaseException as error:
                self._error = error

        # Not a daemon: a Python that ends normally lets the write finish.
        self._thread = threading.Thread(target=run, name="minigpt-checkpoint")
        self._thread.start()

    def check(self) -> None:
        """Raise the error of a job that failed."""
        if self._error is not None and (self._thread is None or not self._thread.is_alive()):
            error, self._error = self._error, None
            raise error

    def wait(self) -> None:
        """Until nothing is being written; raises the error of a job that failed."""
        self.join()
        self.check()

    def join(self) -> None:
        """Until nothing is being written, whether it went well or not."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
