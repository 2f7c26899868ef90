"""decode(encode(text)) == text for every text, and the byte counts that bits per byte needs."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minigpt.config import RequestError
from minigpt.tokenizer import CharTokenizer, HuggingFaceTokenizer, load_gpt2, train_bpe

NASTY = [
    *("<|endoftext|>", "<|end", "oftext|>", " <|user|> ", "<|a b|>", "word", "\x00", "\x00\x00", "\r", "\r\n", "\n \n"),
    *(
        "\ufeff",
        "\ufffd",
        "\uffff",
        "\U0010ffff",
        "e\u0301",
        "\u0301",
        "\u200d",
        "\U0001f469\u200d\U0001f467",
        "ſ",
        "İ",
    ),
    *("\u00a0", "\u2028", "\x85", "Ġ", "Ċ", "▁", "##", "  ", "'s", "١٢٣", "한국어", "a" * 40),
]
TEXTS = st.lists(st.sampled_from(NASTY) | st.text(max_size=6), max_size=10).map("".join)
CORPUS = "the quick brown fox, naïve façade 中文 123 <|endoftext|> don't " * 3
TRAINED = {
    pattern: train_bpe([CORPUS], 340, pattern=pattern, special_tokens=["<|endoftext|>", "<|user|>", "<|a b|>", "word"])
    for pattern in ("gpt2", "llama3", "qwen2", "gpt4o")
}


def check(tokenizer: HuggingFaceTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode_batch([text, "", text]) == [ids, [], ids]
    assert not set(ids) & set(tokenizer.special_tokens.values())
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    pieces = [tokenizer.token_bytes(i) for i in ids]
    assert b"".join(piece for piece in pieces if piece is not None) == text.encode()
    assert int(tokenizer.byte_lengths()[ids].sum()) == len(text.encode())
    assert tokenizer.decode(tokenizer.encode(text, allow_special=True)) == text


@pytest.mark.parametrize("pattern", TRAINED)
@settings(max_examples=150, deadline=None)
@given(text=TEXTS)
@example(text="")
@example(text="".join(NASTY))
def test_trained_bpe(pattern: str, text: str) -> None:
    check(TRAINED[pattern], text)


@settings(max_examples=150, deadline=None)
@given(text=TEXTS.filter(bool), special=st.booleans())
def test_characters(text: str, special: bool) -> None:
    check(CharTokenizer.from_texts([text], ["<|endoftext|>", "word"] if special else []), text)


def test_gpt2(test_data: Callable[[str], Path]) -> None:
    tokenizer = load_gpt2(test_data("gpt2_bpe"))

    @settings(max_examples=150, deadline=None)
    @given(text=TEXTS)
    def every(text: str) -> None:
        check(tokenizer, text)

    every()


@settings(max_examples=100, deadline=None)
@given(ids=st.lists(st.integers(0, 339), max_size=20))
def test_decode_is_the_librarys(ids: list[int]) -> None:
    """Any ids, broken UTF-8 included, decode as the library decodes them."""
    tokenizer = TRAINED["gpt2"]
    ids = [i for i in ids if i < tokenizer.vocab_size and i != tokenizer.special_tokens["<|a b|>"]]
    assert tokenizer.decode(ids) == tokenizer._plain.decode(ids, skip_special_tokens=False)
    assert tokenizer.decode(ids, skip_special=True) == tokenizer._plain.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("tokenizer", [TRAINED["gpt2"], CharTokenizer.from_texts([CORPUS])], ids=["bpe", "char"])
@pytest.mark.parametrize("long", [False, True])
def test_lone_surrogates_are_refused(tokenizer: HuggingFaceTokenizer, long: bool) -> None:
    text = "the " * (50_000 if long else 1)
    with pytest.raises(RequestError, match=rf"lone surrogate U\+D800 at character {len(text)}$"):
        tokenizer.encode(text + "\ud800")
    with pytest.raises(RequestError, match=r"lone surrogate U\+DFFF at character 0"):
        tokenizer.encode_batch(["the", "\udfff"])


@pytest.mark.parametrize("i", [-1, 10**9])
def test_ids_outside_the_vocabulary(i: int) -> None:
    with pytest.raises(
        RequestError, match=f"token id {i} is outside the vocabulary of {TRAINED['gpt2'].vocab_size} ids"
    ):
        TRAINED["gpt2"].decode([5, i])


def test_threads_share_one() -> None:
    """Encoding with and without special tokens at once: neither sees the other's setting."""
    tokenizer = train_bpe([CORPUS], 300)
    plain = tokenizer.encode(CORPUS)
    special = tokenizer.encode(CORPUS, allow_special=True)
    assert plain != special
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda n: tokenizer.encode(CORPUS, allow_special=n % 2 == 1), range(200)))
    assert all(ids == (special if n % 2 else plain) for n, ids in enumerate(results))
