"""The recipes: presets with real sources, run end to end against a local server that plays the sites they come from.

What it serves has the shape of the real files (names, formats, fields, separators, the hub's redirect), not their size.
A preset that knows the hash of its file is given the same address without it, except where the real file is at hand.
"""

import contextlib
import gzip
import hashlib
import http.server
import json
import re
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from minigpt.cli import main
from minigpt.config import load_config, resolved
from minigpt.data import prepare
from minigpt.data.demo import story
from minigpt.data.rows.mixture import make_mixture
from minigpt.data.rows.order import WindowOrder
from minigpt.training.setup import assemble
from minigpt.training.tokenizers import GPT2_FILES, GPT2_URL, make_tokenizer

HUB = "huggingface.co"
RECIPES = ["shakespeare-char", "shakespeare-char-fast", "shakespeare-char-gpu", "the-verdict", "tinystories",
           "redpajama-sample", "fineweb-edu-10b", "openwebtext", "wikitext-103", "gutenberg", "c4-mixture",
           "two-stage"]  # fmt: skip
UNPINNED = {"lucadiliello/bookcorpusopen"}  # of which no commit is known here; a run records the one that it reads
SMALL = ["model.n_layer=1", "model.n_head=2", "model.n_embd=32", "model.context_length=32", "training.batch_tokens=128",
         "training.micro_batch=4", "training.max_steps=2", "schedule.warmup_steps=1", "evaluation.max_tokens=128",
         "loggers.console=plain"]  # fmt: skip


class Web(http.server.ThreadingHTTPServer):
    """`files`: what there is, by site and path. Those of the hub are redirected to a store, as the hub does it."""

    files: dict[str, bytes]
    asked: list[str]


