"""Models by their names on a hub of our own: as much of its protocol as that takes."""

import hashlib
import http.server
import json
import re
import socket
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("huggingface_hub")

from huggingface_hub import constants

from minigpt.cli import main
from minigpt.config import RequestError, WorkError
from minigpt.interop import read_model
from minigpt.interop.huggingface.hub import hub_folder, is_name

COMMIT = "c0ffee0000000000000000000000000000000000"


class Hub(http.server.ThreadingHTTPServer):
    """`models`: the files of each by name; `asked`: every path that was asked for, and with which token."""

    models: dict[str, dict[str, bytes]]
    asked: list[tuple[str, str | None]]


class Handler(http.server.BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = urllib.parse.unquote(self.path).partition("?")[0]
        self.server.asked.append((path, self.headers.get("Authorization")))
        about = re.fullmatch(r"/api/models/(.+?)(/revision/.+|/tree/.+)?", path)
        file = re.fullmatch(r"/(.+)/resolve/([^/]+)/(.+)", path)
        name = (about or file)[1] if about or file else ""
        if name not in self.server.models:
            self.answer(401, b"{}", X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
        elif name == "owner/gated":
            self.answer(403, b"{}", X_Error_Code="GatedRepo", X_Error_Message="no")
        elif about:
            if (about[2] or "").endswith("/other"):
                self.answer(404, b"{}", X_Error_Code="RevisionNotFound", X_Error_Message="no such revision")
            elif (about[2] or "").startswith("/tree/"):
                self.answer(200, json.dumps([self.entry(name, n) for n in self.server.models[name]]).encode())
            else:
                files = [{"rfilename": n} for n in self.server.models[name]]
                self.answer(200, json.dumps({"id": name, "sha": COMMIT, "siblings": files}).encode())
        elif file[3] not in self.server.models[name]:
            self.answer(404, b"{}", X_Error_Code="EntryNotFound", X_Error_Message="no such file")
        else:
            body = self.server.models[name][file[3]]
            self.answer(200, body, ETag=f'"{hashlib.sha1(body).hexdigest()}"')

    do_HEAD = do_GET

    def entry(self, name: str, file: str) -> dict[str, Any]:
        body = self.server.models[name][file]
        return {"type": "file", "oid": hashlib.sha1(body).hexdigest(), "size": len(body), "path": file}

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "X-Repo-Commit": COMMIT, **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Nothing."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_gpt2: Path) -> Iterator[Hub]:
    files = {path.name: path.read_bytes() for path in tiny_gpt2.iterdir()}
    server = Hub(("127.0.0.1", 0), Handler)
    more = {"README.md": b"words", "pytorch_model.bin": b"not needed", "onnx/model.onnx": b"neither"}
    server.models = {
        "tiny": files | more,
        "owner/gated": files,
        "owner/words": {"README.md": b"", "tokenizer.json": b""},
        "owner/onnx": {"config.json": files["config.json"], "model.onnx": b""},
    }
    server.asked = []
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("MINIGPT_MIRROR", raising=False)
    yield server
    server.shutdown()
    server.server_close()


def test_a_name_becomes_a_model(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    assert main(["import", "tiny", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "model.safetensors").is_file() and (tmp_path / "out" / "tokenizer.json").is_file()
    wanted = {path.rpartition("/")[2] for path, _ in hub.asked if "/resolve/" in path}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= wanted
    assert not wanted & {"README.md", "pytorch_model.bin", "model.onnx"}, "only what is needed"
    assert capfd.readouterr().err.count("\n") == 1  # model: OUT

    # what is in the cache is found without the hub, and without its being asked
    hub.asked.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert read_model("hub:tiny@main").config.n_layer > 0
    assert hub.asked == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("absent", r"^absent is neither a folder here nor a model on the hub"),
        ("owner/absent", r"^owner/absent is neither"),
        ("owner/gated", r"^owner/gated may only be read by those who were let in.*HF_TOKEN"),
        ("owner/words", r"it has no config\.json"),
        ("owner/onnx", r"it has no model\.safetensors and no pytorch_model\.bin"),
        ("tiny@other", r"^tiny@other: the model is on the hub, but not this revision"),
    ],
)
def test_what_the_hub_has_not_is_one_sentence(hub: Hub, name: str, said: str) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        hub_folder(name)
    assert "\n" not in str(caught.value)


def test_a_mirror_gets_no_token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    address = constants.ENDPOINT
    monkeypatch.setattr(constants, "ENDPOINT", "https://huggingface.co")
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    monkeypatch.setenv("MINIGPT_MIRROR", address)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with pytest.raises(RequestError, match="neither a folder here nor a model"):
        hub_folder("tiny")  # which is not under /huggingface.co there
    assert hub.asked and all(
        path.startswith(("/api", "/huggingface.co")) and token is None for path, token in hub.asked
    )


def test_an_unreachable_hub_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("MINIGPT_MIRROR", raising=False)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        assert main(["import", "gpt2", str(tmp_path / "out")]) == 1
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and f"gpt2 is no folder here, and could not be had from {address}" in said
    assert "refused" in said and "set HF_ENDPOINT" in said
    assert not (tmp_path / "out").exists() and not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_offline_the_hub_is_not_asked(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RequestError, match=r"nor in the hub's cache .*HF_HUB_OFFLINE says not to ask"):
        hub_folder("tiny")
    assert hub.asked == []


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(RequestError, match=r'pip install "minigpt\[hub\]"'):
        hub_folder("gpt2")


def test_an_unwritable_cache(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    with pytest.raises((WorkError, RequestError)) as caught:
        hub_folder("tiny")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("gpt2", True), ("owner/name", True), ("owner/name@v1", True), ("hub:gpt2", True), ("a/b/c", False),
     ("../gpt2", False), ("/gpt2", False), ("owner/..", False), ("a b", False), ("", False)],
)  # fmt: skip
def test_names_and_paths(text: str, expected: bool) -> None:
    assert is_name(text) is expected
