"""Many addresses in one: `shard-{000..013}.parquet` and `{train,valid}.txt`, as a shell expands braces."""

import itertools
import re

GROUP = re.compile(r"\{([^{}]*)\}")
NUMBERS = re.compile(r"(\d+)\.\.(\d+)")
MOST = 100_000


def expand_braces(pattern: str) -> list[str]:
    """The texts that a pattern stands for, the last group counting fastest; a text without braces stands for itself.

    `{007..012}` counts with as many digits as its first number has, `{a,b}` lists. Raises ValueError for braces that
    do neither, and for more than 100,000 texts.
    """
    texts, groups = GROUP.split(pattern)[::2], GROUP.findall(pattern)
    if any(brace in text for text in texts for brace in "{}"):
        raise ValueError(f"{pattern!r} has a brace without its partner; in an address write %7B and %7D for them")
    choices = [_choices(group, pattern) for group in groups]
    count = 1
    for options in choices:
        count *= len(options)
    if count > MOST:
        raise ValueError(f"{pattern!r} stands for {count:,} addresses; {MOST:,} is the most")
    return [
        texts[0] + "".join(option + text for option, text in zip(combination, texts[1:], strict=True))
        for combination in itertools.product(*choices)
    ]


def _choices(group: str, pattern: str) -> list[str]:
    """What one pair of braces stands for."""
    if numbers := NUMBERS.fullmatch(group):
        first, last = int(numbers[1]), int(numbers[2])
        if first <= last < first + MOST:
            return [f"{number:0{len(numbers[1])}d}" for number in range(first, last + 1)]
    elif "," in group:
        return group.split(",")
    raise ValueError(f"{{{group}}} in {pattern!r} is neither a range such as {{000..013}} nor a list such as {{a,b}}")
