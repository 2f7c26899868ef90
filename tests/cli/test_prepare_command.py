"""`minigpt data prepare` in parts, into a folder, and what it refuses."""

import json
import shlex
from pathlib import Path

import pytest

TEXTS = [f"the quick fox number {n} jumps over a dog" for n in range(60)]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"data: {{train: {tmp_path / 'rows.jsonl'}}}\ntokenizer: {{kind: char}}\n"
        "model: {context_length: 16}\ntraining: {batch_tokens: 160}\n"
    )
    return path


def test_parts_into_a_folder_for_others(run, config: Path, tmp_path: Path, monkeypatch) -> None:
    whole = run("data", "prepare", config, "--json").json
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path / "other"))
    counts = [run("data", "prepare", config, "--part", f"{n}/3", "--parts", tmp_path / "p", "--json") for n in range(3)]
    assert sorted(found.json["blocks"] for found in counts) == [0, 0, 1]
    assert run("data", "prepare", config, "--part", "0/3", "--parts", tmp_path / "p").out.startswith("part 0/3: 0 new")
    merged = run("data", "prepare", config, "--parts", tmp_path / "p", "--out", tmp_path / "out", "--json").json
    assert merged.pop("out") == [str(tmp_path / "out")]
    assert merged == whole
    again = run("data", "prepare", config, f"data.train={{shards: {tmp_path / 'out'}}}",
                f"tokenizer={{kind: file, path: {tmp_path / 'out' / 'tokenizer'}}}", "--json")  # fmt: skip
    assert again.json["splits"] == whole["splits"]
    people = run("data", "prepare", config, "--out", tmp_path / "out2").out.splitlines()
    folder, _, hint = people[-1].partition(": train on it with ")
    assert folder == str(tmp_path / "out2")
    assert run("data", "prepare", config, *shlex.split(hint), "--json").json["splits"] == whole["splits"]
    without = run("data", "prepare", config, shlex.split(hint)[0]).complaint
    assert "cannot be trained on token ids" in without and f"{tmp_path / 'out2' / 'tokenizer'}" in without


def test_sources_of_a_mixture(run, config: Path, tmp_path: Path) -> None:
    fox = f"{{path: {tmp_path / 'rows.jsonl'}, weight: 1, name: fox}}"
    sources = f"data.train=[{fox}, {{demo: stories, documents: 9, weight: 1}}]"
    found = run("data", "prepare", config, sources, "tokenizer={kind: bpe, vocab_size: 300}", "--json").json
    assert list(found["sources"]) == ["fox", "stories"]
    assert found["splits"]["train"]["tokens"] == sum(size["tokens"] for size in found["sources"].values())
    people = run("data", "prepare", config, sources, "tokenizer={kind: bpe, vocab_size: 300}").out
    assert [line.split()[0] for line in people.splitlines()] == ["fox", "stories", "val"]


@pytest.mark.parametrize("part", ["3/3", "1", "a/b", "1/0", "-1/3", "1/2/3"])
def test_parts_that_are_none(run, config: Path, part: str) -> None:
    found = run("data", "prepare", config, f"--part={part}")
    assert found.status == 2 and "it should be I/N, as 0/3, 1/3 and 2/3" in found.complaint


def test_wrong_requests(run, config: Path, tmp_path: Path) -> None:
    cases = [
        (["--out", tmp_path], "is not empty: give --out a new folder"),
        (["--out", tmp_path / "o", "--part", "0/2"], "--out needs all parts"),
        (["data.streaming=true", "training.max_steps=3"], "there is nothing to prepare"),
    ]
    for arguments, said in cases:
        found = run("data", "prepare", config, *arguments)
        assert found.status == 2 and said in found.complaint
