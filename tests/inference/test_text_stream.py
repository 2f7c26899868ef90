"""Streaming text against decoding everything at once, with real tokenizers and random ids."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

from minigpt.inference import TextStream
from minigpt.tokenizer import CharTokenizer, HuggingFaceTokenizer, Tokenizer, train_bpe

TEXT = "naïve café 日本語 🙂🙃 hello hello \U0001f469\u200d\U0001f52c don't stop. " * 3


def _byte_level() -> Tokenizer:
    return train_bpe([TEXT], 300, "gpt2", ["<|endoftext|>"])


def _byte_fallback() -> Tokenizer:
    """Like SentencePiece with byte fallback: a decoder that looks at neighbours and strips the first space."""
    words = ["<unk>", *[f"<0x{i:02X}>" for i in range(256)], "\u2581", "\u2581a", "b", "\u2581日", "🙂"]
    backend = Backend(models.BPE({w: i for i, w in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return HuggingFaceTokenizer(backend)


BYTE_LEVEL, BYTE_FALLBACK = _byte_level(), _byte_fallback()
CHARACTERS = CharTokenizer.from_texts([TEXT])


def _stream(tokenizer: Tokenizer, ids: list[int], stop: list[str] | None = None) -> tuple[list[str], TextStream, int]:
    """Deltas (that of `finish` last), the stream, and how many tokens were pushed before it stopped."""
    stream = TextStream(tokenizer, stop or [])
    deltas = []
    pushed = 0
    for token in ids:
        deltas.append(stream.push(token))
        pushed += 1
        if stream.stopped:
            break
    return [*deltas, stream.finish()], stream, pushed


def _cut(text: str, stop: list[str]) -> str:
    """The definition: read character by character; end before the longest stop string that has just been completed."""
    for end in range(1, len(text) + 1):
        complete = [s for s in stop if text[:end].endswith(s)]
        if complete:
            return text[: end - max(map(len, complete))]
    return text


ids_of_bytes = st.lists(st.integers(0, BYTE_LEVEL.vocab_size - 1), max_size=40)


@given(ids_of_bytes)
@settings(max_examples=300, deadline=None)
def test_random_ids_byte_level(ids: list[int]) -> None:
    deltas, _, _ = _stream(BYTE_LEVEL, ids)
    assert "".join(deltas) == BYTE_LEVEL.decode(ids)


@given(ids_of_bytes, st.lists(st.text("e lo\ufffdd'", min_size=1, max_size=5), min_size=1, max_size=3))
@settings(max_examples=300, deadline=None)
def test_random_ids_with_stop_strings(ids: list[int], stop: list[str]) -> None:
    deltas, stream, pushed = _stream(BYTE_LEVEL, ids, stop)
    whole = _cut(BYTE_LEVEL.decode(ids), stop)
    assert "".join(deltas) == whole
    assert stream.stopped == (whole != BYTE_LEVEL.decode(ids))
    if stream.stopped and pushed:  # and no token later than needed
        certain = BYTE_LEVEL.decode(ids[: pushed - 1]).rstrip("\ufffd")
        assert _cut(certain, stop) == certain


@given(st.text(max_size=30))
@settings(max_examples=200, deadline=None)
def test_every_delta_is_whole_characters(text: str) -> None:
    ids = BYTE_LEVEL.encode(text)
    deltas, _, _ = _stream(BYTE_LEVEL, ids)
    assert "".join(deltas) == text
    assert "\ufffd" in text or not any("\ufffd" in delta for delta in deltas)


@given(st.lists(st.integers(1, BYTE_FALLBACK.vocab_size - 1), max_size=20))
@settings(max_examples=300, deadline=None)
def test_valid_text_of_a_decoder_that_looks_at_neighbours(ids: list[int]) -> None:
    whole = BYTE_FALLBACK.decode(ids)
    if "\ufffd" in whole:  # invalid bytes turn their valid neighbours into U+FFFD too, so there is no stable prefix
        return
    deltas, _, _ = _stream(BYTE_FALLBACK, ids)
    assert "".join(deltas) == whole


def test_window_decoder_keeps_the_space_after_a_prompt() -> None:
    prompt, more = [BYTE_FALLBACK.encode("b")[-1]], [259 - 1]  # "b", then a token " a"
    assert BYTE_FALLBACK.decode(more) == "a"
    stream = TextStream(BYTE_FALLBACK, prompt=prompt)
    assert stream.push(more[0]) + stream.finish() == " a"


def test_multi_byte_character_comes_whole_across_byte_tokens() -> None:
    ids = [BYTE_FALLBACK.encode("b")[-1], *[1 + byte for byte in "🙃".encode()]]
    assert _stream(BYTE_FALLBACK, ids)[0] == ["b", "", "", "", "🙃", ""]


def test_characters_come_at_once_and_stop_prefixes_are_held() -> None:
    ids = CHARACTERS.encode("hello stop. hello")
    deltas, stream, pushed = _stream(CHARACTERS, ids, ["stop.", "low"])
    assert deltas == ["h", "e", "", "l", "", "lo ", *[""] * 6]
    assert stream.stopped and pushed == len("hello stop.")


def test_held_prefix_comes_out_at_the_end() -> None:
    deltas, stream, _ = _stream(CHARACTERS, CHARACTERS.encode("hello sto"), ["stop."])
    assert deltas[-1] == "sto" and not stream.stopped


def test_unfinished_character_is_a_replacement_only_at_the_end() -> None:
    first_byte = BYTE_LEVEL.encode("\u0416")[0]  # not in the training text, so two tokens
    deltas, _, _ = _stream(BYTE_LEVEL, [first_byte])
    assert deltas == ["", "\ufffd"]


def test_special_token_is_its_name() -> None:
    assert BYTE_LEVEL.eot_id is not None
    assert _stream(BYTE_LEVEL, [BYTE_LEVEL.eot_id])[0] == ["<|endoftext|>", ""]


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, BYTE_FALLBACK, CHARACTERS], ids=["bytes", "fallback", "characters"])
def test_cost_of_a_token_does_not_grow(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    original = type(tokenizer).decode
    monkeypatch.setattr(
        type(tokenizer), "decode", lambda self, ids, **k: decoded.append(len(ids)) or original(self, ids, **k)
    )
    stream = TextStream(tokenizer, ["never such text"])
    for _ in range(2000):
        stream.push(tokenizer.vocab_size - 3)
    assert max(decoded, default=0) < 10 and len(stream.held) < 30
