"""SentencePiece models trained here, against what the package makes of the same text by itself."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from minigpt.config import RequestError, TokenizerConfig
from minigpt.tokenizer import build_tokenizer, load_tokenizer, sentencepiece_training
from minigpt.tokenizer.fuzz import HARD
from minigpt.tokenizer.sentencepiece_training import train_sentencepiece

spm = pytest.importorskip("sentencepiece")

Kind = Literal["unigram", "bpe"]
KINDS: tuple[Kind, ...] = ("unigram", "bpe")
LINES = [f"the quick brown fox {n} jumps over the lazy dogs, don't they? Naïve façade {n * 7}!" for n in range(200)]
LINES += ["中文没有空格也没有问题", "\tindented and\ttabbed", "two  spaces", "x" * 700, "null\0byte", "▅ blocks", ""]
TEXT = "\n".join(LINES)
SPECIAL = ["<|endoftext|>", '<|a, "b"|>', "brown"]
TRAINED = {kind: train_sentencepiece([TEXT, TEXT], 420, kind, SPECIAL) for kind in KINDS}
TEXTS = st.lists(st.sampled_from([*HARD, *SPECIAL, *LINES[:3], " ", "\n"]) | st.text(max_size=6), max_size=8)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=80, deadline=None)
@given(parts=TEXTS)
@example(parts=list(HARD))
def test_every_text_comes_back_with_the_packages_ids(kind: Kind, parts: list[str]) -> None:
    text = "".join(parts).replace("\u2581", "_")  # the one letter that SentencePiece reads as a space
    tokenizer = TRAINED[kind]
    ids = tokenizer.encode(text)
    assert ids == theirs(tokenizer).encode(text)
    assert tokenizer.decode(ids) == text and not set(ids) & set(tokenizer.special_tokens.values())
    assert tokenizer.exact_bytes and tokenizer.byte_lengths()[ids].sum() == len(text.encode())
    assert tokenizer.decode(tokenizer.encode(text, allow_special=True)) == text


def theirs(tokenizer: Any) -> Any:
    return spm.SentencePieceProcessor(model_proto=tokenizer._native_files["tokenizer.model"])


@pytest.mark.parametrize("kind", KINDS)
def test_vocabulary(kind: Kind, tmp_path: Path) -> None:
    tokenizer = TRAINED[kind]
    assert tokenizer.vocab_size == 420 and tokenizer.eot_id == 1
    assert tokenizer.special_tokens == {"<unk>": 0, "<|endoftext|>": 1, '<|a, "b"|>': 2, "brown": 3}
    assert [tokenizer.token_bytes(4 + byte) for byte in range(256)] == [bytes([byte]) for byte in range(256)]
    learned = [tokenizer.token_bytes(i) for i in range(260, 420)]
    assert b" the" in learned and not any(b"brown" in (piece or b"") for piece in learned)
    assert tokenizer.encode("the brown fox", allow_special=True)[1:].count(3) == 1
    tokenizer.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
    ]
    assert load_tokenizer(tmp_path).fingerprint == tokenizer.fingerprint


@pytest.mark.slow
def test_counting_words_first_learns_what_the_package_learns_from_the_text(
    test_data: Callable[[str], Path], tmp_path: Path
) -> None:
    text = (test_data("tokenizer_vectors/sentencepiece") / "botchan.txt").read_text(encoding="utf-8")
    counts = {}
    for kind in KINDS:
        ours = train_sentencepiece([text], 1500, kind)
        written = io.BytesIO()
        spm.SentencePieceTrainer.train(
            sentence_iterator=iter(text.splitlines()),
            model_writer=written,
            model_type=kind,
            vocab_size=1500,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            bos_id=-1,
            eos_id=1,
            minloglevel=2,
        )
        package = spm.SentencePieceProcessor(model_proto=written.getvalue())
        pieces = [{t.id_to_piece(i) for i in range(258, 1500)} for t in (package, theirs(ours))]
        counts[kind] = (len(pieces[0] - pieces[1]), len(package.encode(text)), len(ours.encode(text)))
        assert ours.encode(text) == theirs(ours).encode(text) and ours.decode(ours.encode(text)) == text
        ours.save(tmp_path)
        lines = text.splitlines()
        assert AutoTokenizer.from_pretrained(tmp_path)(lines).input_ids == ours.encode_batch(lines)
    assert counts["bpe"][0] <= 5  # merges of equal counts may be told apart differently
    for _, package_tokens, tokens in counts.values():
        assert tokens <= 1.02 * package_tokens  # of a text this short; of longer ones the two are equally good


@pytest.mark.slow
def test_the_same_bytes_in_another_process() -> None:
    """Python's hashes, on which the order of sets depends, are others there."""
    code = (
        "import hashlib\nfrom minigpt.tokenizer.sentencepiece_training import train_sentencepiece\n"
        f"for kind in {KINDS}:\n"
        f"    made = train_sentencepiece([{TEXT!r}] * 2, 420, kind, {SPECIAL!r})\n"
        "    print(hashlib.sha256(made._native_files['tokenizer.model']).hexdigest())"
    )
    found = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, check=True, env={**os.environ, "PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    ]
    assert found[0] == found[1] and found[0].count(b"\n") == 2
    assert train_sentencepiece([TEXT] * 2, 420, "bpe", SPECIAL).fingerprint == TRAINED["bpe"].fingerprint


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("texts", "vocab_size", "special", "named"),
    [
        ([TEXT], 200, SPECIAL, r"tokenizer\.vocab_size=200 is too small: this text needs 3\d\d at least"),
        ([TEXT], 9000, SPECIAL, r"tokenizer\.vocab_size=9000 is too large: .*different words for \d+"),
        ([], 400, SPECIAL, "there is no text to train a tokenizer on"),
        (["", "\n\n", "<|endoftext|>"], 400, SPECIAL, "there is no text to train a tokenizer on"),
        (["the \udc80"], 400, SPECIAL, r"lone surrogate U\+DC80 at character 4"),
        ([TEXT], 400, ["<unk>"], "special token '<unk>' cannot be one"),
        ([TEXT], 400, ["<0x0A>"], "special token '<0x0A>' cannot be one"),
        ([TEXT], 400, ["▁"], "special token '▁' cannot be one"),
        ([TEXT], 400, ["a\nb"], "cannot be one of a SentencePiece model"),
        ([TEXT], 400, ["<|a|>", "<|a|>"], "is repeated"),
        ([TEXT], 400, [""], "is empty"),
    ],
)
def test_wrong_requests(kind: Kind, texts: list[str], vocab_size: int, special: list[str], named: str) -> None:
    with pytest.raises(RequestError, match=named) as error:
        train_sentencepiece(texts, vocab_size, kind, special)
    assert "\n" not in str(error.value) and ".cc" not in str(error.value)


