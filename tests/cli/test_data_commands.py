"""`minigpt data prepare|show`: counts that follow from the text, and what the cache then holds."""

import json
import os
import re
from pathlib import Path

import pytest

TEXT = "the quick fox\njumps over a dog\n" * 40


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"data: {{train: {tmp_path / 'text.txt'}}}\ntokenizer: {{kind: char}}\nmodel: {{context_length: 16}}\n"
    )
    return path


def test_prepare(run, config: Path) -> None:
    cut = int(len(TEXT) * 0.9)
    found = run("data", "prepare", config, "training.batch_tokens=160", "--json")
    assert found.err == ""
    assert found.json["tokenizer"]["vocab_size"] == len(set(TEXT))
    assert found.json["splits"] == {
        "train": {"documents": 1, "tokens": cut},
        "val": {"documents": 1, "tokens": len(TEXT) - cut},
    }
    assert list(Path(os.environ["MINIGPT_CACHE"]).rglob("meta.json"))
    people = run("data", "prepare", config, "training.batch_tokens=160", "data.val_fraction=0")
    assert people.out == f"train {len(TEXT):,} tokens in 1 document\n"


def test_show(run, config: Path) -> None:
    cut = int(len(TEXT) * 0.9)
    found = run("data", "show", config, "training.batch_tokens=160", "--json").json
    assert found["splits"]["train"]["tokens"] == cut and found["steps"] is None
    characters = sorted(set(TEXT))
    for window in found["windows"]:
        assert window["text"] in TEXT and window["text"] == "".join(characters[i] for i in window["ids"])
    people = run("data", "show", config, "training.batch_tokens=160", "--windows", "1")
    assert re.search(rf"^text +1 +{cut:,} +{cut:,} +1.00 +{len(TEXT) - cut:,}$", people.out, re.MULTILINE)
    assert f"text: one document of {cut:,}\n" in people.out and "Row 1" not in people.out
    lines = people.out.partition("Row 0\n")[2].splitlines()
    assert lines[0] == "▌ document 1, 16 positions"
    shown = found["windows"][0]["text"].replace("\n", "↵\n").splitlines()
    assert [line.removeprefix("▌ ") for line in lines[1:]] == [line.rstrip() for line in shown]


HOSTILE = {"text": "a\x1b[2J\x1b]0;owned\x07 \u202eb\u2066 \x9b31m <script>alert(1)</script> <b>&amp; \x00"}


def test_show_documents_and_pages(run, tmp_path: Path) -> None:
    """Whole documents in rows, of text that a terminal or a browser would obey."""
    for name in "ab":
        rows = [HOSTILE] + [{"text": f"{name} word " * (n % 9)} for n in range(200)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = tmp_path / "mine.yaml"
    config.write_text(
        f"""
data:
  train: [{{path: {tmp_path}/a.jsonl, weight: 1}}, {{path: {tmp_path}/b.jsonl, weight: 3}}]
  packing: documents
  document_mask: true
  stages: [{{from_fraction: 0.5, weights: {{a: 1}}}}]
tokenizer: {{vocab_size: 260}}
model: {{context_length: 48}}
training: {{max_steps: 20, batch_tokens: 192}}
"""
    )
    page = tmp_path / "page.html"
    found = run("data", "show", config, "--html", page, "--windows", 200)
    assert found.status == 0 and not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", found.out)
    assert re.search(r"^a +25.00 % +100.00 % +62.50 % +50", found.out, re.MULTILINE)
    assert re.search(r"^b +75.00 % +– +37.50 % +30", found.out, re.MULTILINE)
    assert "whole documents, fitted together" in found.out and "Exact in every 4, then 4 rows." in found.out
    assert re.search(r"document \d+, \d+ positions, from its beginning", found.out)
    assert "owned" in found.out
    html = page.read_text(encoding="utf-8")
    assert "<script" not in html and "owned" in re.sub("<[^>]*>", "", html)
    run("data", "show", config, "--html", page, "--json")  # a page of ours may be written anew
    (tmp_path / "other.html").write_text("mine")
    said = run("data", "show", config, "--html", tmp_path / "other.html").complaint
    assert "exists and is not a report" in said and (tmp_path / "other.html").read_text() == "mine"
    assert "--html" in run("data", "show", config, "--html", tmp_path / "no" / "page.html").complaint


@pytest.mark.parametrize("name", ["prepare", "show"])
def test_wrong_requests(run, config: Path, name: str) -> None:
    for override, named in [
        ("data.train=nowhere.txt", "nowhere.txt"),
        ("data.train=null", "data.train"),
        ("training.batch_tokens=17", "training.batch_tokens=17"),
    ]:
        found = run("data", name, config, override)
        assert found.status == 2 and named in found.complaint


def test_what_is_dropped_is_said(run, config: Path) -> None:
    found = run("data", "prepare", "shakespeare-char", f"data.train={config.parent / 'text.txt'}", "training.epochs=1")
    assert found.status == 0
    assert found.err.startswith("minigpt: training.max_steps=") and "is dropped because" in found.err
