"""How far the preparation of a unit is: bytes of its files that were read, and tokens that were made."""

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from minigpt.config import SourceConfig
from minigpt.data.preparing.unit import UnitReader
from minigpt.data.reading.download import Progress
from minigpt.data.reading.sources import AnySource, source_files

TEXT_PER_BYTE = {".gz": 2.7, ".zst": 3.0, ".parquet": 2.0}
"""Characters of text that a byte of a file gives, about: used for nothing but the time that is left."""


class Tracker:
    """Calls `on_progress` with (`tokens`, tokens made, None) and (`tokenize`, bytes read, bytes that there are).

    How many bytes of a file were read is estimated from the characters that came out. Where the text is in no files,
    characters take the place of bytes, and nobody knows how many there are (None).
    """

    def __init__(self, sources: Sequence[AnySource], cache: Path, reader: UnitReader, report: Progress | None) -> None:
        self._reader, self._report = reader, report
        self._files = [_files(source, cache) for source in sources] if report is not None else []
        self._before = [0, *accumulate(size for files in self._files for size, _ in files)]  # bytes before each file
        self._first = [0, *accumulate(map(len, self._files))]  # number of each source's first file among all
        self._total = self._before[-1] if all(self._files) else None
        self._tokens = 0

    def update(self, tokens: int) -> None:
        """So many more tokens were made."""
        if self._report is None:
            return
        self._tokens += tokens
        self._report("tokens", self._tokens, None)
        source, file, characters = self._reader.position
        if self._total is None:
            self._report("tokenize", self._reader.characters, None)
            return
        before = self._before[self._first[source] + file]
        size, ratio = self._files[source][file]
        self._report("tokenize", before + min(size, int(characters / ratio)), self._total)

    def finish(self) -> None:
        """Everything was read."""
        if self._report is not None:
            done = self._reader.characters if self._total is None else self._total
            self._report("tokenize", done, done)


def _files(source: AnySource, cache: Path) -> list[tuple[int, float]]:
    """(size in bytes, characters for a byte) of each file of a source; [] for one that nobody knows the size of."""
    if not isinstance(source, SourceConfig):
        return []
    if source.text is not None:
        return [(len(source.text), 1.0)]
    if source.path is None and source.url is None:
        return []
    paths = source_files(source, cache)
    return [(path.stat().st_size, TEXT_PER_BYTE.get(path.suffix.lower(), 1.0)) for path in paths]
