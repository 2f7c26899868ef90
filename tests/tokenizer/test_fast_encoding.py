"""The fast way of encoding gives the ids of the slow one, on every text, or is not taken."""

import json
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from minigpt.config import RequestError
from minigpt.tokenizer import CharTokenizer, HuggingFaceTokenizer, Tokenizer, load_gpt2, load_tokenizer, train_bpe
from minigpt.tokenizer.byte_level import byte_alphabet, spelled
from minigpt.tokenizer.fast import BYTES, merges_stand_alone
from minigpt.tokenizer.fuzz import fuzz_texts
from minigpt.tokenizer.patterns import REGEXES, pre_tokenizer

CORPUS = (
    "We're the quick brown foxes; it's 12345 o'clock!\n\n\tnaïve façade, Ångström\r\n   中文没有空格 日本語 한국어 "
    "don't DON'T they'll 3.14159 HTTPServer snake_case 🙂🙂 ...???\n" * 20
)
# white space and case above all: the rules treat both in several ways
LETTERS = st.sampled_from(
    [*" \t\n\r\v\f\x85\u00a0\u2028\u3000'sStTlLeEaA1٣½Ⅷ.,!éÉſßǅʰ\u0301中한🙂\u200d\ue000\U0010ffff"]
)
TEXTS = st.text(LETTERS, max_size=40) | st.text(max_size=40)


def eager(tokenizer: HuggingFaceTokenizer) -> HuggingFaceTokenizer:
    """The tokenizer, looking for the fast way at once."""
    tokenizer._fast_after = 1
    return tokenizer


def ids_of(tokenizer: Tokenizer, *texts: str) -> list[list[int]]:
    arrays = tokenizer.encode_arrays(texts)
    assert all(array.dtype == np.uint32 and array.ndim == 1 for array in arrays)
    return [array.tolist() for array in arrays]


@pytest.fixture(scope="module")
def trained() -> dict[str, HuggingFaceTokenizer]:
    return {pattern: eager(train_bpe([CORPUS], 500, pattern)) for pattern in REGEXES}


@pytest.mark.parametrize("pattern", REGEXES)
@settings(max_examples=150, deadline=None)
@given(texts=st.lists(TEXTS, min_size=1, max_size=3))
def test_the_same_ids(trained: dict[str, HuggingFaceTokenizer], pattern: str, texts: list[str]) -> None:
    tokenizer = trained[pattern]
    assert ids_of(tokenizer, *texts) == [tokenizer.encode(text) for text in texts]


@pytest.mark.parametrize("pattern", REGEXES)
def test_known_trouble(trained: dict[str, HuggingFaceTokenizer], pattern: str) -> None:
    tokenizer = trained[pattern]
    texts = [*fuzz_texts([]), CORPUS * 3, "aab" * 5000, "the " * 30_000, "a" * 70_000, "\n" * 999 + " " * 999]
    assert ids_of(tokenizer, *texts) == [tokenizer.encode(text) for text in texts]
    assert tokenizer._fast is not None


def test_gpt2(test_data: Callable[[str], Path]) -> None:
    tokenizer = load_gpt2(test_data("gpt2_bpe"))
    text = test_data("tinyshakespeare/input.txt").read_text("utf-8")[:400_000]
    texts = [text[start : start + 5000] for start in range(0, len(text), 5000)]
    assert tokenizer._fast is None  # no search for a little text
    arrays = tokenizer.encode_arrays([text])
    assert tokenizer._fast is not None and tokenizer.vocab_size == 50257
    assert arrays[0].tolist() == tokenizer.encode(text)
    assert ids_of(tokenizer, *texts, *fuzz_texts([])) == tokenizer.encode_batch([*texts, *fuzz_texts([])])


def test_more_white_space_than_the_fast_way_can_take() -> None:
    tokenizer = eager(train_bpe([CORPUS], 400, "llama3"))
    text = "a" + " " * 1_100_000 + "b"
    assert tokenizer.encode_arrays(["a"]) and tokenizer._fast is not None
    assert tokenizer._fast.encode(text) is None
    assert ids_of(tokenizer, text) == [tokenizer.encode(text)]


