"""Any tokenizer.json: loading, meaning, saving, what transformers makes of the folder, and the wrong requests."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from minigpt.config import RequestError, TokenizerConfig, WorkError
from minigpt.tokenizer import (
    CharTokenizer,
    HuggingFaceTokenizer,
    Tokenizer,
    build_tokenizer,
    load_tokenizer,
    train_bpe,
)
from minigpt.tokenizer.fuzz import fuzz_texts

CORPUS = "the quick brown fox, naïve façade 中文 123 don't stop\n\n" * 3
TEXTS = [CORPUS, "", " ", "we're   12345\r\n\n\x00 \U0001f469\u200d\U0001f467 e\u0301 HTTPServer's ...\n", "a <|end"]


def byte_level(added: list[AddedToken]) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer.from_str(train_bpe([CORPUS], 290, special_tokens=())._plain.to_str())
    backend.add_tokens(added)
    return backend


@pytest.mark.parametrize("kind", ["gpt2", "llama3", "qwen2", "gpt4o", "char"])
def test_transformers_reads_the_folder(kind: str, tmp_path: Path) -> None:
    tokenizer = CharTokenizer.from_texts(TEXTS) if kind == "char" else train_bpe(TEXTS, 330, pattern=kind)
    tokenizer.save(tmp_path)
    # config.json of a model whose own tokenizer class would rebuild the pre-tokenizer
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    for theirs in (AutoTokenizer.from_pretrained(tmp_path), PreTrainedTokenizerFast.from_pretrained(tmp_path)):
        for text in TEXTS:
            assert theirs.encode(text, add_special_tokens=False) == tokenizer.encode(text)
            assert theirs.encode(text) == tokenizer.encode(text)  # nothing is added by default either
            assert theirs.decode(tokenizer.encode(text)) == text
        assert theirs.eos_token_id == tokenizer.eot_id
        assert len(theirs) == tokenizer.vocab_size
    again = load_tokenizer(tmp_path)
    assert type(again) is type(tokenizer)
    assert again.fingerprint == tokenizer.fingerprint
    assert again.eot_id == tokenizer.eot_id
    assert [again.encode(text) for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]


def test_a_hugging_face_folder(test_data: Callable[[str], Path], tmp_path: Path) -> None:
    folder = test_data("weights/tiny-random-gpt2")
    tokenizer = load_tokenizer(folder)
    theirs = PreTrainedTokenizerFast.from_pretrained(folder)
    assert tokenizer.vocab_size == 1000 and tokenizer.special_tokens == {"<|endoftext|>": 0} and tokenizer.eot_id == 0
    for text in TEXTS:
        assert tokenizer.encode(text) == theirs.encode(text)
    tokenizer.save(tmp_path)
    assert load_tokenizer(tmp_path).fingerprint == tokenizer.fingerprint
    saved = AutoTokenizer.from_pretrained(tmp_path)
    assert all(saved.encode(text) == tokenizer.encode(text) for text in fuzz_texts([])[:500])
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert settings["model_max_length"] == 1024 and settings["eos_token"] == "<|endoftext|>"
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"


@pytest.mark.parametrize(
    "token",
    [
        AddedToken("<|x|>", special=True),
        AddedToken("<|x|>", special=True, normalized=True),
        AddedToken("<|x|>", special=True, lstrip=True, rstrip=True),
        AddedToken("fox", special=True, single_word=True),
        AddedToken("fox, na", special=True),
        AddedToken("\n", special=True),
    ],
    ids=repr,
)
def test_special_names_are_text(token: AddedToken) -> None:
    plain = HuggingFaceTokenizer(byte_level([]))
    tokenizer = HuggingFaceTokenizer(byte_level([token]))
    text = CORPUS + token.content + " " + token.content * 2
    assert tokenizer.encode(text) == plain.encode(text)
    assert tokenizer.encode_batch([text]) == [plain.encode(text)]
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.special_tokens[token.content] in tokenizer.encode(text, allow_special=True)
    assert tokenizer.fingerprint == plain.fingerprint


def test_a_word_that_is_special_as_well() -> None:
    """A model that has the word can only spell it as the special token: one sentence, not a wrong id."""
    backend = tokenizers.Tokenizer(models.WordLevel({"a": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["</s>", "<unk>"])
    tokenizer = HuggingFaceTokenizer(backend)
    assert tokenizer.eot_id == 1
    assert tokenizer.encode("a b a") == [0, 2, 0]
    with pytest.raises(
        RequestError, match="the text contains '</s>', which this tokenizer can only read as its special"
    ):
        tokenizer.encode("a </s>")
    assert tokenizer.encode("a </s>", allow_special=True) == [0, 1]


def test_added_words_are_vocabulary() -> None:
    """Added tokens that are not special are found in every text, as transformers does, and change the fingerprint."""
    plain = HuggingFaceTokenizer(byte_level([]))
    tokenizer = HuggingFaceTokenizer(byte_level([AddedToken("    ", special=False, normalized=False)]))
    text = "the quick" * 40_000 + "    fox"
    assert tokenizer.encode(text)[-4:-3] == [plain.vocab_size] or plain.vocab_size in tokenizer.encode(text)
    assert tokenizer.special_tokens == {}
    assert tokenizer.fingerprint != plain.fingerprint
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.token_bytes(plain.vocab_size) == b"    "
    assert tokenizer.byte_lengths()[tokenizer.encode(text)].sum() == len(text)


def test_fingerprint_follows_the_meaning() -> None:
    def changed(change: Callable[[tokenizers.Tokenizer], object]) -> str:
        backend = byte_level([])
        change(backend)
        return HuggingFaceTokenizer(backend).fingerprint

    def normalise(backend: tokenizers.Tokenizer) -> None:
        backend.normalizer = normalizers.NFC()

    def split_otherwise(backend: tokenizers.Tokenizer) -> None:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)

    def byte_fallback(backend: tokenizers.Tokenizer) -> None:
        backend.model.byte_fallback = True

    def add_bos(backend: tokenizers.Tokenizer) -> None:  # not used: nothing is added to a text
        backend.add_special_tokens(["<s>"])
        backend.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 290)])

    same = changed(lambda backend: None)
    assert same == changed(lambda backend: backend.add_special_tokens(["<|user|>"])) == changed(add_bos)
    assert len({same, *map(changed, (normalise, split_otherwise, byte_fallback))}) == 4
    assert same != train_bpe([CORPUS], 289, special_tokens=()).fingerprint


def test_nothing_besides_the_text_decides_the_ids() -> None:
    """Truncation, padding, a template that adds BOS, and BPE dropout of a loaded file have no say."""
    backend = byte_level([])
    expected = HuggingFaceTokenizer(byte_level([])).encode(CORPUS)
    backend.add_special_tokens(["<s>"])
    backend.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 290)])
    backend.enable_truncation(4)
    backend.enable_padding(length=1000)
    backend.model.dropout = 0.5
    assert HuggingFaceTokenizer(tokenizers.Tokenizer.from_str(backend.to_str())).encode(CORPUS) == expected


def test_sentencepiece_like() -> None:
    """Metaspace and byte fallback: ids as the library's, byte lengths nearly exact, no exact bytes."""
    pieces = ["<unk>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", "a", "b", "▁a", "▁ab"]
    merges = [("▁", "a"), ("▁a", "b")]
    words = {piece: i for i, piece in enumerate(pieces)}
    backend = tokenizers.Tokenizer(models.BPE(words, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    backend.add_special_tokens(["<unk>", "</s>"])
    tokenizer = HuggingFaceTokenizer(backend)
    assert not tokenizer.exact_bytes and tokenizer.token_bytes(words["a"]) is None
    ids = tokenizer.encode("ab a中")
    assert ids == [words["▁ab"], words["▁a"], *(words[f"<0x{b:02X}>"] for b in "中".encode())]
    assert tokenizer.decode(ids) == "ab a中"
    assert tokenizer.byte_lengths()[ids].tolist() == [3, 2, 1, 1, 1]  # one more than the text: the first space
    assert tokenizer.byte_lengths()[words["</s>"]] == 0
    assert tokenizer.decode([*ids, words["</s>"]], skip_special=True) == "ab a中"


def test_end_token_of_a_folder(tmp_path: Path) -> None:
    train_bpe([CORPUS], 290, special_tokens=["<|im_end|>", "<|stop|>"]).save(tmp_path)
    for stated in ("<|stop|>", {"content": "<|stop|>", "special": True}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": stated, "chat_template": "{{ x }}"}))
        tokenizer = load_tokenizer(tmp_path)
        assert tokenizer.eot_id == tokenizer.special_tokens["<|stop|>"]
    tokenizer.save(tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["chat_template"] == "{{ x }}"


def test_run_folder(tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    train_bpe([CORPUS], 290).save(tmp_path / "tokenizer")
    assert load_tokenizer(tmp_path).vocab_size == load_tokenizer(str(tmp_path / "tokenizer")).vocab_size == 290


def test_build_from_config(tmp_path: Path) -> None:
    def texts() -> list[str]:
        return [CORPUS]

    def unused() -> list[str]:
        raise AssertionError("a loaded tokenizer needs no text")

    trained = build_tokenizer(TokenizerConfig(kind="bpe", vocab_size=290, pattern="qwen2"), texts)
    assert trained.vocab_size == 290 and trained.eot_id == 289
    assert trained.fingerprint == train_bpe([CORPUS], 290, "qwen2").fingerprint
    assert build_tokenizer(TokenizerConfig(kind="char"), texts).vocab_size == len(set(CORPUS))
    trained.save(tmp_path)
    loaded: Tokenizer = build_tokenizer(TokenizerConfig(kind="file", path=str(tmp_path)), unused)
    assert loaded.fingerprint == trained.fingerprint
    with pytest.raises(RequestError, match=r"tokenizer.path is needed with tokenizer.kind=gpt2"):
        build_tokenizer(TokenizerConfig(kind="gpt2"), unused)
    with pytest.raises(RequestError, match=r"has no encoder.json and vocab.bpe"):
        build_tokenizer(TokenizerConfig(kind="gpt2", path=str(tmp_path)), unused)


def saved_json() -> str:
    return train_bpe([CORPUS], 290)._plain.to_str()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (lambda: saved_json()[:-200].encode(), "tokenizer.json is not JSON"),
        (lambda: b"", "tokenizer.json is not JSON"),
        (lambda: b"\xff\xfe\x00", "tokenizer.json is not JSON"),
        (lambda: b"[1, 2]", "tokenizer.json is not a JSON object"),
        (lambda: b"{}", 'has no "model" object'),
        (lambda: b'{"model": "gpt"}', 'has no "model" object'),
        (lambda: b'{"model": {}}', "is not a tokenizer.json that can be used"),
        (lambda: saved_json().replace('"BPE"', '"Magic"').encode(), "is not a tokenizer.json that can be used"),
        (
            lambda: saved_json().replace('"merges":[', '"merges":[["zz","zz"],').encode(),
            "that can be used: the merge of 'zz' and 'zz'",
        ),
        (lambda: saved_json().replace(":7,", ":4294967295,").encode(), "that can be used: it has ids up to 4294967295"),
        (lambda: tokenizers.Tokenizer(models.BPE()).to_str().encode(), "that can be used: its vocabulary is not"),
    ],
)
def test_damaged_tokenizer_json(tmp_path: Path, content: Callable[[], bytes], sentence: str) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content())
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        with pytest.raises(RequestError, match=sentence) as caught:
            load_tokenizer(path)
        assert str(tmp_path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_wrong_paths(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"nowhere does not exist"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(RequestError, match=r"has no tokenizer: neither tokenizer.json nor encoder.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "text.txt").write_bytes(b"\n\x0e\n\x05<unk>\x15\x00")
    with pytest.raises(RequestError, match=r"text.txt is not JSON"):
        load_tokenizer(tmp_path / "text.txt")
    (tmp_path / "tokenizer.json").mkdir()
    with pytest.raises(RequestError, match=r"cannot read .*tokenizer.json: Is a directory"):
        load_tokenizer(tmp_path)


def test_damaged_settings(tmp_path: Path) -> None:
    train_bpe([CORPUS], 290).save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": ')
    with pytest.raises(RequestError, match=r"tokenizer_config.json is not JSON"):
        load_tokenizer(tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read and write everything")
def test_permissions(tmp_path: Path) -> None:
    tokenizer = train_bpe([CORPUS], 290)
    tokenizer.save(tmp_path)
    (tmp_path / "tokenizer.json").chmod(0)
    with pytest.raises(RequestError, match=r"cannot read .*tokenizer.json: Permission denied"):
        load_tokenizer(tmp_path)
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(WorkError, match=r"cannot write .*: Permission denied"):
            tokenizer.save(tmp_path)
        tmp_path.chmod(0)
        with pytest.raises(RequestError, match=r"cannot read tokenizer .*: Permission denied"):
            load_tokenizer(tmp_path)
    finally:
        tmp_path.chmod(0o700)


def test_unwritable_folder(tmp_path: Path) -> None:
    with pytest.raises(WorkError, match=r"cannot write .*absent"):
        train_bpe([CORPUS], 290).save(tmp_path / "absent")


def test_import_needs_no_torch() -> None:
    code = "import sys, minigpt.tokenizer; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
