"""A plain text too long to be held in memory: read twice, once to see that it is one text and how long it is.

Other texts are read once, as whole documents. What comes out is the same.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from minigpt.config import SourceConfig
from minigpt.data.reading.files import kind_of
from minigpt.data.reading.sources import AnySource, source_files
from minigpt.data.reading.text import text_chunks
from minigpt.tokenizer import CharTokenizer, Tokenizer
from minigpt.tokenizer.patterns import safe_pieces

LONG_BYTES = 1 << 25  # of the file, which may be compressed


@dataclass(frozen=True)
class LongText:
    """The only text of a file, without a separator in it; `characters` of it."""

    path: Path
    errors: str
    characters: int

    @classmethod
    def find(cls, source: AnySource, cache: Path, tokenizer: Tokenizer, separator: str | None) -> "LongText | None":
        """The text of a source, if that is a long one which may be encoded piece by piece. RequestError as reading."""
        if not isinstance(source, SourceConfig) or (source.path is None and source.url is None) or source.separator:
            return None
        (path, *others) = source_files(source, cache)
        if others or kind_of(path) != "text" or path.stat().st_size < LONG_BYTES or not _is_cuttable(tokenizer):
            return None
        errors = source.errors or "strict"
        characters, tail, is_blank = 0, "", True
        for chunk in text_chunks(path, errors):
            if separator is not None and separator in tail + chunk:
                return None
            tail = chunk[-len(separator) :] if separator is not None else ""
            characters += len(chunk)
            is_blank = is_blank and chunk.isspace()
        return None if is_blank else cls(path, errors, characters)

    def pieces(self, start: int, stop: int, size: int, tokenizer: Tokenizer) -> Iterator[tuple[str, int, bool]]:
        """(text, its first character counted from `start`, whether it is the last) of pieces of characters start ...
        stop-1, of about `size` characters each, that may be encoded one by one."""
        at, held = 0, ""
        for piece in _cut(self._chunks(start, stop), size, tokenizer):
            if held:
                yield held, at, False
            at, held = at + len(held), piece
        yield held, at, True

    def _chunks(self, start: int, stop: int) -> Iterator[str]:
        """The characters start ... stop-1, a chunk at a time."""
        at = 0
        for chunk in text_chunks(self.path, self.errors):
            part = chunk[max(0, start - at) : max(0, stop - at)]
            if part:
                yield part
            at += len(chunk)
            if at >= stop:
                return


def cut_text(text: str, size: int, tokenizer: Tokenizer) -> Iterable[str]:
    """Cut a text only where that cannot change its ids; if nobody knows where that is, it stays whole."""
    if len(text) <= size or not _is_cuttable(tokenizer):
        return [text]
    if isinstance(tokenizer, CharTokenizer):
        return (text[at : at + size] for at in range(0, len(text), size))
    return safe_pieces(text, size)


def _cut(chunks: Iterable[str], size: int, tokenizer: Tokenizer) -> Iterator[str]:
    rest = ""
    for chunk in chunks:
        *pieces, rest = cut_text(rest + chunk, size, tokenizer)  # what is after the last cut may go on
        yield from pieces
    if rest:
        yield rest


def _is_cuttable(tokenizer: Tokenizer) -> bool:
    return isinstance(tokenizer, CharTokenizer) or bool(getattr(tokenizer, "cuttable", False))
