"""When one process of a run fails, all end soon, and each says why.

Left alone, the other processes would wait for the missing one until a time limit ends them, and then complain about a
lost connection, each for itself. So every process has a thread that does two things once a second: it puts down where
this process is, for the others to read, and looks whether another one has failed. What was put down also tells a
process that was killed, which falls silent, from one that hangs, which does not move.

All of it goes through the store by which the processes met (PyTorch's TCPStore), over a connection of its own.
"""

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from minigpt.config import RequestError, WorkError
from minigpt.config.extension import blamed

if TYPE_CHECKING:
    from minigpt.parallel.world import World

EVERY = 1.0
"""Seconds between two signs of life."""
PATIENCE = 3.5
"""Seconds without one, after which a process is taken for dead once a connection has broken."""
SILENCE = 30.0
"""The same while nothing else has told: the connections of some devices do not notice that a process is gone."""
GRACE = 15.0
"""Seconds in which a process that learns of another's failure is to end by itself."""
BROKEN = (
    "gloo",
    "NCCL",
    "nccl",
    "Connection closed by peer",
    "Connection reset",
    "Broken pipe",
    "timed out",
    "Timed out",
    "monitoredBarrier",
)
"""What PyTorch says, in a RuntimeError, if another process does not answer."""
SAVING = 120.0
"""The same if it is to save first."""
FAILURE = "failure"
DONE = -1
"""The last sign of life of a process that is not missed."""


class ProcessesError(WorkError):
    """The work of this process cannot go on because of another one."""


@contextmanager
def watched(world: "World", timeout_seconds: float) -> Iterator[None]:
    """Around everything that the processes of a run do together.

    An error within it that comes from another process's failure becomes the sentence that this process failed with,
    or says which process was killed, or who waits where; every other error is made known to the others.

    timeout_seconds: how long a process may wait for the others.
    """
    if world.size == 1:
        yield
        return
    watch = Watch(world, timeout_seconds)
    watch.start()
    try:
        yield
    except Exception as error:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's, to those that are left: they are ending already
        if world.ends_together:
            raise
        known = watch.explain(error)
        if known is error:
            raise
        raise known from error
    finally:
        watch.stop()


