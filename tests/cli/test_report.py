"""`minigpt report`: what it prints, where it writes, and how it refuses."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import minigpt


def make_run(folder: Path, loss: float = 2.0) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("resolved_from: demo\nrun: {seed: 1}\n")
    lines = [{"step": s, "tokens": 10 * s, "time": s, "train/loss": loss, "val/loss": loss} for s in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_one_run(run: Callable, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "one")
    found = run("report", folder)
    assert (found.status, found.out, found.err) == (0, f"{folder}/report.html\n", "")
    assert "<h1" in (folder / "report.html").read_text()


def test_several_runs_and_a_place(run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "one"), make_run(tmp_path / "two", 3.0)
    assert run("report", "one", "two").out == "report.html\n"
    assert run("report", "--out", "other.html", "one", "two").out == "other.html\n"
    page = (tmp_path / "other.html").read_text()
    assert "2 runs" in page and page.count('type="checkbox"') == 2
    assert not (tmp_path / "one" / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "missing argument"),
        (("nothing",), "run nothing does not exist"),
        (("empty",), "empty is not a run folder"),
        (("one/metrics.jsonl",), "is a file"),
        (("one", "empty"), "empty is not a run folder"),
        (("one", "--out", "missing/x.html"), "there is no folder missing"),
        (("one", "--out", "empty"), "--out empty is a folder"),
        (("one", "--out", "one/config.yaml"), "is not a report"),
        (("one", "--outt", "x"), "no such option"),
    ],
)
def test_wrong_requests(
    run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "one")
    (tmp_path / "empty").mkdir()
    found = run("report", *arguments)
    assert found.status == 2 and words in found.complaint


def test_a_disk_that_refuses(run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from minigpt.storage import fs

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(fs, "write_file", full)
    found = run("report", make_run(tmp_path / "one"))
    assert found.status == 1 and "no space left on device" in found.complaint


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from minigpt.cli import main
sys.exit(main(["report", sys.argv[1]]))
"""


def test_it_needs_no_torch(tmp_path: Path) -> None:
    source = Path(minigpt.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, make_run(tmp_path / "one")],
        capture_output=True, text=True, env={"PYTHONPATH": str(source), "PATH": "", "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
