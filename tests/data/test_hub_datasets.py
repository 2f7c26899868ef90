"""Data sets read with the `datasets` library: local folders here, a hub of our own in a process of its own.

The library asks the environment only once where the hub is, so what is asked of the hub is asked in one new process.
"""

import hashlib
import http.server
import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import minigpt
from minigpt.cli import main
from minigpt.config import DataConfig, RequestError, SourceConfig, WorkError
from minigpt.data.reading.hub_datasets import hub_commit, hub_files, hub_identity
from minigpt.data.reading.own import settled_sources
from minigpt.data.reading.sources import documents, file_count, read_documents

datasets = pytest.importorskip("datasets")
pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

TEXTS = [f"text {number}, 1 of {number + 1}" for number in range(90)]


@pytest.fixture(autouse=True)
def _cache_of_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "library")


def table(texts: list[str]) -> Any:
    return pa.table({"title": [f"T{number}" for number in range(len(texts))], "text": texts})


def parquet(folder: Path) -> None:
    for number in range(3):
        pq.write_table(table(TEXTS[30 * number : 30 * number + 30]), folder / f"{number}.parquet", row_group_size=7)


def jsonl(folder: Path) -> None:
    for number in range(2):
        rows = [json.dumps({"title": "T", "text": text}) + "\n" for text in TEXTS[45 * number : 45 * number + 45]]
        (folder / f"part-{number}.jsonl").write_text("".join(rows))


def csv(folder: Path) -> None:
    rows = "".join(f'T,"{text}"\n' for text in TEXTS)
    (folder / "train.csv").write_text("title,text\n" + rows)
    (folder / "test.csv").write_text("title,text\nT,test\n")


def saved(folder: Path) -> None:
    parts = {"train": datasets.Dataset(table(TEXTS)), "test": datasets.Dataset(table(["test"]))}
    datasets.disable_progress_bars()
    datasets.DatasetDict(parts).save_to_disk(str(folder))


def saved_alone(folder: Path) -> None:
    datasets.disable_progress_bars()
    datasets.Dataset(table(TEXTS)).save_to_disk(str(folder))


def made(folder: Path, write: Callable[[Path], None]) -> str:
    folder.mkdir()
    write(folder)
    return str(folder)


# ---- folders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("write", "files"),
    [(parquet, 3), (jsonl, 2), (csv, 1), (saved, 1), (saved_alone, 1)],
    ids=lambda v: getattr(v, "__name__", v),
)
def test_a_folder_is_read_from_any_record_on(write: Callable[[Path], None], files: int, tmp_path: Path) -> None:
    source = SourceConfig(hub=made(tmp_path / "set", write))
    found = list(documents(source, tmp_path / "cache", None))
    assert [document.text for document in found] == TEXTS
    assert file_count(source, tmp_path / "cache") == files
    for number in (0, 1, 29, 30, 31, 44, 45, 62, 89):
        assert list(documents(source, tmp_path / "cache", None, start=found[number].place)) == found[number:]
    last_file, last_record = found[-1].place
    assert list(documents(source, tmp_path / "cache", None, start=(last_file, last_record + 1))) == []
    of_one = [document for document in found if document.place[0] == files - 1]
    assert list(documents(source, tmp_path / "cache", None, files=lambda number: number == files - 1)) == of_one
    library = datasets.load_from_disk(source.hub) if write in (saved, saved_alone) else None
    if library is None:  # what the library itself says, as any other program would ask it
        library = datasets.load_dataset(source.hub, cache_dir=str(tmp_path / "other"))
    library = library["train"] if isinstance(library, dict) else library
    assert library["text"][:] == TEXTS


def test_a_split_and_a_template(tmp_path: Path) -> None:
    for write in (csv, saved):
        folder = made(tmp_path / write.__name__, write)
        source = SourceConfig(hub=folder, split="test", template="{title}: {text}")
        assert list(read_documents(source, tmp_path)) == [("T" if write is csv else "T0") + ": test"]