class Watch:
    """A process's signs of life and its eye on the others."""

    def __init__(self, world: "World", timeout_seconds: float, store: Any = None) -> None:
        if store is None:
            from torch.distributed.distributed_c10d import _get_default_store

            ours: Any = _get_default_store()
            store = ours.clone()  # the main thread may be waiting on its own connection
        self.world, self.store, self.timeout = world, store, timeout_seconds
        self._stopped = threading.Event()
        self._main = threading.get_ident()
        self._thread = threading.Thread(target=self._run, name="minigpt-watch", daemon=True)
        self._parent = os.getppid()
        self._beats = 0
        self._known: dict[str, Any] | None = None  # another process's failure
        self._last: tuple[int, str] | None = None
        self._failed_at: str | None = None  # where this process was when a message failed
        self._since = self._heard = time.monotonic()
        self._neighbour: dict[str, Any] | None = None

    def start(self) -> None:
        """Begin to give signs of life."""
        self._beat()
        self._thread.start()

    def stop(self) -> None:
        """Give no more signs of life. Whoever stops without having failed is not missed."""
        self._stopped.set()
        self._thread.join(PATIENCE)
        with suppress(Exception):  # the others may have left, and the store with them
            self._beat(DONE)

    # ---- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopped.wait(EVERY):
            if os.getppid() != self._parent and "TORCHELASTIC_RUN_ID" in os.environ:
                self._end_without_torchrun()
                return
            try:
                self._beat()
                if self._failure() is None and (found := self._silent_neighbour() or self._hang()) is not None:
                    self._publish(found, 1)
                    self._failure()
            except Exception as lost:  # whatever the store's connection raises; the main thread hears of it as well
                self._known = self._known or _lost(lost)
            if self._known is not None and not self._stopped.wait(GRACE):
                self._leave(self._known)

    def _beat(self, number: int | None = None) -> None:
        where = (self.world.step, self._failed_at or _where(sys._current_frames().get(self._main)))
        if where != self._last:
            self._last, self._since = where, time.monotonic()
        self._beats += 1
        beat = {"beat": number or self._beats, "step": where[0], "where": where[1]}
        self.store.set(f"alive/{self.world.rank}", json.dumps(beat))

    def _silent_neighbour(self) -> str | None:
        """That the next process is gone, if it is. Each watches one, so that the store is not asked too much."""
        rank = (self.world.rank + 1) % self.world.size
        beat = self._alive([rank]).get(rank)
        if beat != self._neighbour:
            self._neighbour, self._heard = beat, time.monotonic()
        if beat is None or beat["step"] == 0 or beat["beat"] == DONE:  # before the first step, much may take long
            return None
        return _gone([rank], {rank: beat}) if time.monotonic() - self._heard > SILENCE else None

    def _hang(self) -> str | None:
        """Who waits where, if the main thread has been waiting for others for too long and nothing has ended that."""
        waits = self.world.step > 0 and _waits(sys._current_frames().get(self._main))
        return self._who_waits() if waits and time.monotonic() - self._since > self.timeout + GRACE else None

    def _leave(self, failure: dict[str, Any]) -> None:
        """End the whole process from here, since its main thread does not."""
        try:
            report(self._sentence(failure))
            sys.stderr.flush()
        finally:  # even if nobody reads on
            os._exit(failure["status"])

    def _end_without_torchrun(self) -> None:
        """Whoever was to look after this process has been killed: save and end, as after SIGTERM."""
        said = "what started this process (torchrun, or minigpt --nproc) is gone, and so the run ends"
        with suppress(OSError):
            report(said)
        os.kill(os.getpid(), signal.SIGTERM)
        if not self._stopped.wait(SAVING):
            self._leave({"rank": None, "said": said, "status": 1})

    # ---- after a failure -----------------------------------------------------------------------------------------

    def explain(self, error: Exception) -> Exception:
        """`error`, made known to all, or, where it comes from another process's, what happened there."""
        try:
            if not _from_others(error):
                self._publish(_said(error), 2 if isinstance(error, RequestError) else 1)
                if self.world.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
                    time.sleep(2 * EVERY)  # the store ends with this process, and the others are to read it first
                return error
            self._failed_at = _raised_at(error)
            self._beat()
            before = self._alive()
            until = time.monotonic() + PATIENCE
            while self._failure() is None and time.monotonic() < until:
                time.sleep(EVERY / 4)
            if self._failure() is None:
                self._publish(self._missing(before) or self._who_waits(), 1)
            failure = self._failure()
        except Exception as lost:  # the store is gone
            failure = self._known or _lost(lost)
        assert failure is not None
        return (RequestError if failure["status"] == 2 else ProcessesError)(self._sentence(failure))

    def _publish(self, said: str, status: int) -> None:
        """Make a failure known, unless another one is already: the first one is the cause."""
        mine = {"rank": self.world.rank, "said": said, "status": status}
        self.store.compare_set(FAILURE, "", json.dumps(mine))

    def _failure(self) -> dict[str, Any] | None:
        if self._known is None and self.store.check([FAILURE]):
            self._known = json.loads(self.store.get(FAILURE))
        return self._known

    def _sentence(self, failure: dict[str, Any]) -> str:
        """It in words, and whose they are if they are not this process's."""
        said: str = failure["said"]
        return said if failure["rank"] in (self.world.rank, None) else f"process {failure['rank']} says: {said}"

    def _alive(self, ranks: Sequence[int] | None = None) -> dict[int, dict[str, Any]]:
        """The last sign of life of these processes (None: of all) that have given any."""
        asked = range(self.world.size) if ranks is None else ranks
        known = [rank for rank in asked if self.store.check([f"alive/{rank}"])]
        return {rank: json.loads(self.store.get(f"alive/{rank}")) for rank in known}

    def _missing(self, before: dict[int, dict[str, Any]]) -> str | None:
        """Which processes have given no sign of life since `before`, if any."""
        after = self._alive()
        others = [rank for rank in before if rank != self.world.rank and after[rank]["beat"] != DONE]
        gone = [rank for rank in others if after[rank]["beat"] == before[rank]["beat"]]
        return _gone(gone, before) if gone else None

    def _who_waits(self) -> str:
        """Where every process is."""
        groups: dict[str, list[int]] = {}
        for rank, beat in self._alive().items():
            groups.setdefault(_place(beat), []).append(rank)
        rarest = sorted(groups.items(), key=lambda item: len(item[1]))
        said = "; ".join(f"{_ranks(ranks)} {_is_or_are(ranks)} {place}" for place, ranks in rarest)
        return (
            f"the processes wait for each other, for {self.timeout:g} s or with a broken connection "
            f"(distributed.timeout_seconds): {said}"
        )