class Handler(http.server.BaseHTTPRequestHandler):
    server: Web

    def do_GET(self) -> None:
        path = urllib.parse.unquote(self.path).lstrip("/")
        self.server.asked.append(path)
        body = self.server.files.get(path.removeprefix("store/"))
        if body is None:
            self.send_error(404)
        elif path.startswith(f"{HUB}/"):
            self.send_response(302)
            self.send_header("Location", f"http://127.0.0.1:{self.server.server_port}/store/{path}")
            self.send_header("X-Linked-Size", str(len(body)))
            self.send_header("X-Linked-Etag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # hung up on a file of the wrong size
                self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    with Web(("127.0.0.1", 0), Handler) as it:
        it.files, it.asked = {}, []
        threading.Thread(target=it.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        monkeypatch.setenv("MINIGPT_MIRROR", f"http://127.0.0.1:{it.server_port}")
        monkeypatch.delenv("HF_ENDPOINT", raising=False)
        yield it
        it.shutdown()


@pytest.fixture
def gpt2(web: Web, test_data: Callable[[str], Path]) -> None:
    """GPT-2's real vocabulary where the tokenizer looks for it."""
    for name in GPT2_FILES:
        web.files[GPT2_URL.removeprefix("https://") + name] = test_data(f"gpt2_bpe/{name}").read_bytes()


@pytest.fixture
def minigpt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command line that must succeed; what it printed."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str) -> str:
        capfd.readouterr()
        status = main([*arguments])
        out, err = capfd.readouterr()
        assert status == 0, err
        return out

    return command


def addresses(preset: str, split: str = "train") -> list[str]:
    """The addresses of a preset's files, without https://."""
    sources = getattr(load_config(preset)[0].data, split)
    return [url.removeprefix("https://") for source in sources for url in source.urls]


def unpinned(preset: str) -> list[str]:
    """Overrides that make the preset take other files from its addresses than the real ones."""
    data = resolved(load_config(preset)[0])["data"]
    kept = {
        split: [{key: value for key, value in source.items() if key not in ("sha256", "bytes")} for source in sources]
        for split, sources in data.items()
        if split in ("train", "val") and sources
    }
    return [f"data.{split}={json.dumps(sources)}" for split, sources in kept.items()]


def stories(count: int, seed: int = 0) -> list[str]:
    return [story(seed, number) for number in range(count)]


def prepared(preset: str, overrides: list[str]) -> tuple[Any, Any]:
    """(tokenizer, data) as a run has them."""
    config, _ = load_config(preset, overrides)
    tokenizer = make_tokenizer(config)
    return tokenizer, prepare(config.data, tokenizer)


def check_run(minigpt: Callable[..., str], preset: str, overrides: list[str]) -> None:
    """Two steps, an evaluation and a finished model."""
    minigpt("train", preset, "--run-dir", "run", *overrides)
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 2 and any("val/loss" in line for line in lines)
    assert (Path("run/model") / "model.safetensors").exists()


# --- what the presets say of themselves


@pytest.mark.parametrize("preset", RECIPES)
def test_every_recipe_knows_its_text_and_pins_it(preset: str) -> None:
    config, notes = load_config(preset)
    assert notes == []
    for source in [*config.data.train, *(config.data.val or [])]:
        for url in source.urls:
            parts = urllib.parse.urlsplit(url)
            assert parts.scheme == "https"
            at_a_commit = re.search(r"/resolve/[0-9a-f]{40}/", parts.path)
            assert (parts.netloc == HUB and at_a_commit) or (source.sha256 and source.bytes)
        if source.hub is not None and source.hub not in UNPINNED:
            assert re.fullmatch("[0-9a-f]{40}", source.revision)


def test_the_addresses_of_many_files() -> None:
    found = addresses("fineweb-edu-10b")
    assert len(found) == 14 and found == sorted(found)
    assert found[0].endswith("/sample/10BT/000_00000.parquet") and found[-1].endswith("/013_00000.parquet")
    found = addresses("openwebtext")
    assert len(found) == 80 and found == sorted(found)
    assert [url.rpartition("/")[2] for url in found][::79] == [f"train-000{n}-of-00080.parquet" for n in ("00", "79")]
    names = [url.rpartition("/")[2] for url in addresses("redpajama-sample")]
    crawls = ["2019-30", "2020-05", "2021-04", "2022-05", "2023-06"]
    parts = ["arxiv", "book", "c4", "github", "stackexchange", "wikipedia", *(f"cc_{crawl}" for crawl in crawls)]
    assert sorted(names) == sorted(f"{part}_sample.jsonl" for part in parts)


CLAIMS = {
    "shakespeare-char": ("0.8M parameters", 65),
    "shakespeare-char-fast": ("0.23M parameters", 65),
    "shakespeare-char-gpu": ("10.7M parameters", 65),
    "the-verdict": ("0.14M parameters", 512),
    "tinystories": ("17.6M parameters", 10_000),
    "redpajama-sample": ("51M parameters", 50_257),
    "fineweb-edu-10b": ("124M", 50_257),
    "openwebtext": ("124M", 50_257),
    "wikitext-103": ("45M parameters", 50_257),
    "gutenberg": ("114M parameters", 50_257),
    "c4-mixture": ("114M parameters", 50_257),
    "two-stage": ("114M parameters", 50_257),
}


@pytest.mark.parametrize("preset", RECIPES)
def test_the_size_is_what_the_comment_says(preset: str) -> None:
    import torch

    from minigpt.model import GPT

    said, vocab_size = CLAIMS[preset]
    assert said in (files("minigpt.presets") / f"{preset}.yaml").read_text("utf-8").split("\nmodel:")[0]
    model = load_config(preset)[0].model.model_copy(update={"vocab_size": vocab_size})
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in GPT(model).parameters())
    number = said.partition("M")[0]
    assert round(count / 1e6, len(number.partition(".")[2])) == float(number)


# --- end to end


@pytest.mark.parametrize("preset", ["shakespeare-char", "shakespeare-char-fast", "shakespeare-char-gpu"])
def test_shakespeare_from_the_real_file(
    preset: str, web: Web, minigpt: Callable[..., str], test_data: Callable[[str], Path]
) -> None:
    (url,) = addresses(preset)
    web.files[url] = test_data("tinyshakespeare/input.txt").read_bytes()
    check_run(minigpt, preset, SMALL)
    assert web.asked == [url]
    tokenizer, data = prepared(preset, SMALL)
    assert (tokenizer.vocab_size, len(data.train), len(data.val)) == (65, 1_003_854, 111_540)


def test_another_text_at_the_pinned_address_is_refused(web: Web, capfd: pytest.CaptureFixture[str]) -> None:
    (url,) = addresses("shakespeare-char")
    web.files[url] = b"ROMEO: " * 200_000
    assert main(["train", "shakespeare-char", *SMALL]) == 1
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "has 1,400,000 bytes on the server, not the expected 1,115,394" in said
    web.files[url] = (b"ROMEO: " * 200_000)[:1_115_394]
    assert main(["train", "shakespeare-char", *SMALL]) == 1
    assert "not the expected 86c4e6aa" in capfd.readouterr().err


def test_the_verdict_as_it_is(web: Web, minigpt: Callable[..., str]) -> None:
    (url,) = addresses("the-verdict")
    text = " ".join(stories(80))[:20_479]
    web.files[url] = text.encode()
    overrides = [*unpinned("the-verdict"), "training.max_steps=2"]
    plan = json.loads(minigpt("train", "the-verdict", "--dry-run", "--json", *overrides))
    assert plan["parameters"] == 139_712
    check_run(minigpt, "the-verdict", overrides)
    tokenizer, data = prepared("the-verdict", overrides)
    cut = int(len(text) * 0.9)
    assert tokenizer.decode(data.train.tokens(0, len(data.train)).tolist()) == text[:cut]
    assert tokenizer.decode(data.val.tokens(0, len(data.val)).tolist()) == text[cut:]


@pytest.mark.slow
def test_tinystories(web: Web, minigpt: Callable[..., str]) -> None:
    texts = {"train": stories(300), "val": stories(40, seed=1)}
    for split, found in texts.items():
        (url,) = addresses("tinystories", split)
        body = ("\n<|endoftext|>\n".join(found) + "\n<|endoftext|>\n").encode()
        web.files[url] = body if split == "train" else gzip.compress(body)  # a mirror may well keep it packed
    overrides = [*unpinned("tinystories"), *SMALL, "model.n_inner=64"]
    check_run(minigpt, "tinystories", overrides)
    tokenizer, data = prepared("tinystories", overrides)
    assert tokenizer.vocab_size <= 10_000
    for split, found in texts.items():
        part = getattr(data, split)
        assert part.n_documents == len(found)
        assert tokenizer.decode(part.tokens(0, len(part)).tolist()) == "".join(f"{text}<|endoftext|>" for text in found)


@pytest.mark.slow
def test_redpajama(web: Web, gpt2: None, minigpt: Callable[..., str]) -> None:
    for number, url in enumerate(addresses("redpajama-sample")):
        rows = [
            {"text": text, "meta": {"url": "https://example.org", "language": "en"}}
            for text in stories(20, seed=number)
        ]
        web.files[url] = "".join(json.dumps(row) + "\n" for row in rows).encode()
    overrides = [*SMALL, "training.compile=false"]
    check_run(minigpt, "redpajama-sample", overrides)
    asked = [path for path in web.asked if path.startswith(HUB)]
    assert asked == addresses("redpajama-sample")
    tokenizer, data = prepared("redpajama-sample", overrides)
    assert data.train.n_documents + data.val.n_documents == 11 * 20
    last = tokenizer.decode(data.val.tokens(0, len(data.val)).tolist()).split("<|endoftext|>")[:-1]
    assert last == stories(20, seed=10)[-len(last) :]


def parquet_file(folder: Path, texts: list[str]) -> bytes:
    """A file with the columns of FineWeb-Edu's sample."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    same = {"dump": "CC-MAIN-2013-20", "url": "https://example.org", "file_path": "s3://x", "language": "en"}
    columns = {
        "text": texts,
        "id": [f"<urn:uuid:{number}>" for number in range(len(texts))],
        **{name: [value] * len(texts) for name, value in same.items()},
        "language_score": [0.97] * len(texts),
        "token_count": [len(text) // 4 for text in texts],
        "score": [3.1] * len(texts),
        "int_score": [3] * len(texts),
    }
    pq.write_table(pa.table(columns), folder / "x.parquet", row_group_size=8)
    return (folder / "x.parquet").read_bytes()


@pytest.mark.slow
def test_fineweb_edu(web: Web, gpt2: None, minigpt: Callable[..., str], tmp_path: Path) -> None:
    for number, url in enumerate(addresses("fineweb-edu-10b")):
        web.files[url] = parquet_file(tmp_path, stories(20, seed=number))
    overrides = [*SMALL, "training.compile=false"]
    check_run(minigpt, "fineweb-edu-10b", overrides)
    tokenizer, data = prepared("fineweb-edu-10b", overrides)
    everything = [text for number in range(14) for text in stories(20, seed=number)]
    found = tokenizer.decode(
        [*data.train.tokens(0, len(data.train)).tolist(), *data.val.tokens(0, len(data.val)).tolist()]
    )
    assert found == "".join(f"{text}<|endoftext|>" for text in everything)
    assert data.val.n_documents >= 2


@pytest.mark.slow
def test_four_epochs_are_four_passes(web: Web, gpt2: None, tmp_path: Path) -> None:
    for number, url in enumerate(addresses("fineweb-edu-10b")):
        web.files[url] = parquet_file(tmp_path, stories(5, seed=number))
    small = [override for override in SMALL if not override.startswith("training.max_steps")]
    overrides = [*small, "training.compile=false"]
    parts = assemble(load_config("fineweb-edu-10b", overrides)[0])
    windows = WindowOrder(len(parts.data.train), 32, seed=0).windows_per_epoch
    assert windows > 100 and parts.max_steps == windows  # four times, and four rows a step


# --- from the hub, with folders of the same shape in its place

LINES = ["", " = Robert Boulter = \n", "", " Robert Boulter is an English film actor . \n", "", " = = Career = = \n"]


def card(config: str, **paths: str) -> bytes:
    files = "".join(f"  - {{split: {split}, path: '{path}'}}\n" for split, path in paths.items())
    return f"---\nconfigs:\n- config_name: {config}\n  data_files:\n{files}---\n".encode()


def packed_rows(texts: list[str]) -> bytes:
    rows = [{"text": text, "timestamp": "2019-04-25T12:57:54Z", "url": "https://example.org"} for text in texts]
    return gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())


@pytest.fixture
def hub(tmp_path: Path) -> dict[str, str]:
    """Folders with the files of the data sets' repositories, by the name of the data set."""
    pytest.importorskip("datasets")
    (tmp_path / "hub").mkdir()

    def table(texts: list[str]) -> bytes:
        return parquet_file(tmp_path, texts)

    wikitext, edu = "wikitext-103-raw-v1", "sample/10BT"
    repositories = {
        "allenai/c4": {
            "README.md": card("en", train="en/c4-train.*.json.gz", validation="en/c4-validation.*.json.gz"),
            "en/c4-validation.00000-of-00008.json.gz": packed_rows(["not to be read"]),
            **{f"en/c4-train.{n:05d}-of-01024.json.gz": packed_rows(stories(40, seed=n)) for n in range(3)},
        },
        "Salesforce/wikitext": {
            "README.md": card(wikitext, **{split: f"{wikitext}/{split}-*" for split in ("train", "validation")}),
            f"{wikitext}/train-00000-of-00002.parquet": table(LINES * 40),
            f"{wikitext}/train-00001-of-00002.parquet": table(LINES * 30),
            f"{wikitext}/validation-00000-of-00001.parquet": table(LINES * 5),
        },
        "HuggingFaceFW/fineweb-edu": {
            "README.md": card("sample-10BT", train=f"{edu}/*"),
            **{f"{edu}/{n:03d}_00000.parquet": table(stories(60, seed=10 + n)) for n in range(2)},
        },
        "manu/project_gutenberg": {
            f"data/{split}-0000{n}-of-00002-7cda8f63c262acf8.parquet": table(
                [" ".join(stories(20, seed=30 + 10 * n + book)) for book in range(4)]
            )
            for split in ("de", "en")
            for n in range(2)
        },
        "lucadiliello/bookcorpusopen": {
            "data/train-00000-of-00001.parquet": table([" ".join(stories(20, seed=60 + book)) for book in range(120)])
        },
    }
    for name, contents in repositories.items():
        for path, content in contents.items():
            file = tmp_path / "hub" / name / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
    return {name: str(tmp_path / "hub" / name) for name in repositories}


def from_folders(preset: str, hub: dict[str, str]) -> list[str]:
    """Overrides that make the preset read the folders."""
    data = resolved(load_config(preset)[0])["data"]
    for source in [*data["train"], *(data.get("val") or [])]:
        if "hub" in source:
            source["hub"] = hub[source["hub"]]
            source.pop("revision", None)
    texts = [f"data.{split}={json.dumps(data[split])}" for split in ("train", "val") if data.get(split)]
    return [*SMALL, "model.n_kv_head=2", "training.compile=false", *texts]


@pytest.mark.slow
def test_openwebtext(web: Web, gpt2: None, minigpt: Callable[..., str], tmp_path: Path) -> None:
    for number, url in enumerate(addresses("openwebtext")):
        web.files[url] = parquet_file(tmp_path, stories(4, seed=number))
    overrides = [*SMALL, "training.compile=false", "data.val_fraction=0.01"]  # of the real text 0.05 % is enough
    check_run(minigpt, "openwebtext", overrides)
    assert [path for path in web.asked if path.startswith(HUB)] == addresses("openwebtext")
    tokenizer, data = prepared("openwebtext", overrides)
    assert tokenizer.decode(data.train.tokens(0, 2000).tolist()).startswith(stories(1)[0] + "<|endoftext|>")


@pytest.mark.slow
def test_wikitext_is_the_running_text_again(
    web: Web, gpt2: None, hub: dict[str, str], minigpt: Callable[..., str]
) -> None:
    overrides = from_folders("wikitext-103", hub)
    check_run(minigpt, "wikitext-103", overrides)
    tokenizer, data = prepared("wikitext-103", overrides)
    for part, times in ((data.train, 70), (data.val, 5)):
        assert tokenizer.decode(part.tokens(0, len(part)).tolist()) == "".join(LINES * times)


@pytest.mark.slow
def test_gutenberg_is_books_in_english(web: Web, gpt2: None, hub: dict[str, str], minigpt: Callable[..., str]) -> None:
    overrides = [*from_folders("gutenberg", hub), "data.val_fraction=0.3"]
    check_run(minigpt, "gutenberg", overrides)
    tokenizer, data = prepared("gutenberg", overrides)
    text = "".join(tokenizer.decode(part.tokens(0, len(part)).tolist()) for part in (data.train, data.val))
    assert text.count("<|endoftext|>") == 8


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["c4-mixture", "two-stage"])
def test_mixtures_are_read_while_they_train(
    preset: str, web: Web, gpt2: None, hub: dict[str, str], minigpt: Callable[..., str]
) -> None:
    (news,) = [url for url in addresses(preset)] or [None]
    if news is not None:
        web.files[news] = "".join(f"{text} NEWLINE_CHAR ||||| more\n" for text in stories(120, seed=90)).encode()
    overrides = [*from_folders(preset, hub), "data.val_documents=5"]
    check_run(minigpt, preset, overrides)


