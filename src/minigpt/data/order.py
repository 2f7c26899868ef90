"""Which window of the training tokens comes when: a pure function of (seed, index), with O(1) access.

The tokens are cut into windows of `context_length + 1` tokens (inputs and the targets shifted by one; neighbours share
one token). Within an epoch the windows come in the order of a keyed pseudo-random permutation: a Feistel network (Luby
and Rackoff, 1988) on the smallest power of two that holds all windows, with cycle walking (Black and Rogaway, "Ciphers
with arbitrary finite domains", 2002) to stay below the count. So the row of any index is found without a shuffled list,
resuming is free, and no process needs to know how many others there are: the rows of step `s` with `B` rows a step are
the windows of indices `s * B ... s * B + B - 1`, however they are dealt out.

Every epoch shifts all window boundaries by an offset of its own, so that the model does not always see the same token
first. The count of windows is the same for every offset; the tokens that an offset leaves out at either end (fewer than
two windows) differ from epoch to epoch.

All arithmetic is on Python integers below 2**64, hence the same on every platform.
"""

import hashlib
from functools import lru_cache

from minigpt.config import RequestError

MASK64 = (1 << 64) - 1
ROUNDS = 8  # four make a strong pseudo-random permutation of large domains; halves of a few bits need more
MIN_BITS = 6  # a network on fewer bits reaches too few of the permutations; cycle walking pays for the rest


def _mix(x: int) -> int:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): every input bit reaches every output bit."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK64
    return x ^ (x >> 31)


def _keys(seed: int, epoch: int, count: int) -> list[int]:
    """`count` independent 64-bit numbers from (seed, epoch), for any integer seed."""
    name = f"minigpt window order 1/{seed}/{epoch}".encode()
    raw = hashlib.shake_128(name).digest(8 * count)
    return [int.from_bytes(raw[8 * i : 8 * i + 8], "little") for i in range(count)]


class Permutation:
    """A keyed permutation of 0 ... size-1; `permutation[i]` costs O(1) and stores nothing but the round keys."""

    def __init__(self, size: int, keys: list[int]) -> None:
        if size < 1:
            raise ValueError(f"a permutation needs at least one element, not {size}")
        self.size = size
        bits = max(MIN_BITS, (size - 1).bit_length())
        self._low_bits = bits // 2
        self._high_bits = bits - bits // 2
        self._keys = keys

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> int:
        """Image of `index`; IndexError outside 0 ... size-1."""
        if not 0 <= index < self.size:
            raise IndexError(f"index {index} is outside 0 ... {self.size - 1}")
        index = self._network(index)
        while index >= self.size:  # fewer than two turns on average once size > 2**MIN_BITS / 2
            index = self._network(index)
        return index

    def _network(self, value: int) -> int:
        """One pass of the Feistel network over the whole power of two; the two halves may differ by one bit."""
        left_bits, right_bits = self._high_bits, self._low_bits
        left, right = value >> right_bits, value & ((1 << right_bits) - 1)
        for key in self._keys:
            mixed = _mix((right + key) & MASK64) >> (64 - left_bits)
            left, right = right, left ^ mixed
            left_bits, right_bits = right_bits, left_bits
        return (left << right_bits) | right


class WindowOrder:
    """The order of training windows over `n_tokens` tokens.

    `windows_per_epoch` windows make an epoch. `window(index)` gives `(epoch, start)`: the window is the tokens
    `start ... start + context_length`, both included. Raises RequestError when there are fewer than
    `context_length + 1` tokens.
    """

    def __init__(self, n_tokens: int, context_length: int, seed: int) -> None:
        if context_length < 1:
            raise ValueError(f"context_length must be at least 1, not {context_length}")
        if n_tokens < context_length + 1:
            raise RequestError(
                f"the training text has {n_tokens:,} tokens, too short for model.context_length={context_length}: "
                f"at least {context_length + 1:,} are needed; give more text or a shorter context"
            )
        self.n_tokens = n_tokens
        self.context_length = context_length
        self.seed = seed
        # One window fewer than would fit (where there are two or more) leaves room for a full range of offsets.
        self.windows_per_epoch = max(1, (n_tokens - context_length) // context_length)
        self._room = min(context_length - 1, n_tokens - 1 - self.windows_per_epoch * context_length)
        self._epoch = lru_cache(maxsize=8)(self._make_epoch)

    def _make_epoch(self, epoch: int) -> tuple[int, Permutation]:
        first, *keys = _keys(self.seed, epoch, ROUNDS + 1)
        # Multiply and shift maps 64 random bits onto 0 ... room with a bias below 2**-40 for any real context.
        return (first * (self._room + 1)) >> 64, Permutation(self.windows_per_epoch, keys)

    def offset(self, epoch: int) -> int:
        """Start of the epoch's first window, in tokens: 0 ... context_length-1."""
        return self._epoch(epoch)[0]

    def window(self, index: int) -> tuple[int, int]:
        """(epoch, start in tokens) of the window at `index` >= 0 of the endless sequence of windows."""
        if index < 0:
            raise ValueError(f"a window's index cannot be negative: {index}")
        epoch, place = divmod(index, self.windows_per_epoch)
        offset, permutation = self._epoch(epoch)
        return epoch, offset + permutation[place] * self.context_length
