"""What a vocabulary must fulfil before the `tokenizers` library sees it, which would crash rather than complain."""

from collections.abc import Iterable, Mapping, Sequence

MOST_IDS = 1 << 24
"""A larger vocabulary is a damaged file: tables as long as the vocabulary would fill the memory."""


def check_vocabulary(ids: object, merges: Iterable[Sequence[str]] = (), prefix: str = "") -> None:
    """ValueError: this is no object of token: id, or a merge's parts or result are not in it.

    `prefix` is the model's continuing_subword_prefix, which the result of a merge drops from the right part.
    """
    if not isinstance(ids, Mapping) or not ids or not all(type(i) is int and i >= 0 for i in ids.values()):
        raise ValueError("its vocabulary is not an object of token: id")
    if max(ids.values()) >= MOST_IDS:
        raise ValueError(f"it has ids up to {max(ids.values())}, more than the {MOST_IDS} supported")
    for left, right in merges:
        for token in (left, right, left + right.removeprefix(prefix)):
            if token not in ids:
                raise ValueError(
                    f"the merge of {left!r} and {right!r} needs the token {token!r}, which it does not have"
                )
