"""Opens files that may be compressed: gzip and Zstandard, recognised by their first bytes whatever they are called.

No UTF-8 text begins with those bytes. A file that ends too early is an error, never a shorter text: Python's gzip sees
to that itself, for Zstandard it is done here. Zstandard needs the package `zstandard` (the extra `zstd`).
"""

import gzip
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from minigpt.config import RequestError

GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
SKIPPABLE_MAGIC = b"\x2a\x4d\x18"  # bytes 2 to 4 of a frame without text, which parallel compressors put first
READ_BYTES = 1 << 14  # compressed bytes unpacked at once: a little text can make a lot
MAX_WINDOW = 1 << 31  # of Zstandard's --ultra --long=31
SUFFIXES = {".gz": "gzip", ".zst": "Zstandard"}


def plain_name(name: str) -> str:
    """A file's name in small letters, without the ending of a compression: `A.TXT.gz` is `a.txt`."""
    name = name.lower()
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix)
    return name


@contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """The file's bytes, unpacked if it is compressed. RequestError for one that is not what its name says."""
    with path.open("rb") as file:
        magic = file.read(4)
        file.seek(0)
        if magic.startswith(GZIP_MAGIC):
            with gzip.GzipFile(fileobj=file, mode="rb") as unpacked:
                yield cast(BinaryIO, unpacked)
        elif magic == ZSTD_MAGIC or (magic[1:] == SKIPPABLE_MAGIC and magic[0] >> 4 == 5):
            with io.BufferedReader(_Unzstd(file, path)) as reader:
                yield cast(BinaryIO, reader)
        elif magic and (kind := SUFFIXES.get(path.suffix.lower())):
            raise RequestError(f"{path} is named {path.suffix} but is not a {kind} file")
        else:
            yield file


class _Unzstd(io.RawIOBase):
    """The text of a Zstandard file, frame after frame, with the check that the last one is whole."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path = file, path
        self._frame, self._failure = _zstandard(path)
        self._unpack: Any = None  # the frame that is being read, None between two
        self._text = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._text:
            if not (packed := self._file.read(READ_BYTES)):
                if self._unpack is not None:
                    raise self._damaged("it ends in the middle of a frame")
                return 0
            self._text = memoryview(self._unpacked(packed))
        count = min(len(buffer), len(self._text))
        buffer[:count] = self._text[:count]
        self._text = self._text[count:]
        return count

    def _unpacked(self, packed: bytes) -> bytes:
        text = []
        while packed:
            self._unpack = self._unpack or self._frame()
            try:
                text.append(self._unpack.decompress(packed))
            except self._failure as error:
                raise self._damaged(str(error).rpartition(": ")[2]) from None
            packed = b""
            if self._unpack.eof:
                packed, self._unpack = self._unpack.unused_data, None
        return b"".join(text)

    def _damaged(self, why: str) -> RequestError:
        return RequestError(f"{self._path} is a damaged or incomplete Zstandard file ({why})")


def _zstandard(path: Path) -> tuple[Callable[[], Any], type[Exception]]:
    """(makes what unpacks a frame, the package's exception)"""
    try:
        import zstandard
    except ImportError:
        raise RequestError(f'{path} is a Zstandard file, which needs zstandard: pip install "minigpt[zstd]"') from None
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
    return decompressor.decompressobj, zstandard.ZstdError
