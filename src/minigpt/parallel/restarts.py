"""Processes that torchrun has started anew, and what the ones before them have left behind.

torchrun keeps one store for all of its starts, and in it the addresses of processes that are gone: whoever took one of
them for the address of a new process would try in vain to reach it. How often torchrun has restarted does not tell the
starts apart, since on several machines it counts separately. So the first process gives this start a name, and tells it
to everyone who asks.
"""

import secrets
import time
from datetime import timedelta
from typing import Any

POLL_SECONDS = 0.02


def of_this_start(store: Any, rank: int, size: int, timeout: timedelta) -> Any:
    """The store, under names that no earlier start has used. Every process of this start must call it.

    Raises TimeoutError on the first process if not all others ask, a RuntimeError of PyTorch on these if it does not
    answer.
    """
    from torch.distributed.distributed_c10d import PrefixStore

    mine = secrets.token_hex(8)
    if rank > 0:
        store.set(f"asks/{rank}", mine)
        name = store.get(f"answer/{mine}").decode()  # waits for it; to a question of now
        store.set(f"{name}/heard/{rank}", "")
        return PrefixStore(name, store)
    name, answered, waiting = mine, set(), set(range(1, size))
    until = time.monotonic() + timeout.total_seconds()
    while waiting:
        if time.monotonic() > until:
            raise TimeoutError(f"{len(waiting)} of {size} processes did not come")
        for other in waiting:
            # The question may be an old one at first, which nobody waits for an answer to.
            question = store.get(f"asks/{other}").decode() if store.check([f"asks/{other}"]) else None
            if question is not None and question not in answered:
                store.set(f"answer/{question}", name)
                answered.add(question)
        waiting = {other for other in waiting if not store.check([f"{name}/heard/{other}"])}
        time.sleep(POLL_SECONDS if waiting else 0)
    return PrefixStore(name, store)