def test_a_character_that_the_libraries_class_differently(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = eager(train_bpe([CORPUS], 400))
    assert tokenizer.encode_arrays(["a"]) and tokenizer._fast is not None
    alike = tokenizer._fast._alike
    # the real question, but that one letter is said to be none to the other library
    monkeypatch.setattr(alike._theirs[0], "encode_ordinary", lambda text: list(text.replace("中", "").encode()))
    for text in ("a é", "a 中 b", "a é", "中文" + CORPUS * 100):
        assert (tokenizer._fast.encode(text) is None) == ("中" in text)
        assert ids_of(tokenizer, text) == [tokenizer.encode(text)]


def test_a_lone_surrogate_is_named_by_its_place() -> None:
    tokenizer = eager(train_bpe([CORPUS], 400))
    for text in ("ab\ud800", "word " * 30_000 + "\udfff end"):
        with pytest.raises(
            RequestError, match=rf"lone surrogate U\+D[8F].. at character {len(text) - 1 - 4 * ('e' in text)}"
        ):
            tokenizer.encode_arrays(["fine", text])


def test_names_of_special_tokens_are_text() -> None:
    tokenizer = eager(train_bpe([CORPUS], 400, special_tokens=["<|endoftext|>", "<|user|>"]))
    text = "<|endoftext|>a<|user|><|endoftext|>"
    assert ids_of(tokenizer, text) == [tokenizer.encode(text)]
    assert tokenizer._fast is not None
    assert not set(ids_of(tokenizer, text)[0]) & set(tokenizer.special_tokens.values())


def test_ids_in_any_order() -> None:
    content = json.loads(train_bpe([CORPUS], 450)._json)
    names = [*content["model"]["vocab"]]
    random.Random(0).shuffle(names)
    content["model"]["vocab"] = {name: 3 * i for i, name in enumerate(names)}
    content["added_tokens"][0]["id"] = 3 * len(names)
    tokenizer = eager(HuggingFaceTokenizer(tokenizers.Tokenizer.from_str(json.dumps(content))))
    assert ids_of(tokenizer, CORPUS) == [tokenizer.encode(CORPUS)]
    assert tokenizer._fast is not None


def test_from_many_threads() -> None:
    tokenizer = eager(train_bpe([CORPUS], 400))
    texts = [[text, CORPUS] for text in fuzz_texts([])[:200]]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda pair: ids_of(tokenizer, *pair), texts))
    assert found == [[tokenizer.encode(text) for text in pair] for pair in texts]


def bpe(vocabulary: dict[str, int], merges: list[tuple[str, str]], **options: bool) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, merges, **options))
    backend.pre_tokenizer = pre_tokenizer("gpt2")
    backend.decoder = decoders.ByteLevel()
    return backend


def joined(*merges: tuple[str, str], extra: tuple[str, ...] = ()) -> tuple[dict[str, int], list[tuple[str, str]]]:
    words = dict.fromkeys([*byte_alphabet(), *(left + right for left, right in merges), *extra])
    return {word: i for i, word in enumerate(words)}, list(merges)


@pytest.mark.parametrize(
    ("backend", "text"),
    [
        # tiktoken would merge (a, bc) into abc, which the list makes of (ab, c) alone
        (lambda: bpe(*joined(("b", "c"), ("a", "b"), ("ab", "c"))), "abc"),
        (lambda: bpe(*joined(("a", "a"), ("a", "aa"))), "aaa aaaa"),  # the left pair comes first: never (a, aa)
        (lambda: bpe(*joined(("a", "b"), extra=("xyz",)), ignore_merges=True), "xyz ab"),  # a word without merges
        (lambda: bpe(*joined(("a", "b"), ("c", "d"), ("abc", "d"), ("ab", "c"))), "abcd"),  # a part that comes later
    ],
)
def test_merges_that_are_not_what_the_fast_way_does(backend: Callable[[], tokenizers.Tokenizer], text: str) -> None:
    tokenizer = eager(HuggingFaceTokenizer(backend()))
    assert ids_of(tokenizer, text) == [tokenizer.encode(text)]
    assert tokenizer._fast is None


