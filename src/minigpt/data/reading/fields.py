"""The text of a row of a table or of a JSON object: one field, or a template over several ('{title}: {body}')."""

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from minigpt.config import RequestError, SourceConfig

DEFAULT_FIELD = "text"
OR_REPLACE = "errors=replace puts U+FFFD in its place"
SHOWN_NAMES = 20  # of a table's columns, in a message
SURROGATES = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Fields:
    """How a row becomes text: the string in `field`, or, where it is None, `pieces` of a template.

    A piece is (literal text, name of the field that follows it or None). In a template null is nothing, numbers and
    the like are written as Python writes them, and a list or an object is an error. With `replace`, what is no
    character (wrong UTF-8, half of a surrogate pair) becomes U+FFFD instead of an error.
    """

    field: str | None = DEFAULT_FIELD
    pieces: tuple[tuple[str, str | None], ...] = ()
    replace: bool = False

    @classmethod
    def of(cls, source: SourceConfig) -> Self:
        """What a source's `field`, `template` and `errors` say. RequestError for a template that is none."""
        replace = source.errors == "replace"
        if source.template is None:
            return cls(source.field or DEFAULT_FIELD, (), replace)
        return cls(None, _parsed(source.template), replace)

    @property
    def names(self) -> list[str]:
        """The fields that are needed, each once."""
        if self.field is not None:
            return [self.field]
        return list(dict.fromkeys(name for _, name in self.pieces if name is not None))

    @property
    def errors(self) -> str:
        """The same as `replace`, in the words of Python's decoders."""
        return "replace" if self.replace else "strict"

    def require(self, present: Sequence[str], where: str, word: str = "field") -> None:
        """RequestError unless all that is needed is among `present`. `where` begins the sentence."""
        for name in self.names:
            if name not in present:
                more = f" and {len(present) - SHOWN_NAMES:,} more" if len(present) > SHOWN_NAMES else ""
                names = ", ".join(map(str, present[:SHOWN_NAMES])) or "none"
                what = "set the source's `field`" if self.field is not None else "mend the source's `template`"
                raise RequestError(f"{where} has no {word} {name!r} (its {word}s: {names}{more}); {what}")

    def text(self, row: Mapping[str, Any], where: str, word: str = "field") -> str:
        """The text of a row. RequestError, which begins with `where`, for a field that is missing or no text."""
        if any(name not in row for name in self.names):
            self.require(list(row), where, word)
        if self.field is None:
            parts = [before + self._shown(row, name, where, word) for before, name in self.pieces]
            return self.characters("".join(parts), f"{where}: the text")
        value = row[self.field]
        if value is None and word == "column":
            raise RequestError(f"{where}: column {self.field!r} is null where text is needed")
        if not isinstance(value, str):
            raise RequestError(f"{where}: {word} {self.field!r} is not a string but {type(value).__name__}")
        return self.characters(value, f"{where}: {word} {self.field!r}")

    def characters(self, text: str, what: str) -> str:
        """`text`, all of it characters: a lone surrogate, which no UTF-8 file can hold, is refused or replaced."""
        if not has_surrogates(text):
            return text
        if self.replace:
            return SURROGATES.sub("\ufffd", text)
        raise RequestError(f"{what} holds half of a surrogate pair, which is no character")

    def _shown(self, row: Mapping[str, Any], name: str | None, where: str, word: str) -> str:
        value = None if name is None else row[name]
        if isinstance(value, Mapping | Sequence) and not isinstance(value, str):
            kind = type(value).__name__
            raise RequestError(f"{where}: {word} {name!r} is a {kind}, which a template cannot put into a text")
        return "" if value is None else str(value)


def _parsed(template: str) -> tuple[tuple[str, str | None], ...]:
    """The pieces of a template. RequestError for one that names no field or asks for more than fields."""
    try:
        found = list(string.Formatter().parse(template))
    except ValueError as error:
        raise RequestError(f"template={template!r} is none ({error}); a brace itself is written twice") from None
    if not any(name for _, name, _, _ in found):
        raise RequestError(f"template={template!r} names no field, such as {{title}}")
    for _, name, form, conversion in found:
        if name == "" or form or conversion:
            raise RequestError(f"template={template!r}: between braces stands the name of a field and nothing else")
    return tuple((before, name) for before, name, _, _ in found)


def has_surrogates(text: str) -> bool:
    """Whether the text holds a lone surrogate, which no UTF-8 file can."""
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
