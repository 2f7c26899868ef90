"""Reads what a SentencePiece .model says about itself: its pieces, its algorithm and how it normalizes text.

The file is one protobuf message, `ModelProto` of sentencepiece_model.proto. The `sentencepiece` library shows pieces
and scores but not the normalizer; of the message only a few fields are needed, so they are read here, which spares the
protobuf package. Wire format: https://protobuf.dev/programming-guides/encoding
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

SPACE = "\u2581"
"""The letter that stands for a space in pieces."""

UNIGRAM, BPE = 1, 2
_PIECES, _TRAINER, _NORMALIZER, _DENORMALIZER = 1, 2, 3, 5  # fields of ModelProto


class PieceKind(IntEnum):
    """What a piece is for (`SentencePiece.Type`)."""

    normal = 1
    unknown = 2
    control = 3
    user_defined = 4
    unused = 5
    byte = 6


@dataclass(frozen=True)
class Piece:
    """An entry of the vocabulary; its id is its place there."""

    text: str
    score: float
    kind: PieceKind

    @property
    def bytes(self) -> bytes:
        """UTF-8 bytes that the piece stands for, its name for one that is not text."""
        if self.kind is PieceKind.byte:
            return bytes([int(self.text[3:5], 16)])
        if self.kind in (PieceKind.control, PieceKind.unknown):
            return self.text.encode()
        return self.text.replace(SPACE, " ").encode()


@dataclass(frozen=True)
class ModelDescription:
    """The part of a model that decides ids."""

    pieces: tuple[Piece, ...]
    algorithm: int
    """UNIGRAM, BPE, or 3 (word), 4 (character)."""
    byte_fallback: bool = True
    character_map: bytes = b""
    """Rules that replace characters (NFKC and the like), compiled; empty for none."""
    dummy_prefix: bool = True
    """A space is put before every text."""
    remove_extra_spaces: bool = False
    escape_spaces: bool = True
    space_is_suffix: bool = False
    denormalizes: bool = False
    begin_id: int | None = None
    end_id: int | None = None


def read_model(content: bytes) -> ModelDescription:
    """Description of a .model file that the library could load. ValueError: it is no such message after all."""
    pieces: list[Piece] = []
    trainer: dict[int, bytes | int] = {}
    normalizer: dict[int, bytes | int] = {}
    denormalizer: dict[int, bytes | int] = {}
    for number, value in _fields(content):
        if not isinstance(value, bytes):
            continue
        if number == _PIECES:
            pieces.append(_read_piece(value))
        elif number in (_TRAINER, _NORMALIZER, _DENORMALIZER):
            {_TRAINER: trainer, _NORMALIZER: normalizer, _DENORMALIZER: denormalizer}[number].update(_fields(value))
    begin, end = (
        i if 0 <= i < len(pieces) and pieces[i].kind is PieceKind.control else None
        for i in (_integer(trainer, 41, 1), _integer(trainer, 42, 2))
    )
    return ModelDescription(
        pieces=tuple(pieces),
        algorithm=_integer(trainer, 3, UNIGRAM),
        byte_fallback=bool(_integer(trainer, 35, 0)),
        character_map=_content(normalizer, 2),
        dummy_prefix=bool(_integer(normalizer, 3, 1)),
        remove_extra_spaces=bool(_integer(normalizer, 4, 1)),
        escape_spaces=bool(_integer(normalizer, 5, 1)),
        space_is_suffix=bool(_integer(trainer, 24, 0)),
        denormalizes=bool(_content(denormalizer, 2)),
        begin_id=begin,
        end_id=end,
    )


def _read_piece(message: bytes) -> Piece:
    values = dict(_fields(message))
    score = struct.unpack("<f", _content(values, 2) or bytes(4))[0]
    return Piece(_content(values, 1).decode(), score, PieceKind(_integer(values, 3, PieceKind.normal)))


def _integer(values: dict[int, bytes | int], number: int, default: int) -> int:
    value = values.get(number, default)
    if isinstance(value, bytes):
        raise ValueError(f"field {number} is not a number")
    return value - (1 << 64) if value >> 63 else value  # an id of -1 is written as 2^64 - 1


def _content(values: dict[int, bytes | int], number: int) -> bytes:
    value = values.get(number, b"")
    if isinstance(value, int):
        raise ValueError(f"field {number} is a number")
    return value


def _fields(message: bytes) -> Iterator[tuple[int, bytes | int]]:
    """(field number, value) in order; integers as they are, everything else as bytes. ValueError: it is cut short."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        wire = key & 7
        if wire == 0:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        if wire == 2:
            size, at = _varint(message, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} is unknown")
        if at + size > len(message):
            raise ValueError("it ends in the middle of a field")
        yield key >> 3, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """An integer of seven bits a byte, the lowest first, and where the next field begins."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise ValueError("it ends in the middle of a number")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number has more than ten bytes")
