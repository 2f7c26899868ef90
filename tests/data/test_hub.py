"""Mirrors, and Hugging Face's hub: two local servers play the hub and the store that it redirects to."""

import hashlib
import http.server
import re
import socket
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from minigpt.config import RequestError, SourceConfig, WorkError
from minigpt.data.reading import hub
from minigpt.data.reading.download import DownloadError, download
from minigpt.data.reading.sources import read_documents

BODY = b"One line of text.\n" * 20_000
SHA = hashlib.sha256(BODY).hexdigest()
PATH = "/datasets/owner/name/resolve/main/train.txt"


class Server(http.server.ThreadingHTTPServer):
    """`seen` has (path, headers) of each request; `answers` maps a path to a function that answers."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.answers: dict = {}
        self.cut_after: list[int] = []  # bytes of the body after which each of the next responses breaks off

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def headers_at(self, path: str) -> list[dict[str, str]]:
        return [headers for asked, headers in self.seen if asked == path]


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.seen.append((self.path, dict(self.headers)))
        answer = self.server.answers.get(self.path)
        if answer is None:
            self.send_error(404)
        else:
            answer(self)

    def log_message(self, *args: object) -> None:
        pass


def redirect(location: str, **headers: str):
    def answer(handler: Handler) -> None:
        handler.send_response(302)
        for name, value in {"Location": location, "Content-Length": "0", **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()

    return answer


def content(body: bytes):
    def answer(handler: Handler) -> None:
        server, start = handler.server, 0
        if wanted := handler.headers.get("Range"):
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
        handler.send_response(206 if start else 200)
        handler.send_header("ETag", '"of the store"')
        handler.send_header("Content-Length", str(len(body) - start))
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        handler.end_headers()
        handler.wfile.write(body[start : start + server.cut_after.pop(0)] if server.cut_after else body[start:])

    return answer


def refuse(status: int):
    return lambda handler: handler.send_error(status)


@pytest.fixture
def servers() -> Iterator[tuple[Server, Server]]:
    """The hub and the store."""
    both = Server(), Server()
    for server in both:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield both
    for server in both:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MINIGPT_MIRROR", "HF_ENDPOINT", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def fetch(url: str, cache: Path, **options) -> Path:
    return download(url, cache, **({"backoff": 0.01, "attempts": 3, "timeout": 5} | options))


# --- redirects, hashes, resuming


def test_a_file_of_the_hub_comes_from_its_store_and_is_checked(servers: tuple[Server, Server], tmp_path: Path) -> None:
    site, store = servers
    site.answers[PATH] = redirect(
        f"{store.address}/blob?sign=1", X_Linked_Etag=f'"{SHA}"', X_Linked_Size=str(len(BODY))
    )
    store.answers["/blob?sign=1"] = content(BODY)
    path = fetch(site.address + PATH, tmp_path)
    assert path.read_bytes() == BODY and path.name == "data-train.txt"
    store.answers["/blob?sign=1"] = content(BODY.replace(b"One", b"Two"))
    with pytest.raises(WorkError, match=rf"has sha256 \w+, not the expected {SHA}; the download was deleted"):
        fetch(site.address + PATH, tmp_path / "other")
    assert not list((tmp_path / "other").rglob("data-*"))


def test_a_broken_download_goes_on_where_it_stopped(servers: tuple[Server, Server], tmp_path: Path) -> None:
    site, store = servers
    site.answers[PATH] = redirect(f"{store.address}/blob", X_Linked_Etag=f'"{SHA}"')
    store.answers["/blob"] = content(BODY)
    store.cut_after = [100_000, 50_000]
    assert fetch(site.address + PATH, tmp_path).read_bytes() == BODY
    ranges = [headers.get("Range") for headers in store.headers_at("/blob")]
    assert ranges == [None, "bytes=100000-", "bytes=150000-"]


def test_a_file_that_changes_on_the_hub_midway_is_not_mixed(servers: tuple[Server, Server], tmp_path: Path) -> None:
    site, store = servers
    new = BODY.replace(b"One", b"Two")
    site.answers[PATH] = redirect(f"{store.address}/old", X_Linked_Etag=f'"{SHA}"')
    store.answers |= {"/old": content(BODY), "/new": content(new)}  # with the same ETag: only the hub knows better
    store.cut_after = [100_000, 0, 0, 0]
    with pytest.raises(DownloadError):
        fetch(site.address + PATH, tmp_path)
    site.answers[PATH] = redirect(f"{store.address}/new", X_Linked_Etag=f'"{hashlib.sha256(new).hexdigest()}"')
    assert fetch(site.address + PATH, tmp_path).read_bytes() == new


def test_the_hash_of_a_small_file_is_gits_and_is_not_compared(servers: tuple[Server, Server], tmp_path: Path) -> None:
    site, _ = servers
    site.answers[PATH] = redirect("/api/resolve-cache/x", X_Linked_Etag='"9eb98c817f04b051b3bcca591bcd4e03cec88018"')
    site.answers["/api/resolve-cache/x"] = content(b"small")
    assert fetch(site.address + PATH, tmp_path).read_bytes() == b"small"


def test_an_endless_redirect_is_one_sentence(servers: tuple[Server, Server], tmp_path: Path) -> None:
    site, _ = servers
    site.answers[PATH] = redirect(PATH)
    with pytest.raises(RequestError, match="the server answered 302 ") as caught:
        fetch(site.address + PATH, tmp_path)
    assert "\n" not in str(caught.value)


# --- the access token


def test_the_token_goes_to_the_hub_alone(
    servers: tuple[Server, Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, store = servers
    monkeypatch.setattr(hub, "HUB", site.address)
    monkeypatch.setenv("HF_TOKEN", " hf_secret\n")
    site.answers[PATH] = redirect("/moved")
    site.answers["/moved"] = redirect(f"{store.address}/blob")
    store.answers["/blob"] = content(BODY)
    fetch(site.address + PATH, tmp_path)
    for path in (PATH, "/moved"):
        assert [headers.get("Authorization") for headers in site.headers_at(path)] == ["Bearer hf_secret"]
    (headers,) = store.headers_at("/blob")
    assert "Authorization" not in headers and "hf_secret" not in str(headers)
    fetch(f"{store.address}/blob", tmp_path)  # nor does another site get it when it is asked first
    assert all("hf_secret" not in str(headers) for _, headers in store.seen)


@pytest.mark.parametrize(
    "url",
    [
        "http://huggingface.co/x",
        "https://huggingface.co.example.org/x",
        "https://huggingface.co@example.org/x",
        "https://huggingface.co:8443/x",
        "https://cdn-lfs.huggingface.co/x",
        "https://example.org/https://huggingface.co/x",
    ],
)
def test_addresses_that_look_like_the_hub_get_no_token(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    request = urllib.request.Request(url)
    hub.authorise(request)
    assert not request.has_header("Authorization")
    request = urllib.request.Request("https://huggingface.co/x")
    hub.authorise(request)
    assert request.get_header("Authorization") == "Bearer hf_secret"
    assert request.unredirected_hdrs and "Authorization" not in request.headers


def test_a_token_that_is_none_is_refused_without_being_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_a\r\nX-Other: b")
    with pytest.raises(RequestError, match="HF_TOKEN holds characters that no access token has") as caught:
        hub.authorise(urllib.request.Request("https://huggingface.co/x"))
    assert "hf_a" not in str(caught.value)


def test_a_gated_file_says_which_variable_to_set(
    servers: tuple[Server, Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, store = servers
    monkeypatch.setattr(hub, "HUB", site.address)
    for server in servers:
        server.answers[PATH] = refuse(401)
    with pytest.raises(RequestError, match="answered 401 Unauthorized; set HF_TOKEN to the access token"):
        fetch(site.address + PATH, tmp_path)
    with pytest.raises(RequestError, match=r"answered 401 Unauthorized$"):
        fetch(store.address + PATH, tmp_path)


# --- mirrors


def test_a_mirror_stands_for_every_site(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, other = "https://huggingface.co/datasets/a/b.txt", "https://example.org:8080/x?y=1"
    assert [hub.mirrored(url) for url in (dataset, other)] == [dataset, other]
    monkeypatch.setenv("MINIGPT_MIRROR", "http://mirror:1/all/")
    assert hub.mirrored(dataset) == "http://mirror:1/all/huggingface.co/datasets/a/b.txt"
    assert hub.mirrored(other) == "http://mirror:1/all/example.org:8080/x?y=1"
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example.org")
    assert hub.mirrored(dataset) == "https://hub.example.org/datasets/a/b.txt"
    assert hub.mirrored(other) == "http://mirror:1/all/example.org:8080/x?y=1"
    assert hub.mirrored("https://huggingface.co.example.org/x").startswith("http://mirror:1/")


def test_a_mirror_that_is_no_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIGPT_MIRROR", "localhost:8000")
    with pytest.raises(RequestError, match=r"'localhost:8000/example\.org/x' is not an http:// or https:// address"):
        fetch("https://example.org/x", tmp_path)


def test_a_mirror_is_checked_like_the_site_and_what_it_gave_is_kept(
    servers: tuple[Server, Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, store = servers
    url = "https://huggingface.co" + PATH
    site.answers["/huggingface.co" + PATH] = content(BODY)
    store.answers[PATH] = content(b"something else")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_ENDPOINT", store.address)
    with pytest.raises(WorkError, match=rf"{store.address}.*not the expected {SHA}"):
        fetch(url, tmp_path, sha256=SHA)
    monkeypatch.delenv("HF_ENDPOINT")
    monkeypatch.setenv("MINIGPT_MIRROR", site.address)
    path = fetch(url, tmp_path, sha256=SHA)
    assert path.read_bytes() == BODY
    monkeypatch.setenv("MINIGPT_MIRROR", "http://127.0.0.1:9")  # nobody is asked again
    assert fetch(url, tmp_path, sha256=SHA) == path
    assert all("hf_secret" not in str(headers) for server in servers for _, headers in server.seen)


# --- several files, and none


def test_braces_download_one_file_after_the_other(servers: tuple[Server, Server], tmp_path: Path) -> None:
    site, _ = servers
    for number in (9, 10, 11):
        site.answers[f"/part-{number:03d}.jsonl"] = content(b'{"text": "%d"}\n' % number)
    source = SourceConfig(url=site.address + "/part-{009..011}.jsonl")
    assert list(read_documents(source, tmp_path)) == ["9", "10", "11"]
    assert [path for path, _ in site.seen] == [f"/part-{number:03d}.jsonl" for number in (9, 10, 11)]
    del site.answers["/part-011.jsonl"]
    with pytest.raises(RequestError, match=r"part-011\.jsonl cannot be downloaded: the server answered 404"):
        list(read_documents(source, tmp_path / "other"))


def test_a_host_that_cannot_be_reached_says_what_was_tried_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MINIGPT_MIRROR", f"http://127.0.0.1:{unused.getsockname()[1]}")
        monkeypatch.setattr("minigpt.data.reading.download.time.sleep", lambda seconds: None)
        with pytest.raises(WorkError) as caught:
            list(read_documents("https://huggingface.co" + PATH, tmp_path))
    message = str(caught.value)
    assert message.startswith("http://127.0.0.1:") and "\n" not in message
    assert PATH in message and "tried 5 times" in message and "refused" in message
    assert "check the network, set MINIGPT_MIRROR to a mirror" in message
    assert message.endswith("or fetch the file elsewhere and name it instead (data.train=FILE)")
    assert not list(tmp_path.rglob("data-*"))
