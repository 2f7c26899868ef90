"""How processes agree: all go on, or all end with the same error.

An error that only one of them meets would leave the others waiting for it. Work that may fail is therefore done by
`everywhere`, `in_turn` or `on_main`, behind which all know whether it went well.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from minigpt.config import RequestError, WorkError
from minigpt.parallel.world import World

T = TypeVar("T")


class StopRequested(Exception):
    """Raised inside a piece of work that a signal told to end; what it had done so far is abandoned."""


def everywhere(world: World, work: Callable[[], T]) -> T:
    """What `work()` gives here. If it fails on any process, all raise the error of the first one that it failed on.

    Every process must call it. `work` may take long, but must not wait for other processes itself.
    """
    if world.size == 1:
        return work()
    error: Exception | None = None
    result: T | None = None
    try:
        result = work()
    except Exception as wrong:
        error = wrong
    world.wait_long()
    raise_together(world, error)
    return result  # type: ignore[return-value]  # there was no error: it is what `work` gave


def in_turn(world: World, work: Callable[[], T]) -> T:
    """As `everywhere`, on one process of each machine first: the others find what it has prepared."""
    if world.size == 1:
        return work()
    first = everywhere(world, work if world.local_rank == 0 else _nothing)
    other = everywhere(world, work if world.local_rank != 0 else _nothing)
    return first if world.local_rank == 0 else other


def on_main(world: World, work: Callable[[], T]) -> T:
    """What `work()` gives on the main process, on every process; if it fails, all raise its error."""
    if world.size == 1:
        return work()
    value = everywhere(world, work if world.is_main else _nothing)
    told: T = world.tell(value)
    return told


def raise_together(world: World, error: Exception | None) -> None:
    """Raise, on every process, the error of the first one that has one. Every process must call it."""
    said = [found for found in world.collect(_described(world, error)) if found is not None]
    if not said:
        return
    world.ends_together = True
    kind, sentence = said[0]
    if error is not None and kind is WorkError and not isinstance(error, RequestError | WorkError | StopRequested):
        raise error  # nobody has foreseen it: here, where it happened, with all that Python knows of it
    raise kind(sentence)


def _described(world: World, error: Exception | None) -> tuple[type[Exception], str] | None:
    if error is None:
        return None
    for kind in (RequestError, WorkError, StopRequested):
        if isinstance(error, kind):
            return kind, str(error)
    return WorkError, f"process {world.rank} failed ({type(error).__name__}: {error}), and with it the run"


def require_same(world: World, what: dict[str, Any], hint: str) -> None:
    """Raises RequestError on every process, naming what differs, unless `what` is the same on all of them."""
    if world.size == 1:
        return
    what = _flat(what)
    first = world.tell(what)
    differing = [key for key in dict.fromkeys([*first, *what]) if first.get(key) != what.get(key)]
    changes = [
        f"{key} is {what.get(key)} on process {world.rank} and {first.get(key)} on process 0" for key in differing
    ]
    raise_together(
        world, RequestError(f"the processes do not agree: {', '.join(changes)}; {hint}") if changes else None
    )


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted names."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def _nothing() -> Any:
    return None
