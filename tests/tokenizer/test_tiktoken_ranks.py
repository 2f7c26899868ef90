"""tiktoken's encodings from rank files: the ids of `tiktoken` itself, and the files that are refused."""

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tiktoken_ext import openai_public
from transformers import AutoTokenizer

from minigpt.config import RequestError, TokenizerConfig, load_config
from minigpt.tokenizer import (
    HuggingFaceTokenizer,
    build_tokenizer,
    load_gpt2,
    load_tokenizer,
    tiktoken_ranks,
    train_bpe,
)
from minigpt.tokenizer.byte_level import unspelled
from minigpt.tokenizer.fuzz import fuzz_texts
from minigpt.tokenizer.patterns import CL100K, REGEXES
from minigpt.tokenizer.tiktoken_ranks import (
    ENCODINGS,
    RankFile,
    from_ranks,
    load_ranks,
    rank_file_url,
    recovered_merges,
)

CORPUS = (
    "We're the quick brown foxes; it's 12345 o'clock!\n\n\tnaïve façade,\r\n   中文没有空格 don't THEY'LL\n  \n" * 20
)


def rank_file(ranks: dict[bytes, int]) -> bytes:
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items())


def ranks_of(tokenizer: HuggingFaceTokenizer) -> dict[bytes, int]:
    return {token: i for i in range(tokenizer.vocab_size) if (token := tokenizer.token_bytes(i))}


@pytest.fixture(scope="module")
def built() -> dict[str, HuggingFaceTokenizer]:
    return {}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> tuple[dict[bytes, int], bytes]:
    """A rank file of 330 tokens that takes the place of cl100k_base's."""
    ranks = ranks_of(train_bpe([CORPUS], 330, "llama3", special_tokens=[]))
    content = rank_file(ranks)
    about = RankFile(hashlib.sha256(content).hexdigest(), CL100K, ENCODINGS["cl100k_base"].special_tokens)
    monkeypatch.setitem(ENCODINGS, "cl100k_base", about)
    return ranks, content


@pytest.mark.parametrize("name", ENCODINGS)
def test_what_is_known_of_an_encoding(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Address, hash and special tokens are those that the package `tiktoken` has."""
    asked: list[tuple[str, str | None]] = []

    def load(url: str, expected_hash: str | None = None) -> dict[bytes, int]:
        asked.append((url, expected_hash))
        return {}

    monkeypatch.setattr(openai_public, "load_tiktoken_bpe", load)
    theirs = openai_public.ENCODING_CONSTRUCTORS[name]()
    assert asked == [(rank_file_url(name), ENCODINGS[name].sha256)]
    assert theirs["special_tokens"] == ENCODINGS[name].special_tokens


def their_rule(name: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(openai_public, "load_tiktoken_bpe", lambda url, expected_hash=None: {})
    rule: str = openai_public.ENCODING_CONSTRUCTORS[name]()["pat_str"]
    return rule


@pytest.mark.parametrize("name", ENCODINGS)
def test_the_rule_that_splits_text(name: str, built: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A small vocabulary with each encoding's rule, against `tiktoken` with its own spelling of that rule."""
    if name not in built:
        ranks = ranks_of(train_bpe([CORPUS], 330, special_tokens=[]))
        engine = tiktoken.Encoding(
            name, pat_str=their_rule(name, monkeypatch), mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 500}
        )
        ours = from_ranks(ranks, RankFile("", ENCODINGS[name].regex, {"<|endoftext|>": 500}), {})
        ours._fast_after = 1
        built[name] = engine, ours
    engine, ours = built[name]

    @settings(max_examples=300, deadline=None)
    @given(st.text(st.sampled_from([*" \t\n\r\v\u00a0\u2028'sTaAlLéſ1٣.中🙂"]), max_size=24) | st.text(max_size=24))
    def check(text: str) -> None:
        expected = engine.encode_ordinary(text)
        assert ours.encode(text) == expected
        assert ours.encode_arrays([text])[0].tolist() == expected

    check()
    for text in [*fuzz_texts([]), CORPUS, "a \n  ", "x  \n", " \n \n", "\r\n\t "]:
        assert ours.encode(text) == engine.encode_ordinary(text)
    assert ours._fast is not None


