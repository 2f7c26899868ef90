"""Downloads, against a local server that behaves as badly as real ones do."""

import hashlib
import http.server
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from minigpt.cli import main
from minigpt.config import RequestError, SourceConfig, WorkError
from minigpt.data.reading.download import download
from minigpt.data.reading.sources import read_documents

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
    announced = 0  # added to the length that is announced
    hangs_up = True  # after the answer
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
            self.send_header("Content-Length", str(len(server.body) - start + server.announced))
        self.end_headers()
        end = start + server.cut_after.pop(0) if server.cut_after else len(server.body)
        self.wfile.write(server.body[start:end])
        if not server.hangs_up:
            self.wfile.flush()
            time.sleep(0.4)

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


def files(cache: Path) -> list[str]:
    """All that there is but locks."""
    return sorted(p.name for p in cache.rglob("*") if p.is_file() and "lock" not in p.name)


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


def test_a_body_longer_than_announced_is_not_cut_off(server: Server, tmp_path: Path) -> None:
    server.announced = -1000
    with pytest.raises(
        WorkError, match="sends more than the 759,000 bytes that it announced; the download was deleted"
    ):
        fetch(server, tmp_path)
    assert files(tmp_path) == []


def test_a_body_shorter_than_announced_leaves_nothing_that_nobody_can_continue(server: Server, tmp_path: Path) -> None:
    server.announced, server.ranges = 1000, False
    with pytest.raises(WorkError, match=r"corpus.txt could not be downloaded, tried 3 times: .* at 760,000 of 761,000"):
        fetch(server, tmp_path)
    assert files(tmp_path) == []


def test_a_file_that_grows_between_two_parts_is_not_mixed(server: Server, tmp_path: Path) -> None:
    new = b"a new beginning" + BODY

    def change(it: Server) -> None:
        if len(it.requests) == 2:
            it.body = new  # and the ETag stays, as on a careless server

    server.on_request = change
    server.cut_after = [300_000]
    assert fetch(server, tmp_path).read_bytes() == new


def test_a_server_that_does_not_hang_up_ends_with_the_announced_length(server: Server, tmp_path: Path) -> None:
    server.hangs_up = False
    assert fetch(server, tmp_path, timeout=0.1).read_bytes() == BODY
    assert server.requests == [None]


def test_a_stall_half_way(server: Server, tmp_path: Path) -> None:
    server.hangs_up, server.cut_after = False, [100_000, 0, 0, 0]
    with pytest.raises(WorkError, match=r"after 100,000 bytes \(kept, the next try continues there\).*timed out"):
        fetch(server, tmp_path, timeout=0.1)
    server.hangs_up = True
    assert fetch(server, tmp_path).read_bytes() == BODY
    assert server.requests[-1] == "bytes=100000-"


def test_full_disk(server: Server, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")  # POSIX: no file may grow longer than this
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, before[1]))
    try:
        with pytest.raises(WorkError, match=r"^could not write \S+data-corpus.txt: file too large$"):
            fetch(server, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert files(tmp_path) == []
    assert fetch(server, tmp_path).read_bytes() == BODY


STATUS = [
    ({"statuses": [404]}, 2, "answered 404 Not Found"),
    ({"statuses": [503] * 9}, 1, "tried 5 times: the server answered 503"),
    ({"announced": -1000}, 1, "sends more than"),
    ({"announced": 1000, "ranges": False}, 1, "the connection broke off at 760,000 of 761,000 bytes"),
    ({"hangs_up": False, "cut_after": [0] * 9}, 1, "timed out"),
]


@pytest.mark.parametrize(("behaviour", "status", "said"), STATUS)
def test_a_command_says_it_in_one_line_and_leaves_nothing(
    behaviour: dict, status: int, said: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path))
    monkeypatch.setitem(download.__kwdefaults__, "timeout", 0.05)
    monkeypatch.setitem(download.__kwdefaults__, "backoff", 0.01)
    for name, value in behaviour.items():
        setattr(server, name, value)
    assert main(["data", "prepare", "demo", f"data.train={address(server)}"]) == status
    printed = capfd.readouterr().err
    assert printed.count("\n") == 1 and said in printed, printed
    assert files(tmp_path) == []


def test_a_url_is_a_source(server: Server, tmp_path: Path) -> None:
    server.body = b'{"body": "one"}\n{"body": "two"}\n'
    source = SourceConfig(url=address(server, "rows.jsonl?x=1"), field="body")
    assert list(read_documents(source, tmp_path)) == ["one", "two"]
    wrong = SourceConfig(url=address(server, "rows.jsonl"), field="body", sha256="0" * 64)
    with pytest.raises(WorkError, match="sha256"):
        list(read_documents(wrong, tmp_path))
