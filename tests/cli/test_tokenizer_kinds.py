"""`minigpt tokenizer train|info` for SentencePiece models, samples of text and several tokenizers side by side."""

import json
import struct
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytest.importorskip("sentencepiece")

TEXT = "".join(f"the quick brown fox {n} jumps over the lazy dogs, {n * 7} times!\n" for n in range(400)) + "Größe €\n"


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "some.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["unigram", "sentencepiece-bpe"])
def test_train_encode_decode_info(run, text_file: Path, tmp_path: Path, kind: str) -> None:
    import sentencepiece

    out = tmp_path / "new"
    special = ["--special-token=<|endoftext|>", "--special-token=<|user|>"]
    found = run("tokenizer", "train", text_file, f"--kind={kind}", "--vocab-size=360", "--out", out, *special)
    assert (found.status, found.out, found.err) == (0, "", f"360 ids in {out}\n")
    names = {"MANIFEST.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json"}
    assert {path.name for path in out.iterdir()} == names
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(out / "tokenizer.model"))
    text = "the lazy fox\n中文 <|user|>"
    ids = run("tokenizer", "encode", "-t", out, text, "--json").json["ids"]
    assert ids == theirs.encode(text)
    assert run("tokenizer", "encode", "-t", out / "tokenizer.model", text, "--json").json["ids"] == ids
    assert run("tokenizer", "decode", "-t", out, *ids, "--json").json == {"text": text}
    info = run("tokenizer", "info", out, "--json").json
    assert (info["kind"], info["vocab_size"], info["pattern"], info["eot_id"]) == (kind, 360, None, 1)
    assert info["special_tokens"] == {"<unk>": 0, "<|endoftext|>": 1, "<|user|>": 2} and "text" not in info


def test_a_sample_is_another_tokenizer_made_of_less_text(run, text_file: Path, tmp_path: Path) -> None:
    with text_file.open("a", encoding="utf-8") as file:
        file.write("zebra zebu\n" * 2000)
    kinds = {"all": [], "much": ["--sample-characters=10000000"], "some": ["--sample-characters=9000"]}
    for name, options in kinds.items():
        line = ("tokenizer", "train", text_file, "--vocab-size=330", "--out", tmp_path / name, *options)
        assert run(*line).status == 0
    prints = {name: run("tokenizer", "info", tmp_path / name, "--json").json["fingerprint"] for name in kinds}
    assert prints["all"] == prints["much"] != prints["some"]
    for text in ("zebra", " quick"):  # both ends of the text are in the sample
        assert len(run("tokenizer", "encode", "-t", tmp_path / "some", text, "--json").json["ids"]) < len(text)


def llama2c(path: Path) -> Path:
    names = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{byte:02X}>" for byte in range(256)), " ", "t", "h", " t", " th"]
    pieces = [struct.pack("<fi", -float(i), len(name)) + name.encode() for i, name in enumerate(names)]
    path.write_bytes(struct.pack("<i", 6) + b"".join(pieces))
    return path


def test_several_side_by_side(run, text_file: Path, tmp_path: Path) -> None:
    bpe, char, other = tmp_path / "bpe", tmp_path / "char", llama2c(tmp_path / "tok.bin")
    text_file.write_text(TEXT.replace("€", "E"), encoding="utf-8")
    assert run("tokenizer", "train", text_file, "--vocab-size=300", "--pattern=qwen2", "--out", bpe).status == 0
    assert run("tokenizer", "train", text_file, "--kind=char", "--out", char).status == 0
    text_file.write_text(TEXT, encoding="utf-8")
    found = run("tokenizer", "info", bpe, char, other, "--text", text_file, "--json").json["tokenizers"]
    size = len(TEXT.encode())
    assert [one["path"] for one in found] == [str(bpe), str(char), str(other)]
    assert [one["kind"] for one in found] == ["byte-level", "char", "llama2.c"] and found[0]["pattern"] == "qwen2"
    ids = run("tokenizer", "encode", "-t", bpe, "--file", text_file, "--json").json["ids"]
    assert found[0]["text"] == {
        "bytes": size,
        "tokens": len(ids),
        "bytes_per_token": pytest.approx(size / len(ids)),
        "ids_used": len(set(ids)),
        "exact": True,
    }
    assert found[1]["text"].keys() == {"failure"}
    assert "character '€' (U+20AC)" in found[1]["text"]["failure"]
    table = run("tokenizer", "info", bpe, char, other, "--text", text_file).out.splitlines()
    assert table[0].split() == ["tokenizer", "kind", "ids", "tokens", "bytes/token", "used"]
    counted = [f"{len(ids):,}", f"{size / len(ids):.3f}", f"{len(set(ids)):,}"]
    assert table[1].split() == ["bpe", "byte-level", "qwen2", "300", *counted]
    assert table[2].split()[3:] == ["-"] * 3
    assert table[4] == f"The text has {size:,} bytes." and table[5].startswith("char cannot encode the text: character")
    plain = run("tokenizer", "info", bpe, other).out.splitlines()
    assert [line.split() for line in plain[1:]] == [
        ["bpe", "byte-level", "qwen2", "300", "1"],
        ["tok.bin", "llama2.c", "264", "3"],
    ]


