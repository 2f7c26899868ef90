"""The C library's allocator, told what training is like: the same large blocks again and again.

By default glibc maps each block of some megabytes from the system and gives it back when it is freed, so that every
step pays for hundreds of thousands of page faults, at 124M parameters a third of its time
(benchmarks/train_throughput.py). Kept, the blocks are used again. The process then stays as large as its peak.

FSDP is another matter: it gathers a block's weights, frees them, and gathers the next one's while activations are made
that stay. They settle in the holes, the next weights find none that is large enough, and a process of 2.4 GB grew to
3.6 GB in five steps (docs/LOG.md). So what is as large as a block's weights goes back to the system at once.
"""

import ctypes
import sys

from minigpt.config import Config
from minigpt.model.count import count_parameters

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -2, -3, -4  # glibc's malloc.h
GROWTH_BYTES = 64 * 2**20
MOST_BLOCKS = 2**16
"""As many blocks may be the system's own; Linux has 65,530 maps for a process (vm.max_map_count)."""
THRESHOLDS = 2**20, 32 * 2**20
"""Bounds of what is returned: smaller blocks are too many; glibc takes no larger threshold (HEAP_MAX_SIZE / 2)."""


def keep_freed_memory(below: int | None = None) -> bool:
    """Let this process reuse what it frees. Returns whether the allocator took it (glibc does, on Linux).

    below: blocks of at least so many bytes are given back all the same; None: none are.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return False
    own = (
        mallopt(M_MMAP_MAX, 0)
        if below is None
        else mallopt(M_MMAP_MAX, MOST_BLOCKS) and mallopt(M_MMAP_THRESHOLD, below)
    )
    # a negative threshold means never to trim (mallopt(3))
    return bool(own and mallopt(M_TRIM_THRESHOLD, -1) and mallopt(M_TOP_PAD, GROWTH_BYTES))


def returned_bytes(config: Config, shards: int) -> int | None:
    """From which size on a block of memory is given back: what a layer's weights take in bf16, if they are sharded."""
    if shards == 1:
        return None
    model = config.model.model_copy(update={"vocab_size": config.model.vocab_size or 1})  # not read yet
    layer = 2 * count_parameters(model, embeddings=False) // model.n_layer
    return min(max(layer, THRESHOLDS[0]), THRESHOLDS[1])
