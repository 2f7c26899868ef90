"""The arrows between the packages, what may be imported without PyTorch, and what no source may do at all."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import minigpt

SOURCE = Path(minigpt.__file__).parent
LEVELS = [
    {"config"},
    {"model", "tokenizer"},
    {"storage"},
    {"interop", "optim"},
    {"data", "inference", "parallel"},
    {"objectives", "evaluation"},
    {"training"},
    {"reporting", "serving"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
FILES = sorted(SOURCE.rglob("*.py"))


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            yield node.lineno, node.module or ""
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def package_of(path: Path) -> str:
    parts = path.relative_to(SOURCE).parts
    return parts[0] if len(parts) > 1 else ""


def allowed(importer: str, imported: str) -> bool:
    if imported == importer:
        return True
    if importer == "":  # minigpt/__init__.py, api.py and __main__.py: the outside
        return imported in LEVEL
    if importer == "model":
        return imported == "config"
    return LEVEL[imported] < LEVEL[importer]


def test_every_package_has_its_place():
    found = {package_of(path) for path in FILES} - {"", "presets"}
    assert found <= set(LEVEL)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_one_way(path):
    importer = package_of(path)
    for line, name in imports(ast.parse(path.read_text("utf-8"))):
        parts = name.split(".")
        if parts[0] != "minigpt" or len(parts) < 2:
            continue
        if parts[1] in LEVEL:
            assert allowed(importer, parts[1]), f"{path}:{line}: {importer or 'minigpt'} may not import {name}"
        if parts[1] == "cli":
            assert importer == "cli" or path.name == "__main__.py", f"{path}:{line}: nothing imports cli"


PICKLE_READER = SOURCE / "interop" / "sources.py"
"""The one file that may read PyTorch's files of others, and only by its restricted reader."""


def restricted_readers(tree: ast.AST) -> set[ast.AST]:
    """The `torch.load` of every call that says `weights_only=True`."""
    return {
        node.func
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "weights_only" and isinstance(keyword.value, ast.Constant) and keyword.value.value is True
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_nothing_is_pickled_or_evaluated(path):
    tree = ast.parse(path.read_text("utf-8"))
    restricted = restricted_readers(tree) if path == PICKLE_READER else set()
    for line, name in imports(tree):
        forbidden = name.split(".")[0] in ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve")
        assert not forbidden and name not in ("torch.load", "torch.save"), f"{path}:{line} imports {name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            assert node.id not in ("eval", "exec", "__import__"), f"{path}:{node.lineno} uses {node.id}"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = f"{node.value.id}.{node.attr}"
            if node in restricted:
                continue
            assert name not in ("torch.load", "torch.save", "builtins.eval", "builtins.exec"), f"{path}:{node.lineno}"
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            value = node.value.value if isinstance(node.value, ast.Constant) else None
            assert value is False, f"{path}:{node.value.lineno} allows pickle"


def test_files_are_read_in_one_sitting():
    long = {str(path): count for path in FILES if (count := len(path.read_text("utf-8").splitlines())) > 400}
    assert not long


WITHOUT_TORCH = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise AssertionError("imports torch")

sys.meta_path.insert(0, Refuse())
import minigpt, minigpt.config, minigpt.cli, minigpt.cli.app, minigpt.data, minigpt.tokenizer, minigpt.storage
import minigpt.data.demo
from minigpt.cli import main

dir(minigpt), minigpt.Config, minigpt.load_config, minigpt.load_tokenizer
for command in ("", "demo", "train", "generate", "eval", "perplexity", "tokenizer train", "data show", "report",
                "import", "export", "merge", "plan", "tune batch-size", "tune lr"):
    assert main([*command.split(), "--help"]) == 0, command
for wrong in (["trian"], ["train"], ["train", "nothing.yaml"], ["train", "shakespeare-char", "model.n_layers=3"],
              ["train", "shakespeare-char", "--no-such-option"], ["generate"]):
    assert main(wrong) == 2, wrong
assert "torch" not in sys.modules
"""


def test_help_and_wrong_arguments_need_no_torch(tmp_path):
    environment = {"PYTHONPATH": str(SOURCE.parent), "PATH": "", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Traceback" not in done.stderr


def test_the_public_names_are_there():
    for name in minigpt.__all__:
        assert getattr(minigpt, name) is not None
    with pytest.raises(AttributeError):
        _ = minigpt.nothing_of_this_name