def test_what_stops_half_way_lets_go_at_once(tmp_path: Path) -> None:
    folder = made(tmp_path / "set", parquet)
    reader = hub_files(SourceConfig(hub=folder))[0][1](0)
    assert next(reader) == (0, TEXTS[0])
    begin = time.monotonic()
    reader.close()
    assert time.monotonic() - begin < 2.0  # releases of the library wait for five seconds here


def test_the_identity_is_the_content_and_what_is_read_of_it(tmp_path: Path) -> None:
    def identity(folder: str, **keys: Any) -> str:
        return json.dumps(hub_identity(SourceConfig(hub=folder, **keys), tmp_path / "cache"))

    one, two = made(tmp_path / "one", csv), made(tmp_path / "two", csv)
    assert identity(one) == identity(two) == identity(one, split="train", name="x", weight=2.0)
    assert (
        len({identity(one), identity(one, split="test"), identity(one, field="title"), identity(one, config="a")}) == 4
    )
    Path(two, "train.csv").write_text("title,text\nT,other\n")
    assert identity(one) != identity(two)
    commit = "0123456789abcdef0123456789abcdef01234567"
    pinned = SourceConfig(hub="owner/name", revision=commit)
    assert commit in json.dumps(hub_identity(pinned, tmp_path)) and hub_commit(pinned) == commit  # nobody is asked
    assert hub_commit(SourceConfig(hub=one)) is None


WRONG = [
    (parquet, {"field": "body"}, r"set, split 'train', has no field 'body' \(its fields: title, text\); set the"),
    (jsonl, {"template": "{body}"}, r"has no field 'body' \(its fields: title, text\); mend the source's `template`"),
    (parquet, {"split": "test"}, r"set has no split 'test' \(its splits: train\); set `split`$"),
    (saved, {"split": "dev"}, r"set has no split 'dev' \(its splits: train, test\); set `split`$"),
    (saved_alone, {"split": "test"}, r"set has no split 'test' \(its splits: train\); set `split`$"),
    (parquet, {"config": "en"}, r"set has no configuration 'en' \(default\); set `config` to one of them$"),
    (saved, {"config": "en"}, r"^config='en' has no effect: .*set holds one data set \(save_to_disk\)$"),
    (parquet, {"revision": "main"}, r"^revision='main' has no effect: .*set is a folder on this machine$"),
    (lambda folder: None, {}, r"set cannot be read as a data set: .*doesn't contain any data files$"),
    (
        lambda folder: (folder / "a.parquet").write_bytes(b"PAR1" * 9 + b"..."),
        {},
        r"cannot be read as a data set: .*corrupted",
    ),
    (lambda folder: (folder / "a.jsonl").write_text('{"text": "a"}\n{"text":\n'), {}, r"set: JSON parse error"),
    (
        lambda folder: (folder / "a.jsonl").write_text('{"text": 3}\n'),
        {},
        r"row 1: field 'text' is not a string but int",
    ),
]


@pytest.mark.parametrize(("write", "keys", "said"), WRONG)
def test_a_wrong_request_of_a_folder(write: Callable, keys: dict[str, str], said: str, tmp_path: Path) -> None:
    folder = made(tmp_path / "set", write)
    with pytest.raises(RequestError, match=said) as caught:
        list(read_documents(SourceConfig(hub=folder, **keys), tmp_path / "cache"))
    assert "\n" not in str(caught.value)


def test_a_name_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"")
    for hub, said in [
        (str(tmp_path / "a.parquet"), "is a file: .*write path="),
        (str(tmp_path / "b"), "there is no folder .*b, and a data set of the hub is called OWNER/NAME"),
        ("../b", "there is no folder"),
        ("a b", "there is no folder a b"),
    ]:
        with pytest.raises(RequestError, match=said):
            list(read_documents(SourceConfig(hub=hub), tmp_path))


def test_without_the_library_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made(tmp_path / "set", csv)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(RequestError, match=r'pip install "minigpt\[hub\]"$'):
        hub_files(SourceConfig(hub=folder))


# ---- a hub that cannot be reached ------------------------------------------------------------------------------------


