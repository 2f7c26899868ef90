"""A tokenizer as the tokenizer.bin that llama2.c's run.c reads: its own, or a SentencePiece BPE in Llama 2's layout."""

import struct
import tempfile
from pathlib import Path

from minigpt.config import RequestError
from minigpt.tokenizer import Tokenizer
from minigpt.tokenizer.fuzz import differing_text, fuzz_texts
from minigpt.tokenizer.llama2c import BIN_FILE, Llama2cTokenizer
from minigpt.tokenizer.model_proto import SPACE, ModelDescription, PieceKind
from minigpt.tokenizer.pieces import PieceTokenizer


def tokenizer_bin(tokenizer: Tokenizer, tokens: int) -> bytes:
    """Content of the file, for a model of so many tokens. RequestError: there is none that gives the same ids."""
    if tokenizer.vocab_size != tokens:
        raise RequestError(
            f"llama2.c wants as many pieces of text as the model has tokens: the tokenizer has "
            f"{tokenizer.vocab_size:,}, the model {tokens:,}"
        )
    if isinstance(tokenizer, Llama2cTokenizer):
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save(Path(folder))
            return (Path(folder) / BIN_FILE).read_bytes()
    reason = "it is no BPE of SentencePiece"
    if isinstance(tokenizer, PieceTokenizer):
        content = _encode(tokenizer.model)
        try:
            written = Llama2cTokenizer(content)
        except ValueError as error:
            reason = str(error)
        else:
            normal = (PieceKind.normal, PieceKind.user_defined)
            pieces = [piece.text.replace(SPACE, " ") for piece in tokenizer.model.pieces if piece.kind in normal]
            texts = [text for text in fuzz_texts(pieces) if SPACE not in text]  # which SentencePiece reads as a space
            text = differing_text(tokenizer.encode, written.encode, texts)
            if text is None:
                return content
            reason = f"run.c gives other ids for {text[:40]!r}"
    raise RequestError(
        f"llama2.c cannot say this model's tokenizer: {reason} (it takes one like Llama 2's: <unk>, <s>, </s>, the 256 "
        "bytes, then pieces that merge by score, and a space before each text)"
    )


def _encode(model: ModelDescription) -> bytes:
    """Score, length and bytes of each piece, as tokenizer.py of llama2.c writes them."""
    pieces = []
    for piece in model.pieces:
        text = f"\n{piece.text}\n" if piece.kind is PieceKind.control else piece.text.replace(SPACE, " ")
        pieces.append((piece.score, text.encode()))
    longest = max(len(text) for _, text in pieces)
    return struct.pack("<i", longest) + b"".join(struct.pack("<fi", s, len(text)) + text for s, text in pieces)