def test_the_weights_of_the_mixtures() -> None:
    config = load_config("c4-mixture")[0]
    weights = {source.name: source.weight for source in config.data.train}
    assert weights == {"c4": 305, "wikitext": 3, "books": 37.8, "news": 4.2}
    mixture = make_mixture(
        config.data, list(weights), list(weights.values()), batch_rows=config.batch_rows, seed=0, max_steps=1000
    )
    assert mixture.stages[0].block_rows == 7 * config.batch_rows  # the header says so
    assert mixture.stages[0].counts == (1525, 15, 189, 21)  # 1,750 rows: exactly the weights times five
    config = load_config("two-stage")[0]
    mixture = make_mixture(config.data, ["web", "edu", "wiki"], [90.0, 9.0, 1.0], batch_rows=10, seed=0, max_steps=1000)
    assert mixture.counts(9000) == (8100, 810, 90) and mixture.counts(10_000) == (8300, 1510, 190)


# --- at full size: what the dry run says of the real shapes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "parameters"), [("tinystories", 17.6), ("redpajama-sample", 51.1), ("fineweb-edu-10b", 124.5)]
)
def test_dry_run_at_full_size(
    preset: str, parameters: float, web: Web, gpt2: None, minigpt: Callable[..., str], tmp_path: Path
) -> None:
    for split in ("train", "val") if preset == "tinystories" else ("train",):
        for number, url in enumerate(addresses(preset, split)):
            texts = stories(200, seed=number)
            web.files[url] = {
                "tinystories": lambda texts: "\n<|endoftext|>\n".join(texts).encode(),
                "redpajama-sample": lambda texts: "".join(json.dumps({"text": text}) + "\n" for text in texts).encode(),
                "fineweb-edu-10b": lambda texts: parquet_file(tmp_path, texts),
            }[preset](texts)
    overrides = unpinned(preset) if preset == "tinystories" else ["training.compile=false"]
    # A vocabulary as large as that of the real text cannot be trained on this little: its size is set instead.
    overrides += ["model.vocab_size=10000"] if preset == "tinystories" else []
    plan = json.loads(minigpt("train", preset, "--dry-run", "--json", "training.micro_batch=1", *overrides))
    assert round(plan["parameters"] / 1e6, 1) == parameters


def test_a_site_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MINIGPT_MIRROR", "http://127.0.0.1:9")
    monkeypatch.setattr("minigpt.data.reading.download.time.sleep", lambda seconds: None)
    assert main(["train", "fineweb-edu-10b", "tokenizer.kind=bpe", "training.compile=false"]) == 1
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "000_00000.parquet could not be downloaded, tried 5 times" in said
    assert "name it instead (data.train=FILE)" in said
