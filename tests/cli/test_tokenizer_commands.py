"""`minigpt tokenizer train|encode|decode|info`, against the tokenizers library and the rule for characters."""

import json
from pathlib import Path

import pytest
import tokenizers

TEXT = "low lower lowest new newer newest\n" * 30 + "€🙂 ä"


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "some.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def bpe(run, text_file: Path, tmp_path: Path) -> Path:
    found = run("tokenizer", "train", text_file, "--out", tmp_path / "bpe", "--vocab-size=270")
    assert (found.status, found.out) == (0, "") and "270 ids" in found.err
    return tmp_path / "bpe"


def test_trained_bpe_round_trips_and_is_the_librarys(run, bpe: Path) -> None:
    reference = tokenizers.Tokenizer.from_file(str(bpe / "tokenizer.json"))
    text = "newest lowest €🙂\t\n  new 你好"
    ids = run("tokenizer", "encode", "--tokenizer", bpe, text, "--json").json
    assert ids == {"ids": reference.encode(text).ids}
    plain = run("tokenizer", "encode", "--tokenizer", bpe / "tokenizer.json", text).out
    assert plain == " ".join(map(str, ids["ids"])) + "\n"
    assert run("tokenizer", "decode", "-t", bpe, *ids["ids"], "--json").json == {"text": text}
    assert run("tokenizer", "decode", "-t", bpe, "--file=-", stdin=plain.encode()).out == text + "\n"


def test_text_from_a_file_and_stdin(run, bpe: Path, text_file: Path) -> None:
    by_file = run("tokenizer", "encode", "-t", bpe, "--file", text_file, "--json").json
    assert by_file == run("tokenizer", "encode", "-t", bpe, TEXT, "--json").json
    assert by_file == run("tokenizer", "encode", "-t", bpe, "--file=-", "--json", stdin=TEXT.encode()).json


def test_special_tokens_are_text_unless_asked_for(run, bpe: Path) -> None:
    line = ("tokenizer", "encode", "-t", bpe, "new<|endoftext|>", "--json")
    plain, special = run(*line).json["ids"], run(*line, "--allow-special").json["ids"]
    eot = run("tokenizer", "info", bpe, "--json").json["eot_id"]
    assert eot not in plain and special[-1] == eot
    assert run("tokenizer", "decode", "-t", bpe, *plain, "--json").json["text"] == "new<|endoftext|>"
    assert run("tokenizer", "decode", "-t", bpe, *special, "--skip-special", "--json").json["text"] == "new"


def test_char(run, text_file: Path, tmp_path: Path) -> None:
    assert run("tokenizer", "train", text_file, "--kind=char", "--out", tmp_path / "char").status == 0
    vocabulary = sorted(set(TEXT))
    ids = run("tokenizer", "encode", "-t", tmp_path / "char", "low ä", "--json").json["ids"]
    assert ids == [vocabulary.index(character) for character in "low ä"]
    info = run("tokenizer", "info", tmp_path / "char", "--json").json
    assert (info["kind"], info["vocab_size"], info["eot_id"], info["special_tokens"]) == (
        "char",
        len(vocabulary),
        None,
        {},
    )


def test_info(run, bpe: Path) -> None:
    info = run("tokenizer", "info", bpe, "--json").json
    eot = tokenizers.Tokenizer.from_file(str(bpe / "tokenizer.json")).token_to_id("<|endoftext|>")
    assert (info["kind"], info["vocab_size"], info["special_tokens"]) == ("byte-level", 270, {"<|endoftext|>": eot})
    people = run("tokenizer", "info", "--tokenizer", bpe).out
    assert f"special tokens  <|endoftext|> ({eot})\n" in people and info["fingerprint"] in people


def test_special_tokens_pattern_and_mapping_sources(run, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(json.dumps({"body": "new newer newest " * 50}) + "\n")
    source = f"{{path: {tmp_path / 'x.jsonl'}, field: body}}"
    options = ["--pattern=qwen2", "--vocab-size=265", "--special-token=<|endoftext|>", "--special-token=<|user|>"]
    assert run("tokenizer", "train", source, "--out", tmp_path / "t", *options).status == 0
    assert set(run("tokenizer", "info", tmp_path / "t", "--json").json["special_tokens"]) == {
        "<|endoftext|>",
        "<|user|>",
    }


@pytest.mark.parametrize(
    ("line", "named"),
    [
        (["train", "nowhere.txt", "--out", "NEW"], "nowhere.txt"),
        (["train", "TEXT", "--out", "BPE"], "exists already"),
        (["train", "TEXT", "--out", "NEW", "--vocab-size=0"], "tokenizer.vocab_size=0"),
        (["train", "TEXT", "--out", "NEW", "--pattern=gpt5"], "tokenizer.pattern=gpt5"),
        (["train", "TEXT", "--out", "NEW", "--kind=char", "--vocab-size=300"], "tokenizer.vocab_size=300"),
        (["train", "TEXT", "--out", "NEW", "--kind=gpt2"], "bpe or char"),
        (["train", "--out", "NEW"], "SOURCE"),
        (["encode", "-t", "BPE"], "one of TEXT and --file"),
        (["encode", "-t", "BPE", "a", "--file=b"], "only one of TEXT and --file"),
        (["encode", "-t", "BPE", "--file=nowhere"], "nowhere"),
        (["encode", "-t", "nowhere", "a"], "nowhere"),
        (["encode", "-t", "TEXT", "a"], "some.txt"),
        (["encode", "-t", "BPE", "a\udcff"], ""),
        (["decode", "-t", "BPE"], "one of ID and --file"),
        (["decode", "-t", "BPE", "999999"], "999999"),
        (["decode", "-t", "BPE", "--", "-1"], "-1"),
        (["decode", "-t", "BPE", "--file", "TEXT"], "'low' is not a token id"),
        (["info"], "one of PATH and --tokenizer"),
    ],
)
def test_wrong_requests(run, bpe: Path, text_file: Path, tmp_path: Path, line: list[str], named: str) -> None:
    paths = {"NEW": tmp_path / "new", "BPE": bpe, "TEXT": text_file}
    found = run("tokenizer", *(paths.get(word, word) for word in line))
    assert found.status == 2 and named in found.complaint
    assert not (tmp_path / "new").exists()
