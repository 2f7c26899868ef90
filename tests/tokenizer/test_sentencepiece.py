"""SentencePiece models: ids, decoding and files, against the `sentencepiece` package and transformers."""

import io
import json
import random
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from minigpt.config import RequestError
from minigpt.tokenizer import Tokenizer, load_tokenizer
from minigpt.tokenizer.fuzz import HARD
from minigpt.tokenizer.sentencepiece import SentencePieceTokenizer, load_sentencepiece

spm = pytest.importorskip("sentencepiece")

EXACT = {"normalization_rule_name": "identity", "add_dummy_prefix": False, "remove_extra_whitespaces": False}
LLAMA = {**EXACT, "add_dummy_prefix": True}
STYLES: dict[str, dict[str, Any]] = {
    "exact": {**EXACT, "byte_fallback": True},
    "llama": {**LLAMA, "byte_fallback": True},
    "no bytes": LLAMA,
    "default": {"byte_fallback": True},  # sentencepiece's own: NFKC, and spaces removed
    "identity": {"normalization_rule_name": "identity"},
    "no prefix": {"add_dummy_prefix": False},
    "suffix": {"treat_whitespace_as_suffix": True},
    "user": {**LLAMA, "user_defined_symbols": ["<sep>", "two words", "\u2581\u2581\u2581"]},
}
MODELS = [(kind, style) for kind in ("unigram", "bpe") for style in STYLES]
SENTENCE = "the quick brown fox jumps over a lazy dog don't naïve façade 12 345, 中文 й € banana bandana two words"
WORDS = SENTENCE.split()
TEXTS = st.lists(st.sampled_from([*HARD, *WORDS, " ", "\n", "<sep>", "the fox"]) | st.text(max_size=6), max_size=8).map(
    "".join
)


@cache
def model(kind: str, style: str) -> bytes:
    """A model that the package trained on some random sentences."""
    draw = random.Random(0)
    words = WORDS + [
        "".join(draw.choices(("ba", "ka", "st", "el", "i", "ou"), k=draw.randrange(1, 5))) for _ in range(99)
    ]
    lines = [" ".join(draw.choices(words, k=9)) + "." * draw.randrange(3) for _ in range(300)]
    written = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=written,
        model_type=kind,
        vocab_size=380 if "byte_fallback" in STYLES[style] else 120,
        character_coverage=1.0,
        control_symbols=["<|user|>"],
        num_threads=1,
        minloglevel=2,
        **STYLES[style],
    )
    return written.getvalue()


def reference(content: bytes) -> Any:
    return spm.SentencePieceProcessor(model_proto=content)


@pytest.mark.parametrize(("kind", "style"), MODELS)
@settings(max_examples=40, deadline=None)
@given(text=TEXTS)
@example(text="".join(HARD))
@example(text="  the \u2581 fox\u2581")
def test_ids_and_text_are_the_packages(kind: str, style: str, text: str) -> None:
    content = model(kind, style)
    tokenizer, theirs = SentencePieceTokenizer(content), reference(content)
    ids = theirs.encode(text)
    assert tokenizer.encode(text) == ids
    assert tokenizer.encode_batch([text, "", text]) == [ids, [], ids]
    arrays = tokenizer.encode_arrays([text, "the"])
    assert arrays[0].dtype == np.uint32 and arrays[0].tolist() == ids
    if theirs.unk_id() not in ids and style != "suffix":  # <unk> has a name here and another sign there
        assert tokenizer.decode(ids).lstrip(" ") == theirs.decode(ids).lstrip(" ")
    if style == "exact":
        assert tokenizer.exact_bytes and tokenizer.decode(ids) == text.replace("\u2581", " ")
        assert b"".join(tokenizer.token_bytes(i) or b"" for i in ids) == text.replace("\u2581", " ").encode()
        assert tokenizer.byte_lengths()[ids].sum() == len(text.replace("\u2581", " ").encode())
    if style == "llama":
        assert tokenizer.decode(ids) == text.replace("\u2581", " ")


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
@settings(max_examples=60, deadline=None)
@given(ids=st.lists(st.integers(4, 379), max_size=12))
@example(ids=[4 + ord(" ")])  # a space as a byte is none that the model put there
def test_any_ids_decode_as_the_package_decodes_them(kind: str, ids: list[int]) -> None:
    for style in ("exact", "llama"):
        ours = SentencePieceTokenizer(model(kind, style)).decode(ids)
        theirs = reference(model(kind, style)).decode(ids)
        if "\ufffd" not in ours:  # how many signs stand for bytes that are no UTF-8 is a matter of taste
            assert ours == theirs


@pytest.mark.parametrize(("kind", "style"), MODELS)
@pytest.mark.parametrize("piece", [20, 300])
def test_long_texts_are_cut_where_it_makes_no_difference(kind: str, style: str, piece: int) -> None:
    draw = random.Random(1)
    text = "".join(draw.choice([*WORDS, " ", " ", " ", "\n", "  ", "e\u0301", " \u0308"]) for _ in range(800))
    tokenizer = SentencePieceTokenizer(model(kind, style))
    tokenizer._part_characters = piece
    assert (len(list(tokenizer._parts(text))) > 1) == (style not in ("suffix", "no prefix", "user"))
    assert tokenizer.encode(text) == reference(model(kind, style)).encode(text)
    assert tokenizer.encode_batch(["", text, "the", text])[2:] == [tokenizer.encode("the"), tokenizer.encode(text)]


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_special_tokens(kind: str) -> None:
    for style in ("exact", "llama"):
        tokenizer = SentencePieceTokenizer(model(kind, style))
        assert tokenizer.special_tokens == {"<unk>": 0, "<s>": 1, "</s>": 2, "<|user|>": 3} and tokenizer.eot_id == 2
        text = "the fox<|user|>the <s> dog</s> a"
        plain, special = tokenizer.encode(text), tokenizer.encode(text, allow_special=True)
        assert not set(plain) & {0, 1, 2, 3} and tokenizer.decode(plain) == text
        assert [i for i in special if i < 4] == [3, 1, 2] and tokenizer.decode(special) == text
        assert tokenizer.decode(special, skip_special=True) == "the foxthe  dog a"
        assert [tokenizer.token_bytes(i) for i in range(4)] == [None] * 4 and not tokenizer.byte_lengths()[:4].any()


