"""How many kernels the CPU's library of products (oneDNN) keeps for shapes that it has met.

In bf16 it compiles one for every shape of a product and keeps 1,024 of them; PyTorch keeps as many again on top. Each
takes a quarter of a megabyte. A dense network has a few dozen shapes in all, but experts get other numbers of tokens
each time, and a server prompts of other lengths: both caches fill, with 600 MB that are hardly ever used again.
"""

import os

KERNELS = 128


def keep_few_kernels() -> None:
    """Keep 128 of each sort, unless the environment says otherwise; must come before the first product in bf16.

    Source: the variables are documented by oneDNN ("Primitive Cache") and PyTorch (for CPUs of Arm).
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(KERNELS))