def change(backend: tokenizers.Tokenizer, **parts: object) -> HuggingFaceTokenizer:
    for name, value in parts.items():
        setattr(backend, name, value)
    return eager(HuggingFaceTokenizer(backend))


def test_tokenizers_that_do_more_than_merge() -> None:
    def plain() -> tokenizers.Tokenizer:
        return tokenizers.Tokenizer.from_str(train_bpe([CORPUS], 400)._json)

    with_words = plain()
    with_words.add_tokens([AddedToken("    ", special=False, normalized=False)])
    for tokenizer in (
        change(plain(), normalizer=normalizers.NFC()),
        change(plain(), pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)),
        change(plain(), pre_tokenizer=pre_tokenizers.Whitespace()),
        change(with_words),
        CharTokenizer.from_texts([CORPUS]),
    ):
        assert ids_of(eager(tokenizer), CORPUS) == [tokenizer.encode(CORPUS)]
        assert tokenizer._fast is None


def merged_by_list(token: bytes, ranks: dict[tuple[bytes, bytes], int]) -> list[bytes]:
    """Byte-pair encoding by its definition: the earliest pair of the list, the leftmost of equals, again and again."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while found := [(ranks[pair], at) for at, pair in enumerate(pairwise(parts)) if pair in ranks]:
        at = min(found)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


@pytest.mark.slow
@settings(max_examples=120, deadline=None)
@given(st.data())
def test_the_proof_is_right(data: st.DataObject) -> None:
    """For lists of merges of two letters, good and bad: against merging each token's bytes by the definition, and where
    it holds against what `tiktoken` does with runs of these letters, short and long (it has another way for long ones).
    """
    tokens = [bytes([byte]) for byte in range(BYTES)]
    pairs: list[tuple[int, int]] = []
    for _ in range(data.draw(st.integers(1, 8))):
        known = [97, 98, *range(BYTES, len(tokens))]
        left, right = data.draw(st.sampled_from(known)), data.draw(st.sampled_from(known))
        if tokens[left] + tokens[right] not in tokens:
            pairs.append((left, right))
            tokens.append(tokens[left] + tokens[right])
    ranks = {(tokens[left], tokens[right]): rank for rank, (left, right) in enumerate(pairs)}
    stands = all(merged_by_list(token, ranks) == [token] for token in tokens[BYTES:])
    assert merges_stand_alone(*np.array(pairs, dtype=np.int64).T) == stands
    tokenizer = eager(HuggingFaceTokenizer(bpe(*joined(*((spelled(a), spelled(b)) for a, b in ranks)))))
    texts = data.draw(st.lists(st.text("ab ", min_size=1, max_size=30), min_size=3, max_size=3))
    texts += [texts[0] * 40, texts[1].replace(" ", "") * 300]
    assert ids_of(tokenizer, *texts) == [tokenizer.encode(text) for text in texts]
    assert (tokenizer._fast is not None) == stands


def test_a_tokenizer_like_llama_3(tmp_path: Path) -> None:
    """Whole words first, a template that puts a token before each text, hundreds of special tokens."""
    backend = tokenizers.Tokenizer.from_str(train_bpe([CORPUS], 450, "llama3", special_tokens=[])._json)
    backend.add_special_tokens(["<|begin_of_text|>", *(f"<|reserved_{i}|>" for i in range(250))])
    backend.post_processor = processors.TemplateProcessing(
        "<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", backend.token_to_id("<|begin_of_text|>"))]
    )
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    assert isinstance(tokenizer, HuggingFaceTokenizer)
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    texts = [CORPUS, *fuzz_texts([])[:500]]
    assert ids_of(eager(tokenizer), *texts) == [theirs.encode(text, add_special_tokens=False) for text in texts]
    assert tokenizer._fast is not None