def test_one_on_a_text(run, text_file: Path, tmp_path: Path) -> None:
    assert run("tokenizer", "train", text_file, "--vocab-size=300", "--out", tmp_path / "bpe").status == 0
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"body": f"the fox {n}"}) + "\n" for n in range(5)))
    source = f"{{path: {tmp_path / 'x.jsonl'}, field: body}}"
    people = run("tokenizer", "info", tmp_path / "bpe", "--text", source).out
    facts = dict(line.split(None, 1) for line in people.splitlines())
    assert facts["text"].startswith("45 bytes, ") and facts["decoded"] == "the same text"
    assert "300" in facts["ids"] and "bytes a token" in people and "pattern         gpt2\n" in people


@pytest.mark.parametrize(
    ("line", "named"),
    [
        (["train", "TEXT", "--out", "NEW", "--kind=unigram", "--vocab-size=100"], "tokenizer.vocab_size=100 is too sm"),
        (
            ["train", "TEXT", "--out", "NEW", "--kind=unigram", "--vocab-size=9999"],
            "tokenizer.vocab_size=9999 is too l",
        ),
        (["train", "TEXT", "--out", "NEW", "--kind=sentencepiece-bpe", "--pattern=qwen2"], "tokenizer.pattern"),
        (["train", "TEXT", "--out", "NEW", "--kind=char", "--sample-characters=9"], "tokenizer.sample_characters"),
        (["train", "TEXT", "--out", "NEW", "--sample-characters=0"], "tokenizer.sample_characters=0"),
        (["train", "TEXT", "--out", "NEW", "--kind=unigram", "--special-token=<unk>"], "special token '<unk>'"),
        (["info", "TEXT"], "some.txt"),
        (["info", "BAD"], "bad.model is not a SentencePiece model"),
        (["info", "BIN"], "cut.bin is not a tokenizer.bin of llama2.c: it ends in the middle of piece"),
        (["info", "OK", "BAD"], "bad.model is not a SentencePiece model"),
        (["info", "OK", "--text", "nowhere.txt"], "nowhere.txt"),
        (["info", "OK", "--text", "EMPTY"], "empty.txt"),
        (["info", "OK", "-t", "OK"], "only one of PATH and --tokenizer"),
    ],
)
def test_wrong_requests(run, text_file: Path, tmp_path: Path, line: list[str], named: str) -> None:
    paths = {name: tmp_path / file for name, file in {"NEW": "new", "EMPTY": "empty.txt", "BAD": "bad.model"}.items()}
    paths |= {"TEXT": text_file, "OK": llama2c(tmp_path / "ok.bin"), "BIN": llama2c(tmp_path / "cut.bin")}
    paths["EMPTY"].write_text(" \n")
    paths["BAD"].write_bytes(b"\x0a\x99 no model")
    paths["BIN"].write_bytes(paths["BIN"].read_bytes()[:-2])
    found = run("tokenizer", *(paths.get(word, word) for word in line))
    assert found.status == 2 and named in found.complaint, found
    assert not paths["NEW"].exists()


def test_by_name(run, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer of the hub, from a server that stands for it; and what is said when there is none."""
    place = tmp_path / "web" / "huggingface.co" / "me" / "words" / "resolve" / "main"
    place.parent.mkdir(parents=True)
    assert run("tokenizer", "train", text_file, "--vocab-size", 300, "--out", place).status == 0
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "web"))
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *args: None)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("MINIGPT_MIRROR", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path / "cache"))
    try:
        ids = [run("tokenizer", "encode", "-t", where, "a text", "--json") for where in ("hub:me/words", place)]
        assert ids[0].json == ids[1].json
        for name in ("hub:me/none", "hub:a b", "tiktoken:no_such", "tiktoken:cl100k_base"):
            assert name.partition(":")[2] in run("tokenizer", "info", name).complaint
    finally:
        server.shutdown()