@pytest.fixture
def closed_port(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of a hub where nobody listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        yield address


def test_an_unreachable_hub_is_one_sentence_and_leaves_nothing(
    closed_port: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path / "cache"))
    for streaming in (False, True):
        source = json.dumps([{"hub": "owner/name", "streaming": streaming}])
        assert main(["data", "prepare", "demo", f"data.train={source}"]) == 1
        said = capfd.readouterr().err
        assert said.count("\n") == 1 and f"owner/name could not be had from {closed_port}" in said
        assert "refused" in said and "set HF_ENDPOINT or MINIGPT_MIRROR to a mirror, or download it elsewhere" in said
    assert [path for path in tmp_path.rglob("*") if path.is_file() and "lock" not in path.name] == []


def test_a_hub_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        monkeypatch.setattr("minigpt.data.reading.hub_datasets.TIMEOUT", 0.1)
        with pytest.raises(WorkError, match=rf"^owner/name could not be had from {address} \(.*timed out\): check the"):
            hub_files(SourceConfig(hub="owner/name"))


def test_offline_the_hub_is_not_asked(closed_port: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(WorkError, match=r"owner/name is not in the hub's cache .*HF_HUB_OFFLINE says not to ask"):
        hub_files(SourceConfig(hub="owner/name"))
    folder = made(tmp_path / "set", csv)
    assert len(list(read_documents(SourceConfig(hub=folder), tmp_path))) == 90  # a folder is all the same read


# ---- a hub of our own ------------------------------------------------------------------------------------------------

COMMIT = "c0ffee0000000000000000000000000000000000"
CARD = b"""---
configs:
- config_name: one
  data_files: [{split: train, path: one/*.parquet}]
- config_name: two
  data_files: [{split: train, path: two/train.parquet}, {split: test, path: two/test.parquet}]
---
"""
ASK = """
import json, sys, time
from minigpt.config import DataConfig, SourceConfig
from minigpt.data.reading.hub_datasets import hub_files, hub_identity
from minigpt.data.reading.own import settled_sources
for keys in json.loads(sys.argv[1]):
    begin = time.monotonic()
    try:
        source = settled_sources(DataConfig(train=[keys])).train[0]
        files = hub_files(source)
        answer = {"texts": [text for _, read in files for _, text in read(0)], "files": len(files),
                  "revision": source.revision, "identity": hub_identity(source, None)}
        first, number = next(iter(files))[1](3), 3
        answer["fourth"] = next(first)
        first.close()
    except Exception as error:
        answer = {"error": type(error).__name__, "said": str(error)}
    print(json.dumps({**answer, "seconds": time.monotonic() - begin}), flush=True)
"""


class Hub(http.server.ThreadingHTTPServer):
    """`sets`: files of each data set by their path; `asked`: what was asked for, and with which token."""

    sets: dict[str, dict[str, bytes]]
    asked: list[tuple[str, str | None]]


class Handler(http.server.BaseHTTPRequestHandler):
    """As much of the hub's protocol as reading a data set takes."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        paths = urllib.parse.parse_qs(body.decode()).get("paths") or json.loads(body)["paths"]
        name = re.match(r"/api/datasets/([^/]+/[^/]+)/paths-info/", self.path)[1]
        self.json([entry for path in paths for entry in self.entries(name, recursive=True) if entry["path"] == path])

    def do_GET(self) -> None:
        path, _, query = urllib.parse.unquote(self.path).partition("?")
        self.server.asked.append((path, self.headers.get("Authorization")))
        file = re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        about = re.fullmatch(r"/api/datasets/([^/]+/[^/]+)(/.*)?", path)
        name = (file or about or [None, ""])[1]
        if name not in self.server.sets:
            self.refuse(401, "RepoNotFound")
        elif file:
            self.file(self.server.sets[name].get(file[3]), gated=name == "owner/gated")
        elif about[2] == "/auth-check":
            self.refuse(403, "GatedRepo") if name == "owner/gated" else self.json({})
        elif (about[2] or "").startswith("/tree/"):
            inside = about[2].split("/", 3)[3] if about[2].count("/") > 2 else ""
            self.json(self.entries(name, inside, "recursive=true" in query.lower()))
        elif (about[2] or "").removeprefix("/revision/") not in ("", "main", "refs/convert/parquet", COMMIT):
            self.refuse(404, "RevisionNotFound")
        else:
            gated = "manual" if name == "owner/gated" else False
            self.json({"id": name, "sha": COMMIT, "gated": gated, "siblings": []})

    do_HEAD = do_GET

    def entries(self, name: str, inside: str = "", recursive: bool = False) -> list[dict[str, Any]]:
        found = {}
        for path, body in self.server.sets[name].items():
            below = path.removeprefix(f"{inside}/") if inside else path
            if inside and below == path:
                continue
            folder, _, rest = below.partition("/")
            if rest and not recursive:
                at = f"{inside}/{folder}".lstrip("/")
                found[at] = {"type": "directory", "oid": "0" * 40, "size": 0, "path": at}
            else:
                found[path] = {"type": "file", "oid": etag(body), "size": len(body), "path": path}
        return list(found.values())

    def file(self, body: bytes | None, gated: bool) -> None:
        if gated or body is None:
            self.refuse(403 if gated else 404, "GatedRepo" if gated else "EntryNotFound")
            return
        wanted = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not wanted:
            self.answer(200, body, ETag=f'"{etag(body)}"')
            return
        start, end = int(wanted[1]), min(int(wanted[2] or len(body)), len(body) - 1)
        self.answer(
            206, body[start : end + 1], ETag=f'"{etag(body)}"', Content_Range=f"bytes {start}-{end}/{len(body)}"
        )

    def json(self, value: Any) -> None:
        self.answer(200, json.dumps(value).encode())

    def refuse(self, status: int, code: str) -> None:
        self.answer(status, b"{}", X_Error_Code=code, X_Error_Message=code)

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "X-Repo-Commit": COMMIT, **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


def etag(body: bytes) -> str:
    return hashlib.sha1(body).hexdigest()


def parquet_bytes(texts: list[str]) -> bytes:
    file = io.BytesIO()
    pq.write_table(table(texts), file, row_group_size=7)
    return file.getvalue()


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    halves = {f"one/{number}.parquet": parquet_bytes(TEXTS[45 * number : 45 * number + 45]) for number in range(2)}
    two = {f"two/{split}.parquet": parquet_bytes([f"{split} {n}" for n in range(5)]) for split in ("train", "test")}
    with Hub(("127.0.0.1", 0), Handler) as it:
        it.asked = []
        it.sets = {
            "owner/name": {"README.md": CARD, **halves, **two},
            "owner/gated": {"train.parquet": two["two/train.parquet"]},
            "owner/script": {"script.py": b"import os"},
            "owner/broken": {"train.parquet": two["two/train.parquet"][:300]},
        }
        threading.Thread(target=it.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield it
        it.shutdown()


REQUESTS: dict[str, dict[str, Any]] = {
    "stream": {"hub": "owner/name", "config": "one", "streaming": True},
    "whole": {"hub": "owner/name", "config": "one"},
    "test": {"hub": "owner/name", "config": "two", "split": "test", "template": "{title} {text}"},
    "branch": {"hub": "owner/name", "config": "two", "revision": "refs/convert/parquet", "streaming": True},
    "several": {"hub": "owner/name"},
    "config": {"hub": "owner/name", "config": "three"},
    "split": {"hub": "owner/name", "config": "one", "split": "test"},
    "field": {"hub": "owner/name", "config": "one", "field": "body"},
    "revision": {"hub": "owner/name", "revision": "v9"},
    "nobody": {"hub": "nobody/nothing"},
    "gated": {"hub": "owner/gated"},
    "script": {"hub": "owner/script"},
    "broken": {"hub": "owner/broken", "streaming": True},
}


OFFLINE: dict[str, dict[str, Any]] = {
    "whole": {"hub": "owner/name", "config": "one"},
    "commit": {"hub": "owner/name", "config": "one", "revision": COMMIT},
    "another": {"hub": "owner/name", "config": "one", "revision": COMMIT[::-1]},
    "split": {"hub": "owner/name", "config": "one", "split": "test"},
    "gated": {"hub": "owner/gated"},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the library keeps what it has downloaded."""
    return tmp_path_factory.mktemp("hub-home")


@pytest.fixture(scope="module")
def answers(hub: Hub, home: Path) -> dict[str, dict[str, Any]]:
    return ask(REQUESTS, hub, home)


def ask(requests: dict[str, dict[str, Any]], hub: Hub, home: Path, **more: str) -> dict[str, dict[str, Any]]:
    """What a new process answers to each request."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "MINIGPT_"))}
    environment |= {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HOME": str(home),
        "HF_TOKEN": "hf_x",
    } | more
    environment["PYTHONPATH"] = str(Path(minigpt.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", ASK, json.dumps(list(requests.values()))],
        env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.stderr == "", done.stderr  # not a line of the library's own
    return dict(zip(requests, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.slow
def test_a_data_set_of_the_hub_streamed_or_whole(answers: dict[str, Any], hub: Hub) -> None:
    stream, whole = answers["stream"], answers["whole"]
    assert stream["texts"] == whole["texts"] == TEXTS
    assert (stream["files"], whole["files"]) == (2, 1)
    assert stream["identity"] == whole["identity"]  # how it is read does not change the text
    assert stream["fourth"] == whole["fourth"] == [3, TEXTS[3]]
    assert stream["revision"] == COMMIT and COMMIT in json.dumps(stream["identity"])
    assert answers["test"]["texts"] == [f"T{number} test {number}" for number in range(5)]
    assert answers["branch"]["texts"] == [f"train {number}" for number in range(5)]
    assert {token for path, token in hub.asked if "/datasets/" in path} == {"Bearer hf_x"}


SAID = {
    "several": ("RequestError", r"^owner/name has several configurations \(one, two\); set `config` to one of them$"),
    "config": ("RequestError", r"^owner/name has no configuration 'three' \(one, two\); set `config` to one of them$"),
    "split": ("RequestError", r"^owner/name has no split 'test' \(its splits: train\); set `split`$"),
    "field": ("RequestError", r"^owner/name, split 'train', has no field 'body' \(its fields: title, text\); set the"),
    "revision": ("RequestError", r"^owner/name has no revision 'v9': name a commit, a tag or a branch that it has$"),
    "nobody": ("RequestError", r"^http://127\S+ has no data set nobody/nothing that you may read: .*HF_TOKEN"),
    "gated": ("RequestError", r"^owner/gated is open to registered readers only: ask .*set HF_TOKEN to your access"),
    "script": ("RequestError", r"^owner/script is read by a script of its own.*`revision: refs/convert/parquet`$"),
    "broken": ("WorkError", r"^owner/broken cannot be read: .*corrupted"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SAID)
def test_what_a_hub_refuses(name: str, answers: dict[str, Any]) -> None:
    answer = answers[name]
    assert answer.get("error") == SAID[name][0], answer
    assert re.search(SAID[name][1], answer["said"]), answer["said"]
    assert "\n" not in answer["said"] and answer["seconds"] < 10


@pytest.mark.slow
@pytest.mark.slow
def test_without_the_hub_the_librarys_copy_is_read_if_it_is_the_one(
    answers: dict[str, Any], hub: Hub, home: Path
) -> None:
    asked = len(hub.asked)
    found = ask(OFFLINE, hub, home, HF_HUB_OFFLINE="1")
    assert found["whole"]["texts"] == found["commit"]["texts"] == TEXTS
    assert found["whole"]["identity"] == found["commit"]["identity"] == answers["whole"]["identity"]
    assert found["another"]["said"] == f"owner/name is in the hub's cache at the commit {COMMIT}, not {COMMIT[::-1]}"
    assert found["split"]["error"] == "RequestError"
    assert "owner/gated is not in the hub's cache" in found["gated"]["said"]
    assert len(hub.asked) == asked


def test_the_config_of_a_run_names_the_commit(tmp_path: Path) -> None:
    data = DataConfig(train=[{"hub": made(tmp_path / "set", csv)}, {"hub": "owner/name", "revision": COMMIT}])
    assert settled_sources(data) == data  # nothing to look up
