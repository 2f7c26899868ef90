"""The C library's allocator, told what training is like: the same large blocks again and again.

By default glibc maps each block of some megabytes from the system and gives it back when it is freed, so that every
step pays for hundreds of thousands of page faults, at 124M parameters a third of its time
(benchmarks/train_throughput.py). Kept, the blocks are used again. The process then stays as large as its peak.
"""

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # glibc's malloc.h
GROWTH_BYTES = 64 * 2**20


def keep_freed_memory() -> bool:
    """Let this process reuse what it frees. Returns whether the allocator took it (glibc does, on Linux)."""
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return False
    # a negative threshold means never to trim (mallopt(3))
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1) and mallopt(M_TOP_PAD, GROWTH_BYTES))
