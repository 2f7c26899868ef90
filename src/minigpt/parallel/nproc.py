"""`minigpt train --nproc N`: the same as `torchrun --standalone --nproc-per-node=N -m minigpt train`, with the exit
status of the process that failed first, where torchrun's own is always 1.
"""

import logging
import os
import signal
import sys
from collections.abc import Sequence

ENDING = ("--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1", "--shutdown-timeout=120")
"""Signals that are passed on, SIGUSR1 (Slurm's) too, and the seconds after which a process that has not ended is
killed: a large model may take a while to save."""


def run_processes(n: int, arguments: Sequence[str]) -> int:
    """Run `minigpt ARGUMENTS` in `n` processes of this machine that know each other; signals go on to them.

    Returns the exit status: 0 if all ended well; 128 + its number after a signal; 1 if a process was killed.
    """
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    os.environ.setdefault("OMP_NUM_THREADS", "1")  # otherwise torchrun says at length that it does so
    _silence(logging.getLogger("torch.distributed.elastic"))  # the processes say what went wrong
    try:
        torchrun.main(["--standalone", f"--nproc-per-node={n}", *ENDING, "-m", "minigpt", *arguments])
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        if failure.exitcode > 0:
            return failure.exitcode
        killed = signal.Signals(-failure.exitcode).name  # it could not say so itself
        print(f"minigpt: process {failure.local_rank} was ended by {killed}, and with it the run", file=sys.stderr)
        return 1
    except SignalException as stopped:
        return 128 + (signal.SIGINT if stopped.sigval == signal.SIGINT else signal.SIGTERM)
    return 0


def _silence(logger: logging.Logger) -> None:
    """Not by its level: PyTorch gives the loggers under it levels of their own."""
    logger.propagate = False
    logger.addHandler(logging.NullHandler())  # without any, Python would print warnings all the same
