"""The tokenizer that a config asks for: trained, from rank files, from the hub; a local server plays the network."""

import hashlib
import http.server
import json
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from minigpt.config import Config, RequestError, WorkError, load_config
from minigpt.storage import cache_dir
from minigpt.tokenizer import HuggingFaceTokenizer, Tokenizer, train_bpe
from minigpt.tokenizer.tiktoken_ranks import ENCODINGS, RankFile, rank_file_url
from minigpt.training import tokenizers
from minigpt.training.tokenizers import GPT2_FILES, GPT2_URL, make_tokenizer

TEXT = "The quick brown fox jumps over the lazy dog. Don't stop, naïve 12345!\n" * 40
HUB = "huggingface.co/owner/name/resolve/"


class Web(http.server.ThreadingHTTPServer):
    """`files`: what there is, by site and path. `status`: the answer for all else."""

    files: dict[str, bytes]
    asked: list[str]
    status: int


class Handler(http.server.BaseHTTPRequestHandler):
    server: Web

    def do_GET(self) -> None:
        path = urllib.parse.unquote(self.path).lstrip("/")
        self.server.asked.append(path)
        body = self.server.files.get(path)
        if body is None:
            self.send_error(self.server.status)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    with Web(("127.0.0.1", 0), Handler) as it:
        it.files, it.asked, it.status = {}, [], 404
        threading.Thread(target=it.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        monkeypatch.setenv("MINIGPT_MIRROR", f"http://127.0.0.1:{it.server_port}")
        monkeypatch.delenv("HF_ENDPOINT", raising=False)
        yield it
        it.shutdown()


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    real = tokenizers.download
    monkeypatch.setenv("MINIGPT_MIRROR", "http://127.0.0.1:9")
    monkeypatch.setattr(tokenizers, "download", lambda *a, **k: real(*a, **k, attempts=1, backoff=0.0))


def config_of(text: Path | None = None, **keys: Any) -> Config:
    return load_config({"data": {"train": [str(text)] if text else None}, "tokenizer": keys})[0]


def saved(tokenizer: Tokenizer, folder: Path) -> dict[str, bytes]:
    folder.mkdir()
    tokenizer.save(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def leftovers() -> list[Path]:
    """Files of the cache that hold anything, locks aside."""
    return [
        path for path in cache_dir().rglob("*") if path.is_file() and path.stat().st_size and "lock" not in path.name
    ]


# --- trained


@pytest.mark.parametrize("kind", ["char", "bpe", "unigram", "sentencepiece-bpe"])
def test_trained_once(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind in ("unigram", "sentencepiece-bpe"):
        pytest.importorskip("sentencepiece")
    (tmp_path / "text.txt").write_text(TEXT, "utf-8")
    config = config_of(tmp_path / "text.txt", kind=kind, **({} if kind == "char" else {"vocab_size": 300}))
    seen: list[tuple[str, int]] = []
    first = make_tokenizer(config, lambda stage, done, total: seen.append((stage, done)))
    assert first.decode(first.encode("The lazy dog.")).strip() == "The lazy dog."
    assert kind == "char" or ("train the tokenizer (characters)", len(TEXT) * 9 // 10) in seen
    monkeypatch.setattr(tokenizers, "train_tokenizer", None)  # from the cache now
    assert make_tokenizer(config).fingerprint == first.fingerprint


def test_trained_on_the_training_part_of_the_text(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("ab" * 450 + "xyz " * 25)
    whole = make_tokenizer(config_of(tmp_path / "text.txt", kind="char"))
    part = make_tokenizer(config_of(tmp_path / "text.txt", kind="bpe", vocab_size=300))
    assert whole.vocab_size == 6  # a character of the validation text must be known
    assert len(part.encode("xyz")) == 3 and len(part.encode("abababab")) < 8


def test_a_sample_of_the_text(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("".join(f"word{number} " for number in range(20_000)))
    seen: dict[str, int] = {}
    config = config_of(tmp_path / "text.txt", vocab_size=300, sample_characters=9000)
    make_tokenizer(config, lambda stage, done, total: seen.update({stage: done}))
    assert 7000 < seen["train the tokenizer (characters)"] < 11_000


# --- GPT-2's and tiktoken's


@pytest.mark.slow
def test_gpt2_by_two_names(web: Web, test_data: Callable[[str], Path]) -> None:
    for name in GPT2_FILES:
        web.files[GPT2_URL.removeprefix("https://") + name] = test_data(f"gpt2_bpe/{name}").read_bytes()
    first = make_tokenizer(config_of(kind="gpt2"))
    web.files.clear()
    second = make_tokenizer(config_of(kind="tiktoken", encoding="gpt2"))
    assert first.fingerprint == second.fingerprint and first.vocab_size == 50257


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A small rank file in the place of o200k_base's."""
    import base64

    tokenizer = train_bpe([TEXT], 300, "gpt4o", special_tokens=[])
    lines = [base64.b64encode(tokenizer.token_bytes(i) or b"") + b" %d\n" % i for i in range(tokenizer.vocab_size)]
    content = b"".join(lines)
    known = ENCODINGS["o200k_base"]
    about = RankFile(hashlib.sha256(content).hexdigest(), known.regex, known.special_tokens)
    monkeypatch.setitem(ENCODINGS, "o200k_base", about)
    return content


def test_an_encoding_is_downloaded_once(web: Web, ranks: bytes) -> None:
    config = config_of(kind="tiktoken", encoding="o200k_base")
    web.files[rank_file_url("o200k_base").removeprefix("https://")] = ranks
    first = make_tokenizer(config)
    assert first.eot_id == 199999 and first.decode(first.encode(TEXT)) == TEXT
    web.files.clear()
    assert make_tokenizer(config).fingerprint == first.fingerprint and len(web.asked) == 1


def test_a_rank_file_with_another_hash(web: Web, ranks: bytes) -> None:
    web.files[rank_file_url("o200k_base").removeprefix("https://")] = ranks + b" "
    with pytest.raises(WorkError, match=r"has sha256 .*, not the expected .*; without a network, set tokenizer\.path"):
        make_tokenizer(config_of(kind="tiktoken", encoding="o200k_base"))
    assert leftovers() == []


@pytest.mark.parametrize(
    ("keys", "hint"),
    [
        ({"kind": "gpt2"}, r"set tokenizer\.path to a folder with encoder\.json and vocab\.bpe"),
        ({"kind": "tiktoken"}, r"set tokenizer\.path to the file cl100k_base\.tiktoken"),
        (
            {"kind": "file", "path": "hub:owner/name"},
            "set tokenizer.path to a folder .* or HF_ENDPOINT or MINIGPT_MIRROR",
        ),
    ],
)
def test_no_network(no_network: None, keys: dict[str, str], hint: str) -> None:
    with pytest.raises(WorkError, match=hint) as told:
        make_tokenizer(config_of(**keys))
    assert "127.0.0.1:9" in str(told.value) and "\n" not in str(told.value)
    assert leftovers() == []


# --- the hub's


@pytest.mark.parametrize("revision", ["", "@v1.0"])
def test_a_tokenizer_of_the_hub(revision: str, web: Web, tmp_path: Path) -> None:
    real = train_bpe([TEXT], 300, "qwen2", special_tokens=["<|im_end|>", "<|endoftext|>"])
    files = saved(HuggingFaceTokenizer(real._plain, settings={"chat_template": "{{ x }}"}), tmp_path / "files")
    web.files = {f"{HUB}{revision[1:] or 'main'}/{name}": content for name, content in files.items()}
    config = config_of(kind="file", path=f"hub:owner/name{revision}")
    first = make_tokenizer(config)
    assert first.fingerprint == real.fingerprint and first.eot_id == real.eot_id
    assert json.loads(saved(first, tmp_path / "saved")["tokenizer_config.json"])["chat_template"] == "{{ x }}"
    web.files.clear()
    asked = len(web.asked)
    assert make_tokenizer(config).fingerprint == real.fingerprint and len(web.asked) == asked


def test_other_files_of_the_hub(web: Web, tmp_path: Path, test_data: Callable[[str], Path]) -> None:
    """vocab.json and merges.txt; a SentencePiece model."""
    names = {"vocab.json": "encoder.json", "merges.txt": "vocab.bpe"}
    for name, ours in names.items():
        web.files[f"{HUB}main/{name}"] = test_data(f"gpt2_bpe/{ours}").read_bytes()
    assert make_tokenizer(config_of(kind="file", path="hub:owner/name")).vocab_size == 50257
    pytest.importorskip("sentencepiece")
    model = next(test_data("tokenizer_vectors/sentencepiece").glob("*.model"))
    web.files = {f"{HUB}other/tokenizer.model": model.read_bytes()}
    assert make_tokenizer(config_of(kind="file", path="hub:owner/name@other")).vocab_size == 1000


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        (404, r"hub:owner/name has no tokenizer at https://huggingface.co/owner/name/resolve/main: neither tokenizer"),
        (401, r"the server answered 401 .*; set HF_TOKEN to the access token"),
        (403, r"the server answered 403 .*; set HF_TOKEN to the access token"),
    ],
)
def test_what_the_hub_does_not_give(
    status: int, sentence: str, web: Web, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    web.status = status
    if status != 404:  # the hub's own address, since the token is for it alone
        monkeypatch.setattr("minigpt.data.reading.download.is_hub", lambda url: True)
    with pytest.raises(RequestError, match=sentence) as told:
        make_tokenizer(config_of(kind="file", path="hub:owner/name"))
    assert "\n" not in str(told.value)
    assert leftovers() == []


def test_half_of_a_pair_on_the_hub(web: Web) -> None:
    web.files[f"{HUB}main/vocab.json"] = b"{}"
    with pytest.raises(RequestError, match=r"hub:owner/name has no tokenizer"):
        make_tokenizer(config_of(kind="file", path="hub:owner/name"))


@pytest.mark.parametrize("name", ["", "a/b/c", "owner/../x y", "owner/name@", "https://huggingface.co/gpt2"])
def test_what_is_no_name_on_the_hub(name: str) -> None:
    with pytest.raises(RequestError, match=r"is no name on the hub: write hub:OWNER/NAME"):
        make_tokenizer(config_of(kind="file", path=f"hub:{name}"))


@pytest.mark.parametrize("kind", ["gpt2", "tiktoken"])
def test_the_hub_is_for_files(kind: str) -> None:
    with pytest.raises(RequestError, match=r"tokenizer\.path=hub:owner/name needs tokenizer\.kind=file"):
        config_of(kind=kind, path="hub:owner/name")
