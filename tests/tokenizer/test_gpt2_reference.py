"""GPT-2's ids are those of `tiktoken` and of `tokenizers`, on real text, every byte and random Unicode."""

import gzip
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiktoken
import tokenizers
from tiktoken.load import data_gym_to_mergeable_bpe_ranks
from tiktoken_ext import openai_public
from transformers import AutoTokenizer

from minigpt.config import RequestError
from minigpt.tokenizer import HuggingFaceTokenizer, load_gpt2, load_tokenizer
from minigpt.tokenizer.fuzz import fuzz_texts

ACCENTS, EMOJI, CONTROLS = (
    range(0x300, 0x370),
    range(0x1F300, 0x1FB00),
    [*range(0x20), *range(0x7F, 0xA0), 0x200B, 0x202E],
)
SOME_TEXTS = ["tokenizer_vectors/taylorswift.txt", "tokenizer_vectors/cs336"]


class Trio:
    """This package's tokenizer and the two that it must agree with, each made from the same two files by itself."""

    def __init__(self, folder: Path) -> None:
        vocabulary, merges = str(folder / "encoder.json"), str(folder / "vocab.bpe")
        self.ours: HuggingFaceTokenizer = load_gpt2(folder)
        self.tiktoken = tiktoken.Encoding(
            "gpt2",
            pat_str=openai_public.r50k_pat_str,
            mergeable_ranks=data_gym_to_mergeable_bpe_ranks(merges, vocabulary),
            special_tokens={"<|endoftext|>": 50256},
            explicit_n_vocab=50257,
        )
        self.tokenizers = tokenizers.ByteLevelBPETokenizer.from_file(vocabulary, merges)
        self.ours._fast_after = 1  # the fast way from the first text on

    def check(self, text: str) -> None:
        expected = self.tiktoken.encode_ordinary(text)
        assert self.ours.encode(text) == expected, text[:100]
        assert self.ours.encode_arrays([text])[0].tolist() == expected, text[:100]
        assert self.tokenizers.encode(text).ids == expected, text[:100]
        assert self.ours.decode(expected) == text


@pytest.fixture(scope="module")
def loaded() -> dict[Path, Trio]:
    return {}


@pytest.fixture
def trio(test_data: Callable[[str], Path], loaded: dict[Path, Trio]) -> Trio:
    folder = test_data("gpt2_bpe")
    if folder not in loaded:
        loaded[folder] = Trio(folder)
    return loaded[folder]


def texts_of(path: Path) -> Iterator[str]:
    """The text of a file, or of the files of a folder, in parts; what is not text gives none."""
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
            try:
                text = content.decode()
            except UnicodeDecodeError:  # weights
                continue
            yield from (text[start : start + 500_000] for start in range(0, len(text), 500_000))


@pytest.mark.parametrize("name", SOME_TEXTS)
def test_real_text(name: str, trio: Trio, test_data: Callable[[str], Path]) -> None:
    for text in texts_of(test_data(name)):
        trio.check(text)


@pytest.mark.slow
def test_all_text_of_the_test_data(trio: Trio, test_data: Callable[[str], Path]) -> None:
    characters = 0
    for text in texts_of(test_data("README.md").parent):
        trio.check(text)
        characters += len(text)
    assert characters > 50_000_000


@pytest.mark.slow
def test_every_byte_and_every_character_of_the_first_plane(trio: Trio) -> None:
    valid = [chr(point) for point in range(0x10000) if not 0xD800 <= point < 0xE000]
    for byte in range(256):
        for text in (chr(byte), f" {chr(byte)}", f"a{chr(byte)}b", chr(byte) * 3):
            trio.check(text)
    trio.check("".join(valid))
    trio.check(" ".join(valid))
    trio.check("a".join(valid))
    assert {trio.ours.token_bytes(i) for i in range(50256)} >= {bytes([byte]) for byte in range(256)}


@pytest.mark.slow
def test_random_unicode(trio: Trio) -> None:
    draw = random.Random(20)

    def any_point() -> int:
        while 0xD800 <= (point := draw.randrange(sys.maxunicode + 1)) < 0xE000:
            pass
        return point

    kinds: list[Callable[[], int]] = [
        any_point,
        lambda: draw.choice(EMOJI),
        lambda: draw.choice(ACCENTS),
        lambda: draw.choice(CONTROLS),
        lambda: draw.randrange(0x80),
        lambda: draw.choice(b" \t\r\n'"),
    ]
    for _ in range(600):
        some = draw.choices(kinds, k=3)
        trio.check("".join(chr(draw.choice(some)()) for _ in range(draw.randrange(60))))
    trio.check("".join(chr(any_point()) for _ in range(100_000)))
    for text in fuzz_texts([])[:1000]:
        trio.check(text)


@pytest.mark.parametrize("text", ["\ud800", "ab\udfff", "\ud83d \ude00", "fine" * 50_000 + "\udc00"])
def test_lone_surrogates_are_refused(text: str, trio: Trio) -> None:
    for encode in (
        trio.ours.encode,
        lambda text: trio.ours.encode_arrays([text]),
        lambda t: trio.ours.encode_batch([t]),
    ):
        with pytest.raises(RequestError, match=r"not valid Unicode: a lone surrogate U\+D[8-F]..\b at character \d+$"):
            encode(text)


def test_saved_and_read_by_transformers(trio: Trio, tmp_path: Path) -> None:
    trio.ours.save(tmp_path)
    again, theirs = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert again.fingerprint == trio.ours.fingerprint
    for text in fuzz_texts([])[:1000]:
        assert theirs.encode(text) == again.encode(text) == trio.tiktoken.encode_ordinary(text)
