"""The character tokenizer: nanoGPT's vocabulary, its errors, its files."""

from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers

from minigpt.config import RequestError
from minigpt.tokenizer import CharTokenizer, HuggingFaceTokenizer, load_tokenizer


def test_nanogpt_vocabulary(test_data: Callable[[str], Path]) -> None:
    text = test_data("tinyshakespeare/input.txt").read_bytes().decode()
    tokenizer = CharTokenizer.from_texts([text])
    characters = sorted(set(text))  # data/shakespeare_char/prepare.py: 65 of them, ids in this order
    assert tokenizer.vocab_size == len(characters) == 65
    assert tokenizer.encode(text[:5000]) == [characters.index(c) for c in text[:5000]]
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.special_tokens == {} and tokenizer.eot_id is None


@pytest.mark.parametrize(
    ("character", "named"), [("z", r"'z' \(U\+007A\)"), ("\U0001f600", r"U\+1F600"), ("\x00", r"'\\x00' \(U\+0000\)")]
)
def test_unknown_character_is_named(character: str, named: str) -> None:
    tokenizer = CharTokenizer.from_texts(["abc", "é"], ["<|endoftext|>"])
    with pytest.raises(
        RequestError, match=rf"character {named if named[0] == chr(39) else '.*' + named}.* at position 2 .*4 char"
    ):
        tokenizer.encode("ab" + character + "c")
    with pytest.raises(RequestError, match="at position 14 "):
        tokenizer.encode("a<|endoftext|>" + character, allow_special=True)


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_no_text(texts: list[str]) -> None:
    with pytest.raises(RequestError, match="the training text is empty"):
        CharTokenizer.from_texts(texts)


def test_surrogates_make_no_vocabulary() -> None:
    with pytest.raises(RequestError, match=r"lone surrogate U\+D801"):
        CharTokenizer.from_texts(["ab\ud801"])


def test_file_is_a_tokenizer_of_the_library(tmp_path: Path) -> None:
    text = "ab\n\x00\r\n é e\u0301 中\U0001f600 <unk> \u2028"
    tokenizer = CharTokenizer.from_texts([text])
    tokenizer.save(tmp_path)
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert library.encode(text).ids == tokenizer.encode(text)
    assert library.decode(tokenizer.encode(text)) == text
    again = load_tokenizer(tmp_path)
    assert isinstance(again, CharTokenizer)
    assert again.fingerprint == tokenizer.fingerprint
    assert again.encode(text) == tokenizer.encode(text)


def test_special_tokens(tmp_path: Path) -> None:
    plain = CharTokenizer.from_texts(["<|endoftext>"])
    tokenizer = CharTokenizer.from_texts(["<|endoftext>"], ["<|endoftext|>"])
    assert tokenizer.vocab_size == plain.vocab_size + 1
    assert tokenizer.fingerprint == plain.fingerprint
    text = "ten<|endoftext|>ten"
    assert tokenizer.encode(text) == plain.encode(text)
    assert tokenizer.encode(text, allow_special=True) == [*plain.encode("ten"), tokenizer.eot_id, *plain.encode("ten")]
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert isinstance(again, CharTokenizer) and again.eot_id == tokenizer.eot_id == plain.vocab_size


def test_a_word_model_is_not_mistaken_for_one(tmp_path: Path) -> None:
    CharTokenizer.from_texts(["ab"]).save(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text().replace('"a":', '"aa":'))
    loaded = load_tokenizer(path)
    assert type(loaded) is HuggingFaceTokenizer
    with pytest.raises(RequestError, match="cannot encode the text"):  # rather than dropping what it does not know
        loaded.encode("a")
