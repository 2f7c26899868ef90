"""Token shards: files of token ids that are mapped into memory, not read.

Layout (little-endian): 8 bytes magic `MINIGPT\\0`; uint32 version; uint32 length and uint32 CRC-32 of the JSON that
follows; the JSON, filled up with zeros to HEADER_BYTES; the ids (uint16 or uint32); zeros up to a multiple of 8; the
document starts (uint64, token numbers within this shard). The JSON says dtype, vocab_size, n_tokens, n_documents, the
tokenizer's fingerprint and the SHA-256 of the ids and of the document starts. Size and header are checked whenever a
shard is opened, the hashes the first time that its file is seen in its present state.
"""

import hashlib
import json
import struct
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from minigpt.config import WorkError
from minigpt.data.dataset import Tokens, token_dtype
from minigpt.data.reading.memo import CHUNK_BYTES, memoised

MAGIC = b"MINIGPT\0"
VERSION = 1
HEADER_BYTES = 4096
SHARD_TOKENS = 1 << 28  # 512 MiB of uint16 a file: a size that file systems, copies and hash checks all handle well
_PREFIX = struct.Struct("<8sIII")


class CorruptShardError(WorkError):
    """A shard is not what its header says, or has none."""


class ShardWriter:
    """Writes tokens into `folder/tokens-00000.tok`, `-00001.tok`, ... of at most `shard_tokens` tokens each.

    Memory does not grow with the number of tokens (8 bytes a document of the shard). Call `close()` at the end, or
    `abort()`. Publishing the folder in one step is the caller's matter.
    """

    def __init__(self, folder: Path, vocab_size: int, tokenizer: str, shard_tokens: int = SHARD_TOKENS) -> None:
        self.paths: list[Path] = []
        self.n_tokens = 0
        self._folder, self._shard_tokens = folder, shard_tokens
        self._vocab_size, self._tokenizer = vocab_size, tokenizer
        self._dtype = token_dtype(vocab_size)
        self._file: BinaryIO | None = None

    def append(self, ids: Tokens, starts: Tokens) -> None:
        """Write ids (N,), in which documents begin at `starts` (ascending, each below N)."""
        ids = np.asarray(ids).astype(self._dtype, copy=False)
        while len(ids):
            if self._file is None:
                self._open()
            assert self._file is not None
            room = self._shard_tokens - self._count
            here = np.searchsorted(starts, room)  # a document that begins in the next shard belongs to it
            self._starts.append(np.asarray(starts[:here], np.int64) + self._count)
            raw = np.ascontiguousarray(ids[:room])
            self._file.write(raw.data)
            self._digest.update(raw.data)
            self._count += len(raw)
            self.n_tokens += len(raw)
            ids, starts = ids[room:], np.asarray(starts[here:], np.int64) - room
            if self._count == self._shard_tokens:
                self._finish()

    def close(self) -> list[Path]:
        """Finish the last shard; the paths of all."""
        self._finish()
        return self.paths

    def abort(self) -> None:
        """Close the file that is being written, and leave it unfinished."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> None:
        path = self._folder / f"tokens-{len(self.paths):05d}.tok"
        self._file = path.open("xb")
        self._file.write(bytes(HEADER_BYTES))
        self._count, self._digest = 0, hashlib.sha256()
        self._starts: list[NDArray[np.int64]] = []
        self.paths.append(path)

    def _finish(self) -> None:
        if self._file is None:
            return
        starts = np.concatenate(self._starts).astype("<u8")
        raw = starts.tobytes()
        self._file.write(bytes(-self._file.tell() % 8) + raw)
        header = {
            "dtype": self._dtype.name,
            "vocab_size": self._vocab_size,
            "n_tokens": self._count,
            "n_documents": len(starts),
            "tokenizer": self._tokenizer,
            "tokens_sha256": self._digest.hexdigest(),
            "documents_sha256": hashlib.sha256(raw).hexdigest(),
        }
        text = json.dumps(header).encode()
        self._file.seek(0)
        self._file.write(_PREFIX.pack(MAGIC, VERSION, len(text), zlib.crc32(text)) + text)
        self._file.close()
        self._file = None


class TokenShard:
    """A shard opened for reading.

    `.tokens` (n_tokens,) and `.starts` (n_documents,) are memory-mapped, `.header` is its JSON. Raises
    CorruptShardError naming what is wrong with the file. `verify` checks the hashes too.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                head = file.read(HEADER_BYTES)
                size = file.seek(0, 2)
        except OSError as error:
            raise CorruptShardError(f"token shard {path} cannot be read: {error.strerror}") from None
        self.header = _parse(head, path)
        self.n_tokens, self.n_documents = self.header["n_tokens"], self.header["n_documents"]
        dtype = np.dtype(self.header["dtype"]).newbyteorder("<")
        end = HEADER_BYTES + self.n_tokens * dtype.itemsize
        starts_at = end + -end % 8
        expected = starts_at + 8 * self.n_documents
        if size != expected:
            raise CorruptShardError(f"token shard {path} has {size:,} bytes instead of {expected:,}")
        self.tokens: Tokens = np.memmap(path, dtype, "r", HEADER_BYTES, (self.n_tokens,))
        self.starts: Tokens = np.empty(0, "<u8")
        if self.n_documents:
            self.starts = np.memmap(path, "<u8", "r", starts_at, (self.n_documents,))

    @property
    def content_sha256(self) -> str:
        """Hash of the ids and document starts, as the header has it."""
        both = self.header["tokens_sha256"] + self.header["documents_sha256"] + self.header["dtype"]
        return hashlib.sha256(both.encode()).hexdigest()

    def verify(self, cache: Path) -> None:
        """Compare the content with the header's hashes, unless that was done since the file last changed."""
        found = memoised(self.path, cache, "shard", lambda _: self._hashes())
        for name in ("tokens_sha256", "documents_sha256"):
            if found[name] != self.header[name]:
                raise CorruptShardError(
                    f"token shard {self.path} is damaged: its {name.split('_')[0]} changed on the disk"
                )

    def _hashes(self) -> dict[str, str]:
        size = self.tokens.nbytes
        with self.path.open("rb") as file:  # read, not mapped: that would count as memory of this process
            return {
                "tokens_sha256": _sha256(file, HEADER_BYTES, size),
                "documents_sha256": _sha256(file, HEADER_BYTES + size + -size % 8, self.starts.nbytes),
            }


def _sha256(file: BinaryIO, start: int, size: int) -> str:
    digest = hashlib.sha256()
    file.seek(start)
    while size > 0 and (chunk := file.read(min(CHUNK_BYTES, size))):
        digest.update(chunk)
        size -= len(chunk)
    return digest.hexdigest()


def _parse(head: bytes, path: Path) -> dict[str, Any]:
    """The header's JSON, checked."""
    if len(head) < HEADER_BYTES or not head.startswith(MAGIC):
        raise CorruptShardError(f"token shard {path} has no valid header")
    _, version, length, crc = _PREFIX.unpack_from(head)
    if version != VERSION:
        raise CorruptShardError(f"token shard {path} has format version {version}, this program reads {VERSION}")
    text = head[_PREFIX.size : _PREFIX.size + length]
    if zlib.crc32(text) != crc:
        raise CorruptShardError(f"token shard {path} has a damaged header")
    header: dict[str, Any] = json.loads(text)
    return header
