"""Everything in docs/*.md is done: each shell command and each Python block, and what is said of keys and names is so.

A comment before a block says what a test does with it, where that is not simply to run it:

    <!-- test: with model.n_layer=1 ... -->   add these overrides to `minigpt train`, so that it takes a second
    <!-- test: fails 2 -->                    the block ends with this exit status (Python: 1 for an exception)
    <!-- test: printed -->                    this text block is what the block before printed; ... stands for anything
    <!-- test: file NAME -->                  this block is the file NAME, which a later block uses
    <!-- test: skip WHY -->                   not run (a download, an account, a server that does not end)
    <!-- test: needs PACKAGE -->              the page is skipped where this optional package is not installed

Several are separated by semicolons. The blocks of a page run one after the other in one folder, in which there is a
small text `my.txt`; the Python blocks share their names. YAML that is no file is checked as a config.
"""

import json
import math
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import minigpt
from minigpt.cli import main
from minigpt.config import fields, is_preset, load_config, preset_names
from minigpt.config.yaml import parse_yaml
from minigpt.data.demo import stories

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
SERVER = Path(__file__).with_name("docs_server.py")
PAGES = sorted(path for path in DOCS.glob("*.md") if path.name != "LOG.md")
FENCE = re.compile(
    r"(?:^<!-- test: (?P<comment>[^\n]*?) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
COMMENTS = ("with", "fails", "printed", "file", "skip", "needs")


@dataclass
class Block:
    """A fenced block, its line in the page, and what its comment says."""

    page: str
    line: int
    language: str
    text: str
    comments: dict[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str | None:
        """file, sh, python, or None for one that is not run."""
        if "skip" in self.comments:
            return None
        return "file" if "file" in self.comments else self.language if self.language in ("sh", "python") else None

    @property
    def where(self) -> str:
        return f"docs/{self.page}:{self.line}"


def blocks(path: Path) -> list[Block]:
    text = path.read_text("utf-8")
    found = []
    assert text.count("<!-- test:") == sum(match["comment"] is not None for match in FENCE.finditer(text)), path
    for match in FENCE.finditer(text):
        comments = {}
        for item in (match["comment"] or "").split(";") if match["comment"] else []:
            name, _, value = item.strip().partition(" ")
            assert name in COMMENTS, f"docs/{path.name}: {item!r} is no comment for a test"
            comments[name] = value
        line = text.count("\n", 0, match.start("language")) + 1
        found.append(Block(path.name, line, match["language"], match["text"], comments))
    return found


ALL = [block for path in PAGES for block in blocks(path)]
OF_PAGE = {path.name: blocks(path) for path in PAGES}

# ---- running the blocks ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """(the server's socket, a folder for PATH whose `minigpt` asks it)."""
    if not hasattr(os, "fork"):
        pytest.skip("the pages' commands are POSIX shell")
    folder = tmp_path_factory.mktemp("docs")
    address, shim = folder / "socket", folder / "bin" / "minigpt"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" -SE "{SERVER}" "{address}" "$@"\n')
    shim.chmod(0o755)
    source = str(Path(minigpt.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": source, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    process = subprocess.Popen(
        [sys.executable, str(SERVER), str(address)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=environment, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    yield address, shim.parent
    assert process.stdin is not None
    process.stdin.close()
    process.wait(30)


@pytest.fixture
def run_page(server: tuple[Path, Path], tmp_path: Path) -> Callable[[list[Block]], None]:
    """Runs blocks in a new folder and checks each one's status and what it printed."""

    def run(page: list[Block]) -> None:
        address, commands = server
        folder = tmp_path / "work"
        folder.mkdir()
        (folder / "my.txt").write_text("\n".join(stories(seed=3, count=400)) + "\n", encoding="utf-8")
        shutil.copytree(ROOT / "examples", folder / "examples")
        todo = [block for block in page if block.kind]
        for missing in {block.comments["needs"] for block in todo if "needs" in block.comments}:
            pytest.importorskip(missing)
        script = tmp_path / "page.json"
        script.write_text(json.dumps([as_plain(block) for block in todo]))
        environment = os.environ | {
            "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
            "MINIGPT_CACHE": str(tmp_path / "cache"),
            "HOME": str(tmp_path / "home"),
            "COLUMNS": "100",
            "NO_COLOR": "1",
        }
        done = subprocess.run(
            [sys.executable, "-SE", str(SERVER), str(address), "--page", str(script)],
            capture_output=True, text=True, cwd=folder, env=environment,
        )  # fmt: skip
        results = [json.loads(line) for line in done.stdout.splitlines()]
        assert results, done.stderr
        for block, result in zip(todo, results, strict=False):
            expected = int(block.comments.get("fails", 0))
            assert result["status"] == expected, f"{block.where}\n{block.text}\n{result['output']}"
            assert "Traceback" not in result["output"] or block.language == "python", f"{block.where}{result['output']}"
        assert len(results) == len(todo), f"{todo[len(results)].where} did not run: {done.stderr}"
        check_printed(page, todo, [result["output"] for result in results])

    return run


def as_plain(block: Block) -> dict[str, Any]:
    return {
        "kind": block.kind,
        "text": block.text,
        "name": block.comments.get("file"),
        "added": block.comments.get("with", ""),
        "status": int(block.comments.get("fails", 0)),
    }


def check_printed(page: list[Block], done: list[Block], outputs: list[str]) -> None:
    """Each text block marked `printed` is in what the last block before it printed."""
    last = ""
    for block in page:
        if block.kind in ("sh", "python"):
            last = outputs[done.index(block)]
        if "printed" in block.comments:
            for line in block.text.splitlines():
                pattern = ".*".join(re.escape(part) for part in line.split("..."))
                assert re.search(f"^{pattern}$", last, re.MULTILINE), f"{block.where}: {line!r} is not in\n{last}"


@pytest.mark.slow
@pytest.mark.parametrize("name", [path.name for path in PAGES])
def test_the_blocks_of_a_page_run(name: str, run_page: Callable[[list[Block]], None]) -> None:
    if any(block.kind in ("sh", "python") for block in OF_PAGE[name]):
        run_page(OF_PAGE[name])


# ---- what is not run -------------------------------------------------------------------------------------------------


def test_what_is_skipped_says_why_and_is_a_command_all_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    for block in ALL:
        if "skip" not in block.comments:
            continue
        assert len(block.comments["skip"].split()) >= 2, f"{block.where}: say why"
        for command in re.findall(r"^minigpt ([a-z]+)", block.text, re.MULTILINE):
            assert main([command, "--help"]) == 0, f"{block.where}: no command {command}"
        for extra in re.findall(r"minigpt\[(\w+)\]", block.text):
            assert re.search(rf"^{extra} = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE), extra
    capsys.readouterr()


@pytest.mark.parametrize(
    "block", [b for b in ALL if b.language == "yaml" and "file" not in b.comments], ids=lambda b: f"{b.page}:{b.line}"
)
def test_yaml_is_a_valid_config(block: Block) -> None:
    load_config(parse_yaml(block.text, block.where))


def test_every_block_has_a_known_language() -> None:
    assert {block.language for block in ALL} <= {"sh", "python", "yaml", "json", "text"}


# ---- what the prose says ---------------------------------------------------------------------------------------------


def prose(path: Path) -> str:
    return FENCE.sub("", path.read_text("utf-8"))


def quoted(path: Path) -> list[str]:
    """What stands between backticks."""
    return re.findall(r"`([^`\n]+)`", prose(path))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_key_is_one_of_the_configs(path: Path) -> None:
    known = set(fields())
    sections = {key.partition(".")[0] for key in known}
    prefixes = {".".join(key.split(".")[:depth]) for key in known for depth in range(1, key.count(".") + 1)}
    for text in quoted(path):
        key = text.partition("=")[0].strip()
        if re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", key) and key.partition(".")[0] in sections:
            file = key.endswith((".py", ".jsonl", ".json", ".md", ".gguf", ".bin"))
            assert file or key in known | prefixes, f"{path.name}: {text}"


@cache
def torchrun_help() -> str:
    from torch.distributed.run import get_args_parser

    return get_args_parser().format_help()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_option_variable_and_preset_is_there(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = ["train", "generate", "eval", "perplexity", "report", "demo", "tokenizer train", "tokenizer encode",
                "tokenizer decode", "tokenizer info", "data prepare", "data show", "import", "export",
                "merge", "plan", "tune batch-size", "tune lr"]  # fmt: skip
    for command in commands:
        assert main([*command.split(), "--help"]) == 0
    help_text = capsys.readouterr().out
    source = "\n".join(file.read_text("utf-8") for file in Path(minigpt.__file__).parent.rglob("*.py"))
    for text in quoted(path):
        for option in re.findall(r"(?:^|\s)(--[a-z][a-z-]+)", text):
            known = torchrun_help() if text.startswith("torchrun") else help_text
            assert option in known or option == "--logdir", f"{path.name}: {text}"
        for variable in re.findall(r"MINIGPT_[A-Z_]+", text):
            assert variable in source, f"{path.name}: {variable}"
        if re.fullmatch(r"minigpt train (?!--)[a-z0-9-]+( .*)?", text):
            assert is_preset(text.split()[2]), f"{path.name}: {text}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_link_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        found = (path.parent / file).resolve() if file else path
        assert found.exists(), f"{path.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", found.read_text("utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{path.name}: {target}"


def test_the_numbers_in_the_prose() -> None:
    demo = load_config("demo")[0]
    words = {path.name: re.sub(r"\s+", " ", prose(path)) for path in PAGES}
    assert f"preset's {demo.training.max_steps:,} steps" in words["your-text.md"]
    assert not demo.checkpoint.best, "your-text.md says so"
    assert f"{math.log(65):.1f} for 65 characters, {math.log(50257):.1f} for GPT-2's" in words["metrics.md"]
    presets = prose(DOCS / "config.md").split("## Presets")[1].split("\n## ")[0]
    assert set(re.findall(r"`([a-z0-9-]+)`", presets.split("|", 1)[1])) == set(preset_names())


def test_the_index_names_every_page() -> None:
    index = (DOCS / "README.md").read_text("utf-8")
    for path in DOCS.glob("*.md"):
        assert path.name == "README.md" or f"({path.name})" in index, path.name


def test_the_tables_of_keys_are_those_of_the_code() -> None:
    page = DOCS / "config.md"
    text = page.read_text("utf-8")
    assert runpy.run_path(str(DOCS / "keys.py"))["updated"](text) == text, "run: python docs/keys.py"
    tables = set(re.findall(r"^<!-- keys: (\w+) -->$", text, re.MULTILINE))
    assert tables == {key.partition(".")[0] for key in fields()} | {"source"}


@pytest.mark.slow
def test_the_table_of_metrics_is_what_a_run_logs(server: tuple[Path, Path], tmp_path: Path) -> None:
    """Each logged key is in the table of docs/metrics.md; all in the table are logged, but for the seldom ones."""
    section = (DOCS / "metrics.md").read_text("utf-8").split("## What the numbers mean")[1].split("\n## ")[0]
    table = dict(re.findall(r"^\| `([^`]+)` \| (.+) \|$", section, re.MULTILINE))
    words = [
        "train",
        str(ROOT / "examples" / "source.yaml"),
        "--run-dir",
        "run",
        "training.max_steps=4",
        "model.n_embd=16",
    ]
    words += ["loggers.every_steps=1", "callbacks.monitor.every_steps=2"]
    run = subprocess.run(
        [sys.executable, "-SE", str(SERVER), str(server[0]), *words],
        cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"MINIGPT_CACHE": str(tmp_path / "cache")},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    logged = {re.sub(r"^(monitor/weight_norm/).*", r"\1PART", key) for line in lines for key in line}
    assert logged <= set(table)
    assert {key for key, meaning in table.items() if "Only" not in meaning} <= logged


def test_python_in_the_docs_draws_on_public_names() -> None:
    for block in ALL:
        if block.language == "python":
            for name in re.findall(r"\bminigpt\.(\w+)\(", block.text):
                assert name in minigpt.__all__, f"{block.where}: minigpt.{name}"