@pytest.mark.slow
@pytest.mark.parametrize(("name", "tokens"), [("r50k_base", 50256), ("p50k_base", 50280)])
def test_real_rank_files(
    name: str, tokens: int, test_data: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """r50k_base is GPT-2's vocabulary, p50k_base has runs of 2 to 25 spaces besides: so both files can be made here."""
    ranks = ranks_of(load_gpt2(test_data("gpt2_bpe"))) | {b" " * (i - 50255): i for i in range(50257, tokens + 1)}
    path = tmp_path / f"{name}.tiktoken"
    path.write_bytes(rank_file(ranks))
    assert hashlib.sha256(path.read_bytes()).hexdigest() == ENCODINGS[name].sha256
    tokenizer = load_tokenizer(path)
    engine = tiktoken.Encoding(
        name, pat_str=their_rule(name, monkeypatch), mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 50256}
    )
    texts = [
        *fuzz_texts([]),
        test_data("tokenizer_vectors/taylorswift.txt").read_text("utf-8"),
        "  def f():\n        x",
    ]
    expected = engine.encode_ordinary_batch(texts, num_threads=1)
    assert tokenizer.encode_batch(texts) == expected
    assert [ids.tolist() for ids in tokenizer.encode_arrays(texts)] == expected
    assert tokenizer.special_tokens == {"<|endoftext|>": 50256} and tokenizer.eot_id == 50256
    assert tokenizer.vocab_size == engine.n_vocab
    tokenizer.save(tmp_path)
    assert load_tokenizer(tmp_path).fingerprint == tokenizer.fingerprint
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert [theirs.encode(text) for text in texts[:500]] == expected[:500]


def test_merges_are_recovered(test_data: Callable[[str], Path]) -> None:
    folder = test_data("gpt2_bpe")
    lines = (folder / "vocab.bpe").read_text("utf-8").split("\n")[1:-1]
    expected = [tuple(map(unspelled, line.split(" "))) for line in lines]
    assert recovered_merges(ranks_of(load_gpt2(folder))) == expected


def test_from_a_local_file(small: tuple[dict[bytes, int], bytes], tmp_path: Path) -> None:
    ranks, content = small
    file, cached = tmp_path / "cl100k_base.tiktoken", tmp_path / "cache"
    file.write_bytes(content)
    cached.mkdir()  # as in TIKTOKEN_CACHE_DIR
    (cached / hashlib.sha1(rank_file_url("cl100k_base").encode()).hexdigest()).write_bytes(content)
    first = load_ranks(file)
    for path in (file, tmp_path, cached):
        config = TokenizerConfig(kind="tiktoken", encoding="cl100k_base", path=str(path))
        assert build_tokenizer(config, lambda: []).fingerprint == first.fingerprint
    assert load_tokenizer(file).fingerprint == load_tokenizer(tmp_path).fingerprint == first.fingerprint
    assert {token: i for i in range(330) if (token := first.token_bytes(i))} == ranks
    assert first.eot_id == 100257 and first.special_tokens == ENCODINGS["cl100k_base"].special_tokens
    saved = tmp_path / "saved"
    saved.mkdir()
    first.save(saved)
    assert (saved / "cl100k_base.tiktoken").read_bytes() == content
    again = load_tokenizer(saved)
    assert again.fingerprint == first.fingerprint and again.eot_id == first.eot_id
    again.save(tmp_path)
    assert (tmp_path / "cl100k_base.tiktoken").read_bytes() == content
    theirs = AutoTokenizer.from_pretrained(saved)
    for text in fuzz_texts([])[:800]:
        assert theirs.encode(text) == again.encode(text) == first.encode(text)
        assert again.decode(again.encode(text)) == text


