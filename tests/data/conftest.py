"""Tokenizers and a cache for the tests of data."""

from pathlib import Path

import pytest

from minigpt.tokenizer import CharTokenizer, Tokenizer, train_bpe

TEXT = "To be, or not to be, that is the question:\nWhether 'tis nobler in the mind to suffer\n" * 40


@pytest.fixture(scope="module")
def char() -> CharTokenizer:
    return CharTokenizer.from_texts([TEXT + "0123456789é"])


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return train_bpe([TEXT], vocab_size=300, pattern="gpt2", special_tokens=["<|endoftext|>"])


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"
