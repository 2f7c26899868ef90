"""The four splitting rules, against the `regex` module running the published expressions."""

import unicodedata

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX as QWEN2

from minigpt.config import RequestError
from minigpt.tokenizer import train_bpe
from minigpt.tokenizer.byte_level import byte_alphabet
from minigpt.tokenizer.patterns import REGEXES, pre_tokenizer, safe_pieces

# As OpenAI's tiktoken (openai_public.py: r50k_base's, cl100k_base's with a bounded \p{N}, o200k_base's) publishes them.
O200K = "|".join(
    [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)
PUBLISHED = {
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "llama3": QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|"),
    "qwen2": QWEN2,
    "gpt4o": O200K,
}
SNIPPETS = [
    *(
        "Hello",
        " world",
        "we're",
        "I'LL",
        "'s",
        "'S",
        "'ve ",
        "DON'T",
        "camelCase",
        "HTTPServer",
        "1234567",
        "3.14",
        "½",
    ),
    *(
        " ",
        "  ",
        "\n",
        "\r\n",
        "\n\n\n",
        "\t",
        " \n",
        "\u00a0",
        "\u3000",
        "...",
        "//\n",
        "#!",
        "?!\r\n/",
        "()[]",
        "\x00",
    ),
    *(
        "é",
        "e\u0301",
        "\u0301",
        "привет",
        "ΑΒΓ",
        "ǅ",
        "ʰ",
        "中文字",
        "हिन्दी",
        "ไทย",
        "٣٤٥",
        "Ⅷ",
        "👩‍👩‍👧",
        "\U0001f600",
        "🇩🇪",
    ),
]
TEXTS = st.lists(st.sampled_from(SNIPPETS) | st.text(max_size=3), max_size=12).map("".join)


def pieces_of(pattern: str, text: str) -> list[str]:
    letters = byte_alphabet()
    return [bytes(letters[c] for c in piece).decode() for piece, _ in pre_tokenizer(pattern).pre_tokenize_str(text)]


def known_to_both_unicodes(text: str) -> bool:
    """The regex module and the library know different versions of Unicode: only what Python's own, older, version knows
    is compared. The long s, which only some engines take for an s after an apostrophe, is left out."""
    return not any(unicodedata.category(character) == "Cn" or character == "\u017f" for character in text)


@pytest.mark.parametrize("pattern", REGEXES)
@settings(max_examples=200, deadline=None)
@given(text=TEXTS)
def test_splits_as_published(pattern: str, text: str) -> None:
    if known_to_both_unicodes(text):
        assert pieces_of(pattern, text) == regex.findall(PUBLISHED[pattern], text)


@pytest.mark.parametrize("pattern", REGEXES)
def test_every_pair_of_snippets(pattern: str) -> None:
    for left in SNIPPETS:
        for right in SNIPPETS:
            assert pieces_of(pattern, left + right) == regex.findall(PUBLISHED[pattern], left + right)


@pytest.mark.parametrize("pattern", REGEXES)
@settings(max_examples=150, deadline=None)
@given(text=TEXTS, size=st.integers(1, 8))
def test_safe_pieces_split_as_the_whole(pattern: str, text: str, size: int) -> None:
    parts = list(safe_pieces(text, size))
    assert "".join(parts) == text
    assert [piece for part in parts for piece in pieces_of(pattern, part)] == pieces_of(pattern, text)


@pytest.mark.parametrize("pattern", REGEXES)
def test_long_text_gives_the_ids_of_the_whole(pattern: str) -> None:
    line = "The HTTPServer's 1234 cats aren't   here...\r\n\n  Über 中文字 \U0001f600!\n"
    tokenizer = train_bpe([line * 3], 300, pattern=pattern)
    text = line * 4000  # 280,000 characters: several pieces
    whole = tokenizer._plain.encode(text, add_special_tokens=False).ids
    assert tokenizer.encode(text) == whole
    assert tokenizer.encode_batch(["a", text, "b"]) == [tokenizer.encode("a"), whole, tokenizer.encode("b")]
    assert tokenizer.encode(text, allow_special=True) == whole
    assert tokenizer.decode(whole) == text


def test_unknown_pattern() -> None:
    with pytest.raises(RequestError, match="choose one of gpt2, llama3, qwen2, gpt4o"):
        pre_tokenizer("cl100k")
