"""The notebook runs from top to bottom, anywhere; and as it is stored it can be read."""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

import minigpt

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("matplotlib")

PATH = Path(__file__).resolve().parent.parent / "examples" / "overview.ipynb"
SECONDS = 300  # for one cell, on a machine that is busy with other things

# Run after the notebook's own cells: what they found, beside what the rest of the package says of the same things.
PROBE = """
from minigpt.evaluation import sequence_losses

one_by_one = sequence_losses(model, val_ids[: rows * T + 1].tolist())
print("PROBE" + json.dumps({
    "folder": os.getcwd(),
    "layers_and_heads": list(maps.shape[:2]),
    "row_sums": [float(maps.sum(-1).min()), float(maps.sum(-1).max())],
    "future": float(maps.triu(1).abs().max()),
    "losses": [float(losses.mean(0)[0]), float(losses.mean(0)[-20:].mean())],
    "mean_loss": float(losses.mean()), "evaluated": sum(one_by_one) / len(one_by_one),
    "untrained": float(torch.log(torch.tensor(float(model.vocab_size)))),
    "best_head": float(scores.max()), "even_head": float((1 / torch.arange(1.0, len(ids) + 1)).mean()),
    "consistent": 50 - len(wrong[0.5]),
}))
"""


@pytest.fixture(scope="module")
def stored() -> Any:
    return nbformat.read(PATH, as_version=4)


@pytest.fixture(scope="module")
def executed(stored: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The notebook, run in a folder that has nothing to do with it, and the probe behind it."""
    folder = tmp_path_factory.mktemp("notebook")
    book = nbformat.from_dict({**stored, "cells": [{**cell} for cell in stored.cells]})
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    book.cells.append(nbformat.v4.new_code_cell(PROBE))
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(minigpt.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
        "MINIGPT_CACHE": str(folder / "cache"),
        "TMPDIR": str(folder),
        "IPYTHONDIR": str(folder / "ipython"),
    }
    nbclient.NotebookClient(book, timeout=SECONDS, kernel_name="python3").execute(cwd=str(folder), env=environment)
    book.metadata["folder"] = str(folder)
    return book


def printed(cell: Any) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


@pytest.fixture(scope="module")
def found(executed: Any) -> dict[str, Any]:
    """What the probe says."""
    return json.loads(printed(executed.cells[-1]).split("PROBE")[1])


@pytest.mark.slow
def test_every_cell_runs_and_none_complains(executed: Any) -> None:
    code = [cell for cell in executed.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output.text for output in outputs if output.get("name") == "stderr"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 6


@pytest.mark.slow
def test_it_writes_to_a_temporary_folder_only(executed: Any, found: dict[str, Any]) -> None:
    folder = Path(executed.metadata["folder"])
    assert Path(found["folder"]).parent == folder
    assert not Path(found["folder"]).exists(), "and takes it away"


@pytest.mark.slow
def test_the_killed_run_ends_in_the_same_weights(executed: Any) -> None:
    cell = next(cell for cell in executed.cells if "reproducible(" in cell.source)
    sums = dict(re.findall(r"^(whole|stopped) +([0-9a-f]{64})$", printed(cell), re.MULTILINE))
    assert sums["whole"] == sums["stopped"]
    assert "going on from step 80 of 240" in printed(cell)


@pytest.mark.slow
def test_what_it_shows_is_so(found: dict[str, Any]) -> None:
    assert found["layers_and_heads"] == [2, 4]
    assert found["row_sums"] == pytest.approx([1, 1], abs=1e-5)
    assert found["future"] == 0
    assert found["mean_loss"] == pytest.approx(found["evaluated"], rel=1e-5)
    first, last = found["losses"]
    assert last < 1 < first < found["untrained"], "reading on helps"
    assert found["best_head"] > 5 * found["even_head"], "a head looks names up"
    assert found["consistent"] >= 5, "a model that could not look back would tell hardly any"


def test_as_stored_it_can_be_read_and_names_no_machine(stored: Any) -> None:
    nbformat.validate(stored)
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "run it once, from top to bottom"
    assert sum("image/png" in output.get("data", {}) for cell in code for output in cell.outputs) == 6
    text = "".join(printed(cell) for cell in code)
    assert not re.findall(r"(?:/tmp|/home|/root|/work|/Users|/var|[A-Z]:\\)[^\s]*", text)
    assert Path.home().name not in stored.metadata.get("kernelspec", {}).get("display_name", "")
    assert PATH.stat().st_size < 1_000_000


def test_it_needs_only_what_the_extra_brings(stored: Any) -> None:
    source = "\n".join(cell.source for cell in stored.cells if cell.cell_type == "code")
    modules = {name.split(".")[0] for name in re.findall(r"^(?:from|import) ([\w.]+)", source, re.MULTILINE)}
    assert modules - set(sys.stdlib_module_names) == {"matplotlib", "minigpt", "torch"}