def report(sentence: str) -> None:
    """One line on stderr with this process's number, and for torchrun, which repeats it as the cause."""
    print(f"{prefix()} {sentence}", file=sys.stderr)
    tell_torchrun(sentence)


def prefix() -> str:
    """What a line for people begins with: of several processes, each says which one it is."""
    several = os.environ.get("WORLD_SIZE", "1") != "1" and "RANK" in os.environ
    return f"minigpt[{os.environ['RANK']}]:" if several else "minigpt:"


def tell_torchrun(sentence: str) -> None:
    """Leave the cause where torchrun looks for it (`torch.distributed.elastic.multiprocessing.errors`)."""
    place = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not place:
        return
    details = {"py_callstack": sentence, "timestamp": str(int(time.time()))}
    try:
        Path(place).write_text(json.dumps({"message": {"message": sentence, "extraInfo": details}}))
    except OSError as error:
        print(f"{prefix()} cannot write {place} for torchrun: {error.strerror}", file=sys.stderr)


# ---- helpers -----------------------------------------------------------------------------------------------------


def _from_others(error: Exception) -> bool:
    """Whether this error says no more than that another process does not answer."""
    if isinstance(error, RequestError | WorkError):
        return False
    if type(error).__name__ in ("DistBackendError", "DistNetworkError", "DistStoreError"):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in BROKEN)


def _said(error: Exception) -> str:
    if isinstance(error, RequestError | WorkError):
        return str(error)
    where = blamed(error)  # the user's own file, if it is that
    return f"{where + ': ' if where else ''}{type(error).__name__}: {_first_line(error)}"


def _gone(ranks: Sequence[int], seen: Mapping[int, dict[str, Any]]) -> str:
    places = " and ".join(sorted({_place(seen[rank]) for rank in ranks}))
    why = "killed, stopped, out of memory, or the machine is"
    return f"{_ranks(ranks)} {_is_or_are(ranks)} gone ({why}), last seen {places}"


def _lost(error: Exception) -> dict[str, Any]:
    said = f"the connection to the machine of process 0 is lost: it has ended, or was killed ({_first_line(error)})"
    return {"rank": None, "said": said, "status": 1}


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _where(frame: FrameType | None) -> str:
    """The innermost function of this package that a thread is in."""
    while frame is not None:
        if name := _name(frame):
            return name
        frame = frame.f_back
    return "nowhere known"


def _raised_at(error: Exception) -> str | None:
    """The innermost function of this package that an error came through."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return next((name for frame in reversed(frames) if (name := _name(frame))), None)


def _name(frame: FrameType) -> str | None:
    """Of a function of this package."""
    module: str = frame.f_globals.get("__name__", "")
    return f"{module.removeprefix('minigpt.')}.{frame.f_code.co_name}" if module.startswith("minigpt.") else None


def _waits(frame: FrameType | None) -> bool:
    """Whether the innermost thing that a thread does is PyTorch's talking between processes."""
    return frame is not None and frame.f_globals.get("__name__", "").startswith("torch.distributed")


def _place(beat: dict[str, Any]) -> str:
    return (
        f"in step {beat['step']} at {beat['where']}" if beat["step"] else f"at {beat['where']}, before the first step"
    )


def _ranks(ranks: Sequence[int]) -> str:
    if len(ranks) == 1:
        return f"process {ranks[0]}"
    return f"processes {', '.join(map(str, ranks[:-1]))} and {ranks[-1]}"


def _is_or_are(ranks: Sequence[int]) -> str:
    return "is" if len(ranks) == 1 else "are"
