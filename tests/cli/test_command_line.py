"""The frame of the command: help, usage errors, exit statuses, streams, signals, and what is not imported."""

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import minigpt
from minigpt.cli import main
from minigpt.config import RequestError, WorkError, fields, preset_names

SOURCE = Path(minigpt.__file__).parent.parent
NO_TORCH = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise AssertionError("torch is imported")
sys.meta_path.insert(0, Blocked())
from minigpt.cli import main
sys.exit(main(sys.argv[1:]))
"""
COMMANDS = [
    ["demo"],
    ["train"],
    ["generate"],
    ["eval"],
    ["perplexity"],
    ["tokenizer"],
    ["tokenizer", "train"],
    ["tokenizer", "encode"],
    ["tokenizer", "decode"],
    ["tokenizer", "info"],
    ["data"],
    ["data", "prepare"],
    ["data", "show"],
]


def environment(**more: str) -> dict[str, str]:
    """Buffered, as people run it: unbuffered, Python itself drops the rest of a write that a closed pipe cuts short."""
    return os.environ | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": ""} | more


def command(*arguments: object, **options) -> subprocess.CompletedProcess:
    line = [sys.executable, "-m", "minigpt", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, env=environment(), timeout=120, **options)


@pytest.mark.parametrize("name", [[], *COMMANDS], ids=" ".join)
def test_help(run, name: list[str]) -> None:
    found = run(*name, "--help")
    assert (found.status, found.err) == (0, "")
    assert found.out.startswith(f"Usage: {' '.join(['minigpt', *name])} ")
    assert max(map(len, found.out.splitlines())) <= 100
    assert run(*name, "-h").out == found.out


def test_help_fits_the_terminal(run, monkeypatch: pytest.MonkeyPatch) -> None:
    for columns in (80, 200):
        monkeypatch.setenv("COLUMNS", str(columns))
        lines = run("train", "--help").out.splitlines()
        assert max(map(len, lines)) <= min(columns, 100)


@pytest.mark.parametrize("name", [[], ["tokenizer"], ["data"]])
def test_a_family_by_itself_shows_its_help(run, name: list[str]) -> None:
    assert run(*name) == run(*name, "--help")


def test_train_help_lists_every_key_and_preset(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = " ".join(run("train", "--help").out.split())
    for key, (_, _, doc) in fields().items():
        assert f" {key}=" in text
        assert " ".join(doc.split()) in text.replace("- ", "-") or " ".join(doc.split()).replace("- ", "-") in text
    for name in preset_names():
        assert f" {name} " in text
    assert "optimizer.lr=0.0006" in text and "model.n_kv_head=null" in text and "[rmsnorm|layernorm]" in text


def test_version(run) -> None:
    assert run("--version").out.startswith("minigpt ")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (["trian"], "no such command 'trian' (did you mean 'train'?); see minigpt --help"),
        (["train"], "missing argument 'CONFIG'; see minigpt train --help"),
        (["generate"], "missing argument 'MODEL'; see minigpt generate --help"),
        (["--verion"], "no such option: --verion (did you mean --version?); see minigpt --help"),
        (["eval", "x", "--task", "chess"], "--task=chess is not possible: it should be loss or perplexity"),
        (["eval", "x", "--limit", "0"], "--limit=0 is not possible: it should be greater than or equal to 1"),
        (["tokenizer", "decode", "-t", "x", "1", "b"], "ID=b is not possible: it should be a valid integer"),
        (["tokenizer", "encode", "text"], "missing option '--tokenizer'"),
        (["train", "x", "--model.n_layer=4"], "config keys are written without dashes, as model.n_layer=VALUE"),
        (["train", "shakespeare-char", "--json"], "--json needs --dry-run"),
        (["train", "shakespeare-char", "--resume=nowhere"], "--resume nowhere is neither auto nor never"),
        (["train", "shakespear-char"], "did you mean shakespeare-char?"),
        (["train", "shakespeare-char", "model.n_layers=4"], "model.n_layer"),
        (["train", "shakespeare-char", "model.n_layer=four"], "model.n_layer=four"),
        (["train", "shakespeare-char", "n_layer"], "not of the form section.key=value"),
        (["data", "show", "nowhere.yaml"], "nowhere.yaml"),
        (["data", "prepare", "shakespeare-char", "data.trian=x"], "data.train"),
        (["eval", "nowhere", "--data=x"], "nowhere does not exist"),
        (["perplexity", "nowhere", "x"], "nowhere does not exist"),
        (["generate", "nowhere"], "nowhere does not exist"),
        (["generate", "a\0b"], ""),
        (["eval", "x", "--data=y", "--split=val"], "only one of --data and --split"),
        (["eval", "x", "--task=loss", "--per-token"], "--per-token can have no effect with --task loss"),
    ],
)
def test_wrong_requests(run, line: list[str], sentence: str) -> None:
    found = run(*line)
    assert found.status == 2
    assert sentence in found.complaint


def test_help_and_wrong_requests_need_no_torch(tmp_path: Path) -> None:
    """One process for many lines: the blocker raises if any of them imports torch."""
    lines = [
        ["train", "--help"],
        ["train", "shakespeare-char", "model.n_layers=4"],
        ["generate", "nowhere", "--prompt=a"],
        ["eval", str(tmp_path), "--data=x"],
        ["tokenizer", "encode", "-t", "nowhere", "a"],
        ["data", "show", "shakespeare-char", "data.trian=nowhere.txt"],
    ]
    script = NO_TORCH.replace("sys.exit(main(sys.argv[1:]))", f"print([main(line) for line in {lines!r}])")
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, env=environment(), timeout=60, text=True
    )
    assert found.stdout.endswith("[0, 2, 2, 2, 2, 2]\n"), found.stderr
    assert "torch" not in found.stderr and found.stderr.count("\n") == 5


class TestErrors:
    """What the frame makes of an exception in a command."""

    @pytest.mark.parametrize(
        ("error", "status", "line"),
        [
            (RequestError("a wrong\n thing"), 2, "minigpt: a wrong thing\n"),
            (WorkError("it failed"), 1, "minigpt: it failed\n"),
            (OSError(28, "No space left on device", "/x/y"), 1, "minigpt: /x/y: No space left on device\n"),
            (MemoryError(), 1, "minigpt: out of memory (of this machine): use a smaller batch, context or model\n"),
            (
                RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"),
                1,
                "minigpt: out of memory (of this machine): use a smaller batch, context or model\n",
            ),
            (WorkError("no tensor \x1b[31mevil\x07 é"), 1, "minigpt: no tensor \\x1b[31mevil\\x07 é\n"),
            (TypeError("odd"), 1, "minigpt: internal error: TypeError: odd (set MINIGPT_DEBUG=1 to see where)\n"),
            (BrokenPipeError(32, "Broken pipe"), 1, ""),
            (KeyboardInterrupt(), 130, ""),
        ],
    )
    @pytest.mark.parametrize("debug", [False, True])
    def test_line_and_status(self, run, monkeypatch, error: BaseException, status: int, line: str, debug: bool) -> None:
        def fail(*args: object) -> None:
            raise error

        monkeypatch.setattr("minigpt.cli.tokenizer.read_text", fail)
        monkeypatch.setenv("MINIGPT_DEBUG", "1" if debug else "")
        found = run("tokenizer", "encode", "-t", "x", "--file", "x")
        assert (found.status, found.out) == (status, "")
        assert found.err.endswith(line)
        with_traceback = debug and status != 130 and not isinstance(error, BrokenPipeError)
        assert ("Traceback" in found.err) == with_traceback
        assert with_traceback or found.err == line

    def test_sigterm(self, run, monkeypatch: pytest.MonkeyPatch) -> None:
        before = signal.getsignal(signal.SIGTERM)
        monkeypatch.setattr("minigpt.cli.tokenizer.read_text", lambda *args: os.kill(os.getpid(), signal.SIGTERM))
        found = run("tokenizer", "encode", "-t", "x", "--file", "x")
        assert (found.status, found.out, found.err) == (143, "", "")
        assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_a_stream_quietly_and_keep_its_text(model_folder: Path, number: int, status: int) -> None:
    options = ["--prompt=a", "--max-new-tokens=1000000", "--seed=1", "--threads=1"]  # minutes, if nothing stops it
    line = [sys.executable, "-m", "minigpt", "generate", str(model_folder), *options]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()) as process:
        assert process.stdout is not None
        begin = process.stdout.read(20)  # each piece of text arrives when it is made
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (status, b"")
    assert len(begin) == 20 and (begin + out).decode().endswith("\n")


@pytest.mark.slow
def test_reader_that_goes_away(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "ids").write_text("3 " * 1_000_000)  # more text than fits in a pipe
    line = [sys.executable, "-m", "minigpt", "tokenizer", "decode", f"-t{model_folder}", f"--file={tmp_path / 'ids'}"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(5)
        process.stdout.close()
        assert process.wait(timeout=30) == 1
        assert process.stderr.read() == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device of Linux")
def test_output_that_cannot_be_written() -> None:
    with open("/dev/full", "wb") as full:
        line = [sys.executable, "-m", "minigpt", "train", "--help"]
        found = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, env=environment(), timeout=60)
    assert found.returncode == 1
    assert found.stderr == b"minigpt: No space left on device\n"


@pytest.mark.slow
def test_utf8_whatever_the_locale(model_folder: Path) -> None:
    line = [sys.executable, "-m", "minigpt", "tokenizer", "decode", "-t", str(model_folder), "30", "31"]
    for encoding in ("latin-1", "ascii"):
        found = subprocess.run(line, capture_output=True, env=environment(PYTHONIOENCODING=encoding), timeout=60)
        assert (found.stdout.decode("utf-8"), found.stderr) == ("€🙂\n", b"")


@pytest.mark.slow
def test_terminal_of_another_encoding_gets_a_question_mark(model_folder: Path) -> None:
    line = [sys.executable, "-m", "minigpt", "tokenizer", "decode", "-t", str(model_folder), "29", "30"]
    leader, follower = pty.openpty()
    with (
        os.fdopen(leader, "rb"),
        subprocess.Popen(line, stdout=follower, env=environment(PYTHONIOENCODING="latin-1")) as p,
    ):
        assert p.wait(timeout=60) == 0
        os.close(follower)
        assert os.read(leader, 100) == "ä?\r\n".encode("latin-1")


@pytest.mark.slow
def test_arguments_that_are_not_utf8(model_folder: Path) -> None:
    found = command("tokenizer", "encode", "-t", model_folder, os.fsdecode(b"a\xff"))
    assert found.returncode == 2 and found.stderr.count(b"\n") == 1 and b"Traceback" not in found.stderr
    found = command("generate", os.fsdecode(b"/nowhere/\xff"))
    assert found.returncode == 2 and found.stderr.count(b"\n") == 1 and b"Traceback" not in found.stderr


@pytest.mark.slow
def test_startup_is_fast() -> None:
    """No bound in seconds holds on every machine: help may take a few times what importing its libraries takes."""

    def seconds(*line: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, *line], check=True, capture_output=True, env=environment(), timeout=60)
        return time.perf_counter() - start

    base = min(seconds("-c", "import pydantic, typer, yaml") for _ in range(2))
    assert min(seconds("-m", "minigpt", "generate", "--help") for _ in range(2)) < 5 * base


def test_main_reports_in_other_threads(capfd: pytest.CaptureFixture[str]) -> None:
    """Signals belong to the main thread; a notebook or a server may call from another."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor() as pool:
        assert pool.submit(main, ["generate", "nowhere"]).result() == 2
    assert capfd.readouterr().err == "minigpt: model nowhere does not exist\n"
