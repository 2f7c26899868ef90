"""A SentencePiece or llama2.c vocabulary in GGUF's keys, as llama.cpp's tokenizer `llama` has it.

That one merges the two neighbours whose joint piece has the best score, the leftmost of equals, and spells what is left
in bytes: the BPE of both programs. It has no normalizer, and knows no unigram model with bytes.
"""

from typing import Any

from minigpt.config import RequestError
from minigpt.tokenizer.model_proto import BPE, SPACE, ModelDescription, PieceKind

UNUSED = int(PieceKind.unused)


def piece_keys(model: ModelDescription, size: int) -> dict[str, Any]:
    """The keys, with tokens up to number `size`. RequestError: llama.cpp would give other ids, with the reason."""
    reason = _obstacle(model)
    if reason is not None:
        raise RequestError(f"this tokenizer cannot be in a GGUF file: {reason}")
    names = [piece.text if model.escape_spaces else piece.text.replace(" ", SPACE) for piece in model.pieces]
    if len(set(names)) < len(names):
        raise RequestError("this tokenizer cannot be in a GGUF file: two of its pieces are the same text")
    spare = range(len(names), size)
    keys: dict[str, Any] = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [*names, *(f"[UNUSED_{i}]" for i in spare)],
        "tokenizer.ggml.scores": [*(float(piece.score) for piece in model.pieces), *(0.0 for _ in spare)],
        "tokenizer.ggml.token_type": [*(int(piece.kind) for piece in model.pieces), *(UNUSED for _ in spare)],
        "tokenizer.ggml.add_space_prefix": model.dummy_prefix,
    }
    if model.begin_id is not None:
        keys["tokenizer.ggml.bos_token_id"] = model.begin_id
    unknown = next((i for i, piece in enumerate(model.pieces) if piece.kind is PieceKind.unknown), None)
    if unknown is not None:
        keys["tokenizer.ggml.unknown_token_id"] = unknown
    return keys


def _obstacle(model: ModelDescription) -> str | None:
    """Why llama.cpp cannot give the same ids."""
    if model.algorithm != BPE:
        return "of SentencePiece models llama.cpp runs only BPE exactly (train a tokenizer.kind=sentencepiece-bpe)"
    if not model.byte_fallback:
        return "it has no bytes to spell unknown characters with"
    if model.character_map or model.remove_extra_spaces or model.denormalizes:
        return "it normalises text, which llama.cpp does not do for SentencePiece models"
    if model.space_is_suffix:
        return "it has spaces at the end of words"
    if any(piece.kind is PieceKind.user_defined for piece in model.pieces):
        return "it has pieces that are never split (user-defined ones), which llama.cpp finds otherwise"
    if not model.escape_spaces and any(SPACE in piece.text for piece in model.pieces):
        return f"it has pieces with the letter {SPACE}, which is a space there"
    return None
