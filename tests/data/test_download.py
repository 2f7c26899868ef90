"""Downloads, against a local server that behaves as badly as real ones do."""

import hashlib
import http.server
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from minigpt.config import RequestError, SourceConfig, WorkError
from minigpt.data import download as download_module
from minigpt.data.download import download
from minigpt.data.sources import read_documents

BODY = bytes(range(32, 127)) * 8000  # 760,000 bytes of ASCII
SHA = hashlib.sha256(BODY).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """What it serves and how; `requests` has the Range header (or None) of each request."""

    body = BODY
    etag: str | None = '"one"'
    last_modified: str | None = None
    ranges = True
    send_length = True
    cut_after: list[int]  # bytes of the body after which each of the next responses breaks off
    statuses: list[int]  # answers of the next requests instead of a body
    wrong_start = 0  # added to the first byte of a partial answer
    ignore_if_range = False
    requests: list[str | None]
    on_request = staticmethod(lambda server: None)


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        wanted = self.headers.get("Range")
        server.requests.append(wanted)
        server.on_request(server)
        if server.statuses:
            self.send_error(server.statuses.pop(0))
            return
        start = 0
        condition = self.headers.get("If-Range")
        fits = server.ignore_if_range or (condition is not None and condition in (server.etag, server.last_modified))
        if wanted and server.ranges and fits:
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) + server.wrong_start
        if start >= len(server.body) and start:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(server.body)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if server.etag:
            self.send_header("ETag", server.etag)
        if server.last_modified:
            self.send_header("Last-Modified", server.last_modified)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.body) - 1}/{len(server.body)}")
        if server.send_length:
            self.send_header("Content-Length", str(len(server.body) - start))
        self.end_headers()
        end = start + server.cut_after.pop(0) if server.cut_after else len(server.body)
        self.wfile.write(server.body[start:end])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as it:
        it.cut_after, it.statuses, it.requests = [], [], []
        thread = threading.Thread(target=it.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield it
        it.shutdown()
        thread.join()


def fetch(server: Server, cache: Path, name: str = "corpus.txt", **options) -> Path:
    return download(address(server, name), cache, **({"backoff": 0.01, "attempts": 3, "timeout": 5} | options))


def address(server: Server, name: str = "corpus.txt") -> str:
    return f"http://127.0.0.1:{server.server_port}/some/{name}"


def leftovers(cache: Path) -> list[str]:
    return sorted(p.name for p in cache.rglob("*") if ".part" in p.name or ".tmp" in p.name)


def test_downloaded_once(server: Server, tmp_path: Path) -> None:
    seen = []
    path = fetch(server, tmp_path, sha256=SHA, size=len(BODY), on_progress=lambda *args: seen.append(args))
    assert path.read_bytes() == BODY
    assert path.suffix == ".txt"
    assert seen[-1] == ("download", len(BODY), len(BODY))
    assert fetch(server, tmp_path) == path
    assert server.requests == [None]
    assert leftovers(tmp_path) == []
    server.shutdown()  # with the file in the cache no server is needed
    assert fetch(server, tmp_path, sha256=SHA.upper()) == path


def test_addresses_do_not_share_files(server: Server, tmp_path: Path) -> None:
    first = fetch(server, tmp_path)
    server.body = b"other"
    assert fetch(server, tmp_path, "corpus.txt?v=2").read_bytes() == b"other"
    assert fetch(server, tmp_path, "ñandú corpus.txt").read_bytes() == b"other"
    assert first.read_bytes() == BODY


@pytest.mark.parametrize("validator", ["etag", "last_modified"])
def test_cut_connections_are_continued(server: Server, tmp_path: Path, validator: str) -> None:
    server.etag = '"one"' if validator == "etag" else None
    server.last_modified = None if validator == "etag" else "Wed, 21 Oct 2015 07:28:00 GMT"
    server.cut_after = [100_000, 50_000, 1, 0, 0]
    assert fetch(server, tmp_path).read_bytes() == BODY
    assert server.requests == [None, "bytes=100000-", "bytes=150000-", *["bytes=150001-"] * 3]


def test_a_later_session_continues(server: Server, tmp_path: Path) -> None:
    server.cut_after = [200_000, 0, 0, 0]
    with pytest.raises(
        WorkError, match=r"could not be downloaded after 200,000 bytes .*broke off at 200,000 of 760,000"
    ):
        fetch(server, tmp_path)
    server.requests.clear()
    assert fetch(server, tmp_path, sha256=SHA).read_bytes() == BODY
    assert server.requests == ["bytes=200000-"]


@pytest.mark.parametrize(("etag", "ranges"), [('"one"', False), ('W/"one"', True), (None, True)])
def test_without_a_safe_way_to_continue_it_starts_again(
    server: Server, tmp_path: Path, etag: str | None, ranges: bool
) -> None:
    server.etag, server.ranges = etag, ranges
    server.cut_after = [300_000, 1000]
    assert fetch(server, tmp_path).read_bytes() == BODY
    assert len(server.requests) == 3
    if not (etag and ranges and not etag.startswith("W/")) and etag != '"one"':
        assert server.requests == [None] * 3


def test_a_file_that_changes_midway_is_not_mixed(server: Server, tmp_path: Path) -> None:
    new = bytes(reversed(BODY))

    def change(it: Server) -> None:
        if len(it.requests) == 2:
            it.body, it.etag = new, '"two"'

    server.on_request = change
    server.cut_after = [300_000]
    assert fetch(server, tmp_path).read_bytes() == new


def test_a_server_that_ignores_if_range_is_noticed(server: Server, tmp_path: Path) -> None:
    new = bytes(reversed(BODY))

    def change(it: Server) -> None:
        if len(it.requests) == 2:
            it.body, it.etag = new, '"two"'

    server.on_request, server.ignore_if_range = change, True
    server.cut_after = [300_000]
    assert fetch(server, tmp_path).read_bytes() == new


def test_a_partial_answer_that_starts_elsewhere_is_refused(server: Server, tmp_path: Path) -> None:
    server.cut_after, server.wrong_start = [300_000], 5
    with pytest.raises(WorkError, match="another part of the file"):
        fetch(server, tmp_path)


def test_errors_that_pass(server: Server, tmp_path: Path) -> None:
    server.statuses = [500, 503]
    assert fetch(server, tmp_path).read_bytes() == BODY


def test_errors_that_stay(server: Server, tmp_path: Path) -> None:
    server.statuses = [404]
    with pytest.raises(RequestError, match=r"http://127.0.0.1:\d+/some/corpus.txt cannot .*answered 404 Not Found"):
        fetch(server, tmp_path)
    server.statuses = [503] * 9
    with pytest.raises(WorkError, match="answered 503 Service Unavailable"):
        fetch(server, tmp_path)
    assert len(server.requests) == 4  # one, and three attempts


def test_wrong_hash(server: Server, tmp_path: Path) -> None:
    with pytest.raises(WorkError, match=f"has sha256 {SHA}, not the expected {'0' * 64}; the download was deleted"):
        fetch(server, tmp_path, sha256="0" * 64)
    assert leftovers(tmp_path) == []
    assert fetch(server, tmp_path, sha256=SHA).read_bytes() == BODY


def test_a_part_that_was_damaged_on_the_disk_is_fetched_again(server: Server, tmp_path: Path) -> None:
    server.cut_after = [200_000, 0, 0, 0]
    with pytest.raises(WorkError):
        fetch(server, tmp_path)
    (part,) = tmp_path.rglob("*.part")
    part.write_bytes(b"?" + part.read_bytes()[1:])
    assert fetch(server, tmp_path, sha256=SHA).read_bytes() == BODY


def test_a_part_that_is_too_long_is_fetched_again(server: Server, tmp_path: Path) -> None:
    server.cut_after = [200_000, 0, 0, 0]
    with pytest.raises(WorkError):
        fetch(server, tmp_path)
    (part,) = tmp_path.rglob("*.part")
    part.write_bytes(BODY + b"more")
    assert fetch(server, tmp_path).read_bytes() == BODY


@pytest.mark.parametrize("send_length", [True, False])
def test_wrong_size(server: Server, tmp_path: Path, send_length: bool) -> None:
    server.send_length = send_length
    with pytest.raises(WorkError, match=r"760,000 bytes.*not the expected 759,999"):
        fetch(server, tmp_path, size=len(BODY) - 1)
    assert leftovers(tmp_path) == []


def test_a_short_body_without_a_length_is_noticed_by_the_size_given(server: Server, tmp_path: Path) -> None:
    server.send_length = False
    server.cut_after = [1000]
    assert fetch(server, tmp_path, size=len(BODY)).read_bytes() == BODY


def test_a_damaged_cache_is_mended(server: Server, tmp_path: Path) -> None:
    path = fetch(server, tmp_path)
    path.write_bytes(b"?" + BODY[1:])
    assert fetch(server, tmp_path).read_bytes() == BODY
    path.write_bytes(BODY[:-1])
    assert fetch(server, tmp_path).read_bytes() == BODY
    assert len(server.requests) == 3


def test_unreachable(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(
        WorkError, match=rf"^http://127.0.0.1:{port}/x could not be downloaded, tried 2 times: .*refused$"
    ):
        download(f"http://127.0.0.1:{port}/x", tmp_path, attempts=2, backoff=0.01)


def test_a_silent_server(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(WorkError, match="timed out"):
            download(f"http://127.0.0.1:{silent.getsockname()[1]}/x", tmp_path, attempts=1, backoff=0.01, timeout=0.1)


@pytest.mark.parametrize("url", ["ftp://example.org/x", "file:///etc/passwd", "http://", "http://[::1/x", "x.txt"])
def test_addresses_that_are_none(url: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError):
        download(url, tmp_path)


def test_two_threads_download_once(server: Server, tmp_path: Path) -> None:
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(fetch(server, tmp_path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and set(found) == {found[0]}
    assert len(server.requests) == 1


def test_full_disk(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(download_module, "_copy", full)
    with pytest.raises(WorkError, match="no space left"):
        fetch(server, tmp_path)


def test_a_url_is_a_source(server: Server, tmp_path: Path) -> None:
    server.body = b'{"body": "one"}\n{"body": "two"}\n'
    source = SourceConfig(url=address(server, "rows.jsonl?x=1"), field="body")
    assert list(read_documents(source, tmp_path)) == ["one", "two"]
    wrong = SourceConfig(url=address(server, "rows.jsonl"), field="body", sha256="0" * 64)
    with pytest.raises(WorkError, match="sha256"):
        list(read_documents(wrong, tmp_path))
