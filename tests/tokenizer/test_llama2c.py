"""llama2.c's tokenizer.bin: against the reference ids of stories260K and its rule written out naively."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from minigpt.config import RequestError
from minigpt.tokenizer import load_tokenizer
from minigpt.tokenizer.fuzz import HARD
from minigpt.tokenizer.llama2c import Llama2cTokenizer

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
PIECES = [(0.0, name) for name in ("<unk>", "\n<s>\n", "\n</s>\n", *BYTES)]


def packed(learned: list[tuple[float, str]]) -> bytes:
    pieces = [*PIECES, *learned]
    longest = max(len(text.encode()) for _, text in pieces)
    body = b"".join(struct.pack("<fi", score, len(text.encode())) + text.encode() for score, text in pieces)
    return struct.pack("<i", longest) + body


LEARNED = [(-1.0, " t"), (-2.0, "he"), (-3.0, " the"), (-4.0, "aa"), (-4.0, "ab"), (-4.0, "ba"), (-5.0, "aab")]
LETTERS = [(-9.0 - n, letter) for n, letter in enumerate(" theabé中\n")]
SMALL = packed(LEARNED + LETTERS)
SPACES_INSIDE = packed([*LEARNED, (-0.5, "a "), (-0.6, "a a"), (-0.7, "  "), *LETTERS])


def naive(content: bytes, text: str) -> list[int]:
    """run.c's loop: of all neighbours the pair with the best score, the first of equals, until there is none."""
    scores: dict[str, tuple[int, float]] = {}
    at, number = 4, 0
    while at < len(content):
        score, size = struct.unpack_from("<fi", content, at)
        piece = content[at + 8 : at + 8 + size].decode()
        if number >= len(PIECES):
            scores.setdefault(piece, (number, score))
        at, number = at + 8 + size, number + 1
    parts = list(" " + text if text else "")
    while True:
        best = (-1e10, -1)
        for i in range(len(parts) - 1):
            _, score = scores.get(parts[i] + parts[i + 1], (0, -1e10))
            if score > best[0]:
                best = (score, i)
        if best[1] < 0:
            break
        parts[best[1] : best[1] + 2] = [parts[best[1]] + parts[best[1] + 1]]
    return [i for p in parts for i in ([scores[p][0]] if p in scores else [3 + byte for byte in p.encode()])]


@pytest.mark.parametrize("content", [SMALL, SPACES_INSIDE], ids=["words", "spaces inside"])
@settings(max_examples=100, deadline=None)
@given(text=st.text("theab  \né中▁<>x0A", max_size=40) | st.text(max_size=12))
@example(text="aab ab  a a b the  theaaaab")
@example(text="<0x41></s>")
def test_ids_are_those_of_the_naive_rule(content: bytes, text: str) -> None:
    tokenizer = Llama2cTokenizer(content)
    ids = naive(content, text)
    assert tokenizer.encode(text) == ids
    assert tokenizer.encode_batch([text, ""]) == [ids, []]
    arrays = tokenizer.encode_arrays([text])
    assert arrays[0].dtype == np.uint32 and arrays[0].tolist() == ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(tokenizer.encode(text, allow_special=True)) == text
    assert tokenizer.byte_lengths()[ids].sum() == len(text.encode()) + bool(text)  # the space before the text


def test_stories260k(test_data: Callable[[str], Path], tmp_path: Path) -> None:
    folder = test_data("weights/stories260K")
    reference = json.loads((folder / "reference_float64.json").read_text())
    tokenizer = load_tokenizer(folder / "tok512.bin")
    assert (tokenizer.vocab_size, tokenizer.eot_id, tokenizer.exact_bytes) == (512, 2, False)
    assert tokenizer.special_tokens == {"<unk>": 0, "<s>": 1, "</s>": 2}
    assert [1, *tokenizer.encode(reference["prompt"])] == reference["prompt_ids"]
    assert [1, *tokenizer.encode(reference["greedy_text"])] == reference["greedy_ids"]
    assert tokenizer.decode(reference["greedy_ids"], skip_special=True) == reference["greedy_text"]
    sample = test_data("tokenizer_vectors/cs336/tinystories_sample.txt").read_text(encoding="utf-8")
    stories = [story.strip() for story in sample.split("<|endoftext|>") if story.strip()]
    assert [1 + len(ids) for ids in tokenizer.encode_batch(stories)] == reference["cs336_story_tokens"]
    assert [tokenizer.decode(ids) for ids in tokenizer.encode_batch(stories)] == stories

    tokenizer.save(tmp_path)
    assert (tmp_path / "tokenizer.bin").read_bytes() == (folder / "tok512.bin").read_bytes()
    for path in (tmp_path, tmp_path / "tokenizer.bin", tmp_path / "tokenizer.json"):
        again = load_tokenizer(path)
        assert isinstance(again, Llama2cTokenizer) and again.fingerprint == tokenizer.fingerprint
        assert again.encode_batch(HARD) == tokenizer.encode_batch(HARD)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*HARD, *stories]:
        assert theirs(text).input_ids == tokenizer.encode(text)
    assert theirs.decode(tokenizer.encode(stories[0])) == stories[0]
    assert (theirs.bos_token_id, theirs.eos_token_id) == (1, 2)


def test_special_tokens_and_surrogates() -> None:
    tokenizer = Llama2cTokenizer(SMALL)
    assert tokenizer.encode("a</s>a", allow_special=True) == [*tokenizer.encode("a"), 2, *tokenizer.encode("a")]
    assert not set(tokenizer.encode("<s>the</s>")) & {0, 1, 2}
    assert tokenizer.decode([1, *tokenizer.encode("the"), 2], skip_special=True) == "the"
    with pytest.raises(RequestError, match=r"lone surrogate U\+D800 at character 2"):
        tokenizer.encode_arrays(["a \ud800"])
    with pytest.raises(RequestError, match="token id 999 is outside the vocabulary"):
        tokenizer.decode([999])


def test_a_long_word_takes_no_quadratic_time() -> None:
    tokenizer = Llama2cTokenizer(SMALL)
    text = "ab" * 30_000  # the naive rule would look at two thousand million pairs
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "it is empty or cut short"),
        (SMALL[:-1], "it ends in the middle of piece 274"),
        (SMALL[: len(SMALL) - 7], "it ends in the middle of piece"),
        (SMALL[:2000], "it ends in the middle of piece"),
        (SMALL[:200], "it ends in the middle of piece"),
        (b"\x00" * 4000, "it ends in the middle of piece 499"),
        (SMALL[:4] + b"\xff" * 4000, "piece 0 has the length -1"),
        (b'{"model": {"type": "BPE"}}' * 99, "piece 0"),
        (packed([(float("nan"), "a")]), "the score nan"),
        (struct.pack("<i", 7), "piece 0 is not <unk>"),
        (SMALL.replace(b"<0x41>", b"<0x4z>"), "piece 68 is not <0x41>"),
        (SMALL.replace("é".encode(), b"\xff\xfe"), "is not UTF-8"),
    ],
)
def test_damaged_files(content: bytes, named: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.bin"
    path.write_bytes(content)
    with pytest.raises(RequestError, match=rf"tokenizer\.bin is not a tokenizer\.bin of llama2\.c: .*{named}"):
        load_tokenizer(path)
