"""An even sample of a text that is too long to train a tokenizer on all of it.

One pass, memory in proportion to the sample. Nothing is drawn at random: the text is divided into stretches of equal
length, and of these as many as wanted are kept, at equal distances; the same text gives the same sample.
"""

import re
from collections.abc import Callable, Iterable, Iterator

STRETCH_CHARACTERS = 4096
"""Length of a stretch, if the sample is so long that it has many of them: some paragraphs."""
FEWEST_STRETCHES = 64
SHORTEST_STRETCH = 64

_BLANK = re.compile(r"\s")


def sample_texts(
    texts: Iterable[str], characters: int, on_progress: Callable[[int], None] | None = None
) -> Iterator[str]:
    """About `characters` characters of the texts, spread evenly over them, in order; all of them if there are fewer.

    on_progress is called with the number of characters read so far.

    How long the texts are is known at their end only. So every stretch is kept at first; whenever there are twice as
    many as wanted, every second one goes, and from then on only every second (fourth, ...) is kept.
    """
    length = max(SHORTEST_STRETCH, min(STRETCH_CHARACTERS, characters // FEWEST_STRETCHES))
    kept: list[list[str]] = []
    step = 1
    read = total = 0
    for number, stretch in enumerate(_stretches(texts, length)):
        read += sum(map(len, stretch))
        if on_progress is not None:
            on_progress(read)
        if number % step:
            continue
        kept.append(stretch)
        total += sum(map(len, stretch))
        if total > 2 * characters and len(kept) > 1:
            kept = kept[::2]
            step *= 2
            total = sum(len(text) for stretch in kept for text in stretch)
    wanted = len(kept) if total <= characters else max(1, round(len(kept) * characters / total))
    for n in range(wanted):
        yield from kept[n * len(kept) // wanted]


def _stretches(texts: Iterable[str], length: int) -> Iterator[list[str]]:
    """The texts in stretches of about `length` characters, which end with a text or at white space if there is any
    soon: one part of a long text, or several short texts."""
    stretch: list[str] = []
    size = 0
    for text in texts:
        start = 0
        while start < len(text):
            end = start + length - size
            if end < len(text):
                blank = _BLANK.search(text, end, end + length)
                end = blank.start() if blank else end
            stretch.append(text[start:end])
            size += len(stretch[-1])
            start = end
            if size >= length:
                yield stretch
                stretch, size = [], 0
    if stretch:
        yield stretch
