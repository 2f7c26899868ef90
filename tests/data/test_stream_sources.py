"""Every kind of source can be streamed, and gone back to in the middle."""

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minigpt.config import DataConfig
from minigpt.data.streaming.stream import open_stream

DOCUMENTS = [f"document {number}: to be or not to be, {'that is ' * (number % 5)}the question" for number in range(40)]

OWN = """
from minigpt.data import DataSource

class Numbered(DataSource):
    def __init__(self, config):
        pass

    def documents(self):
        for number in range(40):
            yield f"document {number}: to be or not to be, {'that is ' * (number % 5)}the question"
"""


def plain(folder: Path) -> Any:
    (folder / "plain.txt").write_text("\n##\n".join(DOCUMENTS))
    return {"path": str(folder / "plain.txt"), "separator": "\n##\n"}


def zipped_lines(folder: Path) -> Any:
    with gzip.open(folder / "lines.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"story": text}) + "\n" for text in DOCUMENTS)
    return {"path": str(folder / "lines.jsonl.gz"), "field": "story"}


def zstandard_lines(folder: Path) -> Any:
    zstandard = pytest.importorskip("zstandard")
    lines = "".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS)
    (folder / "lines.jsonl.zst").write_bytes(zstandard.compress(lines.encode()))
    return str(folder / "lines.jsonl.zst")


def table(folder: Path) -> Any:
    with (folder / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["number", "text"], *enumerate(DOCUMENTS)])
    return str(folder / "table.csv")


def parquet_files(folder: Path) -> Any:
    pytest.importorskip("pyarrow")
    import pyarrow
    import pyarrow.parquet

    for part in range(2):
        half = DOCUMENTS[20 * part : 20 * part + 20]
        pyarrow.parquet.write_table(pyarrow.table({"text": half}), folder / f"{part}.parquet", row_group_size=7)
    return str(folder / "*.parquet")


def hub_folder(folder: Path) -> Any:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": DOCUMENTS}).save_to_disk(str(folder / "saved"))
    return {"hub": str(folder / "saved")}


def hub_streaming(folder: Path) -> Any:
    pytest.importorskip("datasets")
    (folder / "set").mkdir()
    (folder / "set" / "train.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS))
    return {"hub": str(folder / "set"), "streaming": True}


def own_class(folder: Path) -> Any:
    (folder / "own.py").write_text(OWN)
    return f"{folder / 'own.py'}:Numbered"


def generated(folder: Path) -> Any:
    return {"demo": "dialogues", "documents": 12}


KINDS = [plain, zipped_lines, zstandard_lines, table, parquet_files, hub_folder, hub_streaming, own_class, generated]


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_every_kind_of_source(tmp_path, bpe, cache, make: Callable[[Path], Any]) -> None:
    source = make(tmp_path)
    layout: dict[str, Any] = {"context_length": 16, "seed": 1, "batch_rows": 4, "max_steps": None}
    in_order = DataConfig.model_validate({"train": source, "streaming": True, "shuffle": False})
    rows = open_stream(in_order, bpe, cache).rows(**layout)
    text = bpe.decode([i for number in range(8) for i in rows.row(number)["ids"].tolist()])
    rows.close()
    if make is not generated:
        assert "<|endoftext|>".join(DOCUMENTS).startswith(text)
    data = DataConfig.model_validate({"train": source, "streaming": True, "shuffle_buffer": 6})
    rows = open_stream(data, bpe, cache).rows(**layout)
    expected, states = [], []
    for number in range(240):
        expected.append(rows.row(number)["ids"].tolist())
        states.append(rows.snapshot())
    assert states[-1].position["sources"][0]["epoch"] >= 1
    for number in (0, 11, 60, 230):
        rows.restore(states[number])
        assert [rows.row(n)["ids"].tolist() for n in range(number + 1, number + 9)] == expected[number + 1 : number + 9]
    rows.close()
