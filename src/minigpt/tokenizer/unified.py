"""SentencePiece models in the words of the Hugging Face `tokenizers` library, for a tokenizer.json.

Both libraries know the two algorithms (unigram: Kudo 2018, arXiv:1804.10959; BPE over the whole text) but not in all
details. What is known to differ is refused here; the rest is compared on many texts by whoever calls this.
One difference is let pass: SentencePiece adds up a text's scores in 32 bits, `tokenizers` in 64, so that in texts of
many thousand characters two segmentations of nearly the same score may be told apart differently.
"""

import math

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from minigpt.tokenizer.model_proto import BPE, SPACE, UNIGRAM, ModelDescription, Piece, PieceKind


class Inexact(Exception):
    """Why there is no tokenizer.json with the same meaning."""


def as_backend(model: ModelDescription) -> tokenizers.Tokenizer:
    """The same tokenizer for the `tokenizers` library. Inexact: it cannot say this."""
    if model.algorithm not in (UNIGRAM, BPE):
        raise Inexact("it is neither a unigram nor a BPE model")
    if model.space_is_suffix or model.denormalizes:
        raise Inexact("it treats spaces in a way that tokenizer.json does not know")
    if any(piece.kind in (PieceKind.user_defined, PieceKind.unused) for piece in model.pieces):
        raise Inexact("it has user-defined or unused pieces")
    if len({piece.text for piece in model.pieces}) != len(model.pieces):
        raise Inexact("it has a piece twice")
    if not all(math.isfinite(piece.score) for piece in model.pieces):
        raise Inexact("it has a piece with an infinite score")
    try:
        backend = tokenizers.Tokenizer(_unigram(model) if model.algorithm == UNIGRAM else _bpe(model))
        backend.normalizer = normalizers.Sequence(_normalizers(model))
    except Exception as error:  # the library raises plain Exceptions
        raise Inexact(f"the library tokenizers refuses it: {error}") from error
    if model.algorithm == UNIGRAM and model.byte_fallback:
        # Unigram would find the names of byte pieces in text, where they are text: keep them from it in one piece.
        if any("<0" in piece.text for piece in model.pieces if piece.kind is PieceKind.normal):
            raise Inexact("it has a piece with '<0', in which a byte's name like <0x0A> may begin")
        backend.pre_tokenizer = pre_tokenizers.Split(Regex("<(?=0x[0-9A-F]{2}>)"), behavior="merged_with_previous")
    backend.decoder = decoders.Sequence(_decoders(model))
    special = [piece.text for piece in model.pieces if piece.kind in (PieceKind.control, PieceKind.unknown)]
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    return backend


def _normalizers(model: ModelDescription) -> list[normalizers.Normalizer]:
    steps: list[normalizers.Normalizer] = []
    if model.character_map:
        steps.append(normalizers.Precompiled(model.character_map))
    if model.remove_extra_spaces:
        steps += [normalizers.Replace(Regex(r"\A +"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if model.dummy_prefix:
        steps.append(normalizers.Prepend(" "))
    if model.escape_spaces:
        steps.append(normalizers.Replace(" ", SPACE))
    if model.remove_extra_spaces:  # last, since SentencePiece removes the letter ▁ here as well
        steps.append(normalizers.Replace(Regex(rf"[ {SPACE}]+\z"), ""))
    return steps


def _decoders(model: ModelDescription) -> list[decoders.Decoder]:
    steps: list[decoders.Decoder] = [decoders.Replace(SPACE, " ")] if model.escape_spaces else []
    steps += [decoders.ByteFallback(), decoders.Fuse()]
    return [*steps, decoders.Strip(" ", 1, 0)] if model.dummy_prefix else steps


def _unigram(model: ModelDescription) -> models.Unigram:
    unknown = next((i for i, piece in enumerate(model.pieces) if piece.kind is PieceKind.unknown), None)
    scores = [(piece.text, piece.score) for piece in model.pieces]
    return models.Unigram(scores, unk_id=unknown, byte_fallback=model.byte_fallback)


def _bpe(model: ModelDescription) -> models.BPE:
    ids = {piece.text: i for i, piece in enumerate(model.pieces)}
    unknown = next((piece.text for piece in model.pieces if piece.kind is PieceKind.unknown), None)
    return models.BPE(ids, merges(model.pieces), unk_token=unknown, fuse_unk=True, byte_fallback=model.byte_fallback)


def merges(pieces: tuple[Piece, ...]) -> list[tuple[str, str]]:
    """Every pair of pieces that make a third, in the order in which SentencePiece prefers them: the higher score first.

    SentencePiece keeps no list of merges: any two neighbours merge whose text together is a piece.
    """
    ids = {piece.text: i for i, piece in enumerate(pieces) if piece.kind is PieceKind.normal}
    found: list[tuple[float, int, int, str, str]] = []
    for text in ids:
        score = pieces[ids[text]].score
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in ids and right in ids:
                found.append((-score, ids[left], ids[right], left, right))
    return [(left, right) for *_, left, right in sorted(found)]
