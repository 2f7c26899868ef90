"""`minigpt data prepare|show`: counts that follow from the text, and what the cache then holds."""

import os
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
    assert found["splits"]["train"]["tokens"] == cut
    characters = sorted(set(TEXT))
    for window in found["windows"]:
        assert window["text"] == TEXT[window["start"] :][:17] == "".join(characters[i] for i in window["ids"])
    people = run("data", "show", config, "training.batch_tokens=160")
    assert f"train {cut:,} tokens in 1 document, {cut:,} bytes (1.00 a token)\n" in people.out
    for window in found["windows"]:
        assert f"epoch 0, tokens {window['start']:,} to {window['start'] + 16:,}:\n{window['text']}\n" in people.out


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