def test_of_too_many_words_the_frequent_ones_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentencepiece_training, "MOST_WORDS", 300)
    rare = [f"{n:05}" for n in range(3000)]
    texts = [f"the quick fox {' '.join(rare[n : n + 30])}\n" for n in range(0, 3000, 30)]
    counts = sentencepiece_training._count_words(texts)
    assert len(counts) <= 300 + 33 and counts[" fox"] == 100 and counts["the"] == 100
    assert train_sentencepiece(texts, 280, "bpe").decode([]) == ""


def test_without_special_tokens() -> None:
    tokenizer = train_sentencepiece([TEXT], 400, "unigram", [])
    assert tokenizer.special_tokens == {"<unk>": 0} and tokenizer.eot_id is None
    assert tokenizer.decode(tokenizer.encode("a</s>b<s>", allow_special=True)) == "a</s>b<s>"


def test_progress_and_config() -> None:
    seen: list[int] = []
    config = TokenizerConfig(kind="sentencepiece-bpe", vocab_size=420, special_tokens=SPECIAL)
    made = build_tokenizer(config, lambda: [TEXT, TEXT], seen.append)
    assert made.fingerprint == TRAINED["bpe"].fingerprint
    assert seen == sorted(seen) and seen[-1] <= 2 * len(TEXT) <= seen[-1] + 2 * TEXT.count("brown") * len("brown")


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(RequestError, match=r'pip install "minigpt\[sentencepiece\]"'):
        train_sentencepiece([TEXT], 400)
