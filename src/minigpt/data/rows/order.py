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

Windows taken at random from everything are the best order, and read the whole data set at once: fine for files in
memory or on a fast disk, hopeless through a cache that holds a part of it. For those there are stretches: neighbouring
windows, about as many tokens as asked for. The stretches come in a random order, and so do the windows within each, by
permutations of the same kind. Each epoch's offset moves the stretches too.

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


def _keys(seed: int, epoch: int, count: int, stretch: int | None = None) -> list[int]:
    """`count` independent 64-bit numbers from (seed, epoch) and the number of a stretch, for any integer seed.

    More numbers begin with those that fewer would be.
    """
    name = f"minigpt window order 1/{seed}/{epoch}" + ("" if stretch is None else f"/{stretch}")
    raw = hashlib.shake_128(name.encode()).digest(8 * count)
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
    `start ... start + context_length`, both included. `shuffle=False` takes them from beginning to end, without
    offsets. `stretch`, in tokens, keeps windows that come soon after each other close together (see above); one that
    covers everything changes nothing. Raises RequestError when there are fewer than `context_length + 1` tokens.
    """

    def __init__(
        self, n_tokens: int, context_length: int, seed: int, *, shuffle: bool = True, stretch: int | None = None
    ) -> None:
        if context_length < 1:
            raise ValueError(f"context_length must be at least 1, not {context_length}")
        if stretch is not None and stretch < 1:
            raise ValueError(f"a stretch must be at least 1 token, not {stretch}")
        if n_tokens < context_length + 1:
            raise RequestError(
                f"the training text has {n_tokens:,} tokens, too short for model.context_length={context_length}: "
                f"at least {context_length + 1:,} are needed; give more text or a shorter context"
            )
        self.n_tokens = n_tokens
        self.context_length = context_length
        self.seed = seed
        self.shuffle = shuffle
        # One window fewer than would fit (where there are two or more) leaves room for a full range of offsets.
        windows = n_tokens - context_length if shuffle else n_tokens - 1
        self.windows_per_epoch = max(1, windows // context_length)
        self._room = 0
        if shuffle:
            self._room = min(context_length - 1, n_tokens - 1 - self.windows_per_epoch * context_length)
        size = None if stretch is None else max(1, round(stretch / context_length))
        self._stretch = None if size is None or size >= self.windows_per_epoch else size  # in windows
        self._epoch = lru_cache(maxsize=8)(self._make_epoch)
        self._inner = lru_cache(maxsize=8)(self._make_inner)

    def _make_epoch(self, epoch: int) -> tuple[int, Permutation, int]:
        """The epoch's offset, its order of windows (or of the full stretches), and when the short stretch comes."""
        offset, *keys, short = _keys(self.seed, epoch, ROUNDS + 2)
        full = self.windows_per_epoch // (self._stretch or 1)
        # Multiply and shift maps 64 random bits onto 0 ... n-1 with a bias below 2**-40 for any real n.
        return (offset * (self._room + 1)) >> 64, Permutation(full, keys), (short * (full + 1)) >> 64

    def _make_inner(self, epoch: int, stretch: int, size: int) -> Permutation:
        return Permutation(size, _keys(self.seed, epoch, ROUNDS, stretch))

    def offset(self, epoch: int) -> int:
        """Start of the epoch's first window, in tokens: 0 ... context_length-1."""
        return self._epoch(epoch)[0]

    def window(self, index: int) -> tuple[int, int]:
        """(epoch, start in tokens) of the window at `index` >= 0 of the endless sequence of windows."""
        if index < 0:
            raise ValueError(f"a window's index cannot be negative: {index}")
        epoch, place = divmod(index, self.windows_per_epoch)
        if not self.shuffle:
            return epoch, place * self.context_length
        offset, permutation, _ = self._epoch(epoch)
        if self._stretch is None:
            return epoch, offset + permutation[place] * self.context_length
        stretch, within, size = self._locate(epoch, place, self._stretch)
        number = stretch * self._stretch + self._inner(epoch, stretch, size)[within]
        return epoch, offset + number * self.context_length

    def next_stretch(self, index: int) -> tuple[int, int] | None:
        """The tokens (start, stop) of the stretch that comes after that of window `index`; None without stretches.

        They can be fetched while that stretch is being read.
        """
        if self._stretch is None:
            return None
        epoch, place = divmod(index, self.windows_per_epoch)
        _, within, size = self._locate(epoch, place, self._stretch)
        epoch, place = divmod(index - within + size, self.windows_per_epoch)
        stretch, _, size = self._locate(epoch, place, self._stretch)
        start = self.offset(epoch) + stretch * self._stretch * self.context_length
        return start, start + size * self.context_length + 1

    def _locate(self, epoch: int, place: int, length: int) -> tuple[int, int, int]:
        """(stretch, place within it, its windows) of a place in an epoch; stretches are `length` windows long.

        What is left at the end of the tokens makes a stretch of fewer windows, which has the highest number. It comes
        before the full stretch number `short` of the epoch's order, so nothing needs to be searched for.
        """
        full, rest = divmod(self.windows_per_epoch, length)
        _, permutation, short = self._epoch(epoch)
        if not self.shuffle:
            return place // length, place % length, length if place < full * length else rest
        if short * length <= place < short * length + rest:
            return full, place - short * length, rest
        if place >= short * length:
            place -= rest
        return permutation[place // length], place % length, length
