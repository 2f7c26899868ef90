"""What commands read from and write to the person in front of them, or the program behind the pipe."""

import json
import math
import sys
from pathlib import Path
from typing import Any

from minigpt.config import RequestError

UNPRINTABLE = {code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}
"""Control characters, which could move a terminal's cursor, clear it or change its character set."""


def print_json(value: Any) -> None:
    """One JSON object (or list) on stdout. JSON has no infinity and no NaN: they become null."""
    print(json.dumps(_finite(value), ensure_ascii=False, allow_nan=False))


def write(text: str) -> None:
    """Text of a model or of a file on stdout, at once; without control characters if it is a terminal."""
    sys.stdout.write(text.translate(UNPRINTABLE) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def say(text: str) -> None:
    """A line for people, on stderr."""
    print(text, file=sys.stderr, flush=True)


def read_text(place: str, option: str) -> str:
    """The UTF-8 text of a file, or of stdin if `place` is -, to the letter. Raises RequestError that names `option`."""
    name = "stdin" if place == "-" else place
    try:
        raw = sys.stdin.buffer.read() if place == "-" else Path(place).read_bytes()
    except OSError as error:
        raise RequestError(f"{option} {name} cannot be read: {error.strerror or error}") from None
    except ValueError:  # a NUL in the path
        raise RequestError(f"{option} {name!r} is no path") from None
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{option} {name} is not UTF-8 text: byte {error.start} (0x{raw[error.start]:02x}) {error.reason}"
        ) from None


def one_of(given: dict[str, object]) -> str:
    """The name of the only one that is not None. Raises RequestError if none or several are."""
    names = [name for name, value in given.items() if value is not None]
    if len(names) != 1:
        raise RequestError(f"give {'only ' if names else ''}one of {' and '.join(names or given)}")
    return names[0]


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