@pytest.mark.parametrize(("kind", "style"), MODELS)
def test_save_and_load(kind: str, style: str, tmp_path: Path) -> None:
    tokenizer = SentencePieceTokenizer(model(kind, style), settings={"chat_template": "{{ messages }}", "unknown": 1})
    tokenizer.save(tmp_path)
    assert (tmp_path / "tokenizer.model").read_bytes() == model(kind, style)
    translated = (tmp_path / "tokenizer.json").exists()
    assert translated or style not in ("exact", "llama", "no bytes", "identity")
    assert not (translated and style in ("suffix", "user"))
    written = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert written["chat_template"] == "{{ messages }}" and "unknown" not in written
    assert (written["bos_token"], written["eos_token"]) == ("<s>", "</s>")
    names = ["tokenizer.model"] + ["tokenizer.json"] * translated
    for path in (tmp_path, *(tmp_path / name for name in names)):
        same(load_tokenizer(path), tokenizer)
    if translated:
        theirs = AutoTokenizer.from_pretrained(tmp_path)
        for text in [*HARD, " ".join(WORDS)]:
            assert theirs(text).input_ids == tokenizer.encode(text)
            if style in ("exact", "llama"):
                assert theirs.decode(tokenizer.encode(text)) == tokenizer.decode(tokenizer.encode(text))
        assert theirs.eos_token_id == tokenizer.eot_id
    else:
        with pytest.raises(RequestError, match=r"cannot be exported as tokenizer\.json: .*use its own file tokenizer"):
            tokenizer.tokenizer_json()


def same(one: Tokenizer, other: Tokenizer) -> None:
    assert type(one) is type(other) and one.fingerprint == other.fingerprint
    assert (one.vocab_size, one.special_tokens, one.eot_id) == (other.vocab_size, other.special_tokens, other.eot_id)
    assert one.encode_batch(HARD) == other.encode_batch(HARD)


def test_fingerprints_tell_what_changes_ids() -> None:
    found = {SentencePieceTokenizer(model(kind, style)).fingerprint for kind, style in MODELS}
    assert len(found) == len(MODELS)


def test_botchan(test_data: Callable[[str], Path], tmp_path: Path) -> None:
    """The package's own test model, on its whole text at once and line by line."""
    folder = test_data("tokenizer_vectors/sentencepiece")
    tokenizer = load_sentencepiece(folder / "test_model.model")
    theirs = spm.SentencePieceProcessor(model_file=str(folder / "test_model.model"))
    text = (folder / "botchan.txt").read_text(encoding="utf-8")
    assert tokenizer.encode(text) == theirs.encode(text)
    lines = text.splitlines()
    assert tokenizer.encode_batch(lines) == theirs.encode(lines)
    for ids in theirs.encode(lines):
        assert tokenizer.decode(ids).replace("<unk>", " \u2047 ") == theirs.decode(ids)
    tokenizer.save(tmp_path)
    same(load_tokenizer(tmp_path), tokenizer)


def test_damaged_models(tmp_path: Path) -> None:
    whole = model("bpe", "exact")
    path = tmp_path / "some.model"
    for content in (b"", b"not a model at all", whole[: len(whole) // 2], whole[:-3], whole[100:], b"{}", b"\x00" * 99):
        path.write_bytes(content)
        with pytest.raises(RequestError, match=r"some\.model is not a SentencePiece model that can be used: ") as error:
            load_tokenizer(path)
        assert ".cc" not in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(RequestError, match=r"nowhere\.model does not exist"):
        load_tokenizer(tmp_path / "nowhere.model")


@pytest.mark.slow
def test_models_with_a_few_wrong_bytes(tmp_path: Path) -> None:
    """They are refused, or are models that can be used and saved: never another error."""
    draw = random.Random(0)
    whole = model("unigram", "default")
    path = tmp_path / "some.model"
    used = 0
    for _ in range(150):
        content = bytearray(whole)
        # the learned pieces, or anywhere
        at = draw.choice([draw.randrange(4000, 6000), draw.randrange(len(content))])
        content[at] ^= 1 << draw.randrange(8)
        path.write_bytes(bytes(content))
        try:
            tokenizer = load_tokenizer(path)
            tokenizer.decode(tokenizer.encode("the fox é 中文"))
            used += 1
            if used < 6:  # trying out a translation takes a while
                tokenizer.save(tmp_path)
        except RequestError as error:
            assert "\n" not in str(error)
    assert 6 < used < 150


def test_lone_surrogates_are_refused() -> None:
    tokenizer = SentencePieceTokenizer(model("unigram", "exact"))
    for encode in (tokenizer.encode, lambda text: tokenizer.encode_arrays(["the", text])):
        with pytest.raises(RequestError, match=r"lone surrogate U\+D800 at character 4"):
            encode("the \ud800")


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokenizer.model").write_bytes(model("bpe", "exact"))
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(RequestError, match=r'pip install "minigpt\[sentencepiece\]"'):
        load_tokenizer(tmp_path)
