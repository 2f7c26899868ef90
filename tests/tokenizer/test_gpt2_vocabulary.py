"""GPT-2's vocabulary from its native files: llama.cpp's vectors and published token counts."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from minigpt.config import RequestError
from minigpt.tokenizer import HuggingFaceTokenizer, Tokenizer, load_gpt2, load_tokenizer
from minigpt.tokenizer.byte_level import byte_alphabet


@pytest.fixture(scope="module")
def loaded() -> dict[Path, HuggingFaceTokenizer]:
    return {}


@pytest.fixture
def gpt2(test_data: Callable[[str], Path], loaded: dict[Path, HuggingFaceTokenizer]) -> HuggingFaceTokenizer:
    folder = test_data("gpt2_bpe")
    if folder not in loaded:  # half a second, once
        loaded[folder] = load_gpt2(folder)
    return loaded[folder]


def test_all_47_vectors(gpt2: HuggingFaceTokenizer, test_data: Callable[[str], Path]) -> None:
    # "\n", the separator and "\n" follow each input and "\n" each line of ids. What is left at the end is the 47th
    # pair: no text, no ids.
    content = test_data("gpt2_bpe/ggml-vocab-gpt-2.gguf.inp").read_bytes().decode()
    inputs = content.split("\n__ggml_vocab_test__\n")
    lines = test_data("gpt2_bpe/ggml-vocab-gpt-2.gguf.out").read_text().split("\n")
    assert len(inputs) == len(lines) == 47
    expected = [[int(i) for i in line.split()] for line in lines]
    assert [gpt2.encode(text) for text in inputs] == expected
    assert gpt2.encode_batch(inputs) == expected
    assert [gpt2.decode(ids) for ids in expected] == inputs


def test_published_token_counts(gpt2: HuggingFaceTokenizer, test_data: Callable[[str], Path]) -> None:
    article = test_data("tokenizer_vectors/taylorswift.txt").read_bytes().decode()
    assert len(gpt2.encode(article)) == 45_332  # minbpe's README
    shakespeare = test_data("tinyshakespeare/input.txt").read_bytes().decode()
    split = int(len(shakespeare) * 0.9)
    counts = [len(gpt2.encode(part)) for part in (shakespeare[:split], shakespeare[split:])]
    assert counts == [301_966, 36_059]  # nanoGPT's data/shakespeare/prepare.py


def test_its_parts(gpt2: HuggingFaceTokenizer) -> None:
    assert isinstance(gpt2, Tokenizer)
    assert gpt2.vocab_size == 50257
    assert gpt2.special_tokens == {"<|endoftext|>": 50256}
    assert gpt2.eot_id == 50256
    assert gpt2.token_bytes(50256) is None and gpt2.token_bytes(50257) is None and gpt2.token_bytes(-1) is None
    assert gpt2.token_bytes(262) == b" the"


def test_special_token_only_when_asked_for(gpt2: HuggingFaceTokenizer) -> None:
    text = "one<|endoftext|>two"
    assert gpt2.encode(text) == [505, 27, 91, 437, 1659, 5239, 91, 29, 11545]
    assert gpt2.encode(text, allow_special=True) == [505, 50256, 11545]
    assert gpt2.encode_batch([text], allow_special=True) == [[505, 50256, 11545]]
    assert gpt2.decode([505, 50256, 11545]) == text
    assert gpt2.decode([505, 50256, 11545], skip_special=True) == "onetwo"


@pytest.mark.slow
def test_save_and_load_again(gpt2: HuggingFaceTokenizer, test_data: Callable[[str], Path], tmp_path: Path) -> None:
    gpt2.save(tmp_path)
    for name in ("encoder.json", "vocab.bpe"):
        assert (tmp_path / name).read_bytes() == test_data(f"gpt2_bpe/{name}").read_bytes()
    for path in (tmp_path, tmp_path / "tokenizer.json", tmp_path / "encoder.json"):
        again = load_tokenizer(path)
        assert again.fingerprint == gpt2.fingerprint
        assert again.special_tokens == gpt2.special_tokens
    assert again.encode("naïve\r\n<|endoftext|>") == gpt2.encode("naïve\r\n<|endoftext|>")


def write_pair(
    folder: Path, vocabulary: object, merges: str, names: tuple[str, str] = ("encoder.json", "vocab.bpe")
) -> None:
    (folder / names[0]).write_text(json.dumps(vocabulary))
    (folder / names[1]).write_text(merges, encoding="utf-8")


def test_vocab_json_and_merges_txt(tmp_path: Path) -> None:
    words = {letter: i for i, letter in enumerate(sorted(byte_alphabet()))}
    write_pair(
        tmp_path, {**words, "ab": 256, "<s>": 300, "</s>": 257}, "#version: 0.2\na b\n", ("vocab.json", "merges.txt")
    )
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.special_tokens == {"</s>": 257, "<s>": 300}
    assert tokenizer.eot_id == 257
    assert tokenizer.vocab_size == 301  # with holes: the largest id plus one
    assert tokenizer.encode("ab")[0] == 256
    assert tokenizer.token_bytes(280) is None
    assert tokenizer.byte_lengths()[[256, 257, 280, 300]].tolist() == [2, 0, 0, 0]


@pytest.mark.parametrize(
    ("vocabulary", "merges", "sentence"),
    [
        (
            {"a": 0, "b": 1},
            "#version: 0.2\na b\n",
            "vocab.bpe does not fit encoder.json: the merge of 'a' and 'b' needs the token 'ab'",
        ),
        ({"a": 0, "b": 1, "zb": 2}, "z b\n", "merge of 'z' and 'b' needs the token 'z'"),
        ({"a": 0, "b": 1, "ab": 1 << 31}, "a b\n", "has ids up to 2147483648"),
        ({"a": 0, "b": 1}, "a\n", "vocab.bpe does not fit encoder.json"),
        (["a", "b"], "a b\n", "encoder.json is not a BPE vocabulary: its vocabulary is not an object of token: id"),
        ({"a": "0"}, "", "encoder.json is not a BPE vocabulary"),
        ({}, "", "encoder.json is not a BPE vocabulary"),
    ],
)
def test_damaged_files(tmp_path: Path, vocabulary: object, merges: str, sentence: str) -> None:
    write_pair(tmp_path, vocabulary, merges)
    with pytest.raises(RequestError, match=sentence):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("present", ["encoder.json", "vocab.bpe", "vocab.json", "merges.txt"])
def test_one_of_the_pair_is_missing(tmp_path: Path, present: str) -> None:
    (tmp_path / present).write_text("{}")
    with pytest.raises(RequestError, match=f"has {present} but no .*: both files are needed"):
        load_tokenizer(tmp_path)