def test_gpt2_by_name(test_data: Callable[[str], Path]) -> None:
    config = TokenizerConfig(kind="tiktoken", encoding="gpt2", path=str(test_data("gpt2_bpe")))
    assert build_tokenizer(config, lambda: []).fingerprint == load_gpt2(test_data("gpt2_bpe")).fingerprint


def test_a_rank_file_for_gpt2(
    small: tuple[dict[bytes, int], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gpt2 was published as other files, but its tokens are those of r50k_base."""
    monkeypatch.setitem(ENCODINGS, "r50k_base", ENCODINGS["cl100k_base"])
    monkeypatch.delitem(ENCODINGS, "cl100k_base")
    file = tmp_path / "r50k_base.tiktoken"
    file.write_bytes(small[1])
    config = TokenizerConfig(kind="tiktoken", encoding="gpt2", path=str(file))
    assert build_tokenizer(config, lambda: []).fingerprint == load_ranks(file).fingerprint


def test_refused_files(small: tuple[dict[bytes, int], bytes], tmp_path: Path) -> None:
    _, content = small
    path = tmp_path / "cl100k_base.tiktoken"
    for damaged in (content[:-100], content.replace(b" 300\n", b" 1300\n"), b"", b"\x00\xff", b"<html>404</html>"):
        path.write_bytes(damaged)
        for load in (load_tokenizer, load_ranks, lambda path: load_ranks(path, "cl100k_base")):
            with pytest.raises(
                RequestError, match=r"cl100k_base\.tiktoken has sha256 .* damaged or another file"
            ) as told:
                load(path)
            assert "\n" not in str(told.value)
    path.write_bytes(content)
    with pytest.raises(
        RequestError, match=r"is the rank file of cl100k_base, not of o200k_base: set tokenizer\.encoding"
    ):
        load_ranks(path, "o200k_base")
    with pytest.raises(RequestError, match=r"cannot read .*nowhere\.tiktoken: No such file"):
        load_ranks(tmp_path / "nowhere.tiktoken")
    with pytest.raises(RequestError, match=r"tokenizer .*nowhere\.tiktoken does not exist"):
        load_tokenizer(tmp_path / "nowhere.tiktoken")
    with pytest.raises(RequestError, match=r"folder .* has no o200k_base\.tiktoken"):
        build_tokenizer(TokenizerConfig(kind="tiktoken", encoding="o200k_base", path=str(tmp_path)), lambda: [])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"IQ== 0\nIg== 1\n", "lacks a byte, or an id stands for two tokens"),
        (rank_file({bytes([b]): b for b in range(256)} | {b"ab": 7}), "lacks a byte, or an id stands for two tokens"),
        (rank_file({bytes([b]): b for b in range(256)} | {b"abc": 256}), "no merge makes its token 256"),
        (b"IQ== 0\nIg==\n", "line 2 is not a token in base64 and its number"),
        (b"IQ== zero\n", "line 1 is not a token in base64 and its number"),
        (b"I? 0\n", "line 1 is not a token in base64 and its number"),
    ],
)
def test_what_no_rank_file_is(content: bytes, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its hash says."""
    about = RankFile(hashlib.sha256(content).hexdigest(), REGEXES["gpt2"], {"<|endoftext|>": 1000})
    monkeypatch.setitem(tiktoken_ranks.ENCODINGS, "r50k_base", about)
    (tmp_path / "r50k_base.tiktoken").write_bytes(content)
    with pytest.raises(RequestError, match=sentence):
        load_tokenizer(tmp_path)


def test_an_unknown_encoding() -> None:
    with pytest.raises(RequestError, match=r"tokenizer\.encoding.*cl100k_base") as told:
        load_config({"tokenizer": {"kind": "tiktoken", "encoding": "cl100k"}})
    assert "\n" not in str(told.value)


def test_its_json_says_it_all(small: tuple[dict[bytes, int], bytes], tmp_path: Path) -> None:
    (tmp_path / "cl100k_base.tiktoken").write_bytes(small[1])
    load_tokenizer(tmp_path).save(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    assert [token["content"] for token in content["added_tokens"]] == [*ENCODINGS["cl100k_base"].special_tokens]
    assert content["normalizer"] is None
