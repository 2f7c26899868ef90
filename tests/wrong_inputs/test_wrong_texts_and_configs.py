"""Texts, configs and tokenizers with which a run cannot begin: one sentence, exit status 2, and no folder is left."""

import gzip
import os
import shutil

import numpy as np
import pytest

CASES = {}  # name -> what makes the command line, its exit status, words of the sentence


def case(status, *words):
    def keep(make):
        CASES[make.__name__] = make, status, words
        return make

    return keep


def trains_on(name, content, *words, options=()):
    """A case of training on a file with this content."""
    CASES[f"text {name}"] = (lambda w: w.train(*options, data=w.put(name, content).name)), 2, words


def overridden(*overrides, words):
    """A case of training with these overrides."""
    CASES[f"override {' '.join(overrides)}"] = (lambda w: w.train(*overrides)), 2, words


def configured(name, content, *words):
    """A case of a config file with this content."""
    CASES[f"config {name}"] = (lambda w: ["train", str(w.put(name, content))]), 2, (name, *words)


# ---- texts ---------------------------------------------------------------------------------------------------------

trains_on("empty.txt", "", "empty.txt")
trains_on("binary.txt", bytes(range(256)) * 20, "binary.txt")
trains_on("zeros.txt", b"abc\x00def" * 50, "zeros.txt")
trains_on("latin.txt", b"a" * 100 + b"\xe9" + b"b" * 100, "latin.txt", "100")
trains_on("cut.txt", ("a" * 99 + "\u20ac").encode()[:-1], "cut.txt", "UTF-8")
trains_on("utf16.txt", ("to be or not " * 20).encode("utf-16"), "utf16.txt")
trains_on("short.txt", "too short", "model.context_length=16")
trains_on("blank.jsonl", "\n\n", "training text is empty")
trains_on("bad.jsonl", '{"text": "a"}\n{"text": \n', "bad.jsonl", "2")
trains_on("field.jsonl", '{"text": "a"}\n{"story": "b"}\n', "field.jsonl", "2", "text")
trains_on("number.jsonl", '{"text": "a"}\n{"text": 3}\n', "number.jsonl", "2")
trains_on("list.jsonl", "[1, 2]\n", "list.jsonl", "1")
trains_on("no.txt.gz", b"not compressed at all", "no.txt.gz")
trains_on("half.txt.gz", gzip.compress(os.urandom(5000))[:2000], "half.txt.gz")
trains_on("odd.bin", b"\x01\x00\x02", "odd.bin", options=("model.vocab_size=100",))
trains_on("no.npy", b"not numpy", "no.npy", options=("model.vocab_size=100",))


@case(2, "missing.txt")
def text_missing(w):
    return w.train(data="missing.txt")


@case(2, "folder")
def text_folder_without_text(w):
    (w.folder / "folder").mkdir()
    return w.train(data="folder")


@case(2, "*.text")
def text_glob_without_match(w):
    return w.train(data="*.text")


@case(2, "data.train")
def text_not_given(w):
    return ["data.train=null" if a.startswith("data.train") else a for a in w.train()]


@case(2, "val.txt", "model.context_length=16")
def validation_too_short(w):
    return w.train(f"data.val={w.put('val.txt', 'short')}")


@case(2, "validation", "model.context_length=16")
def validation_share_too_short(w):
    return w.train("data.val_fraction=0.002")


@case(2, "val.txt")
def validation_missing(w):
    return w.train(f"data.val={w.folder / 'val.txt'}")


@case(1, "127.0.0.1:9")
def address_that_nobody_serves(w):
    from minigpt.data.reading import download

    w.patch.setattr(download.time, "sleep", lambda seconds: None)
    return w.train(data="http://127.0.0.1:9/text.txt")


@case(2, "ids")
def token_beyond_the_vocabulary(w):
    np.arange(3000, dtype=np.uint16).tofile(w.folder / "t.bin")
    (w.folder / "tok").mkdir()
    shutil.copy(w.folder / "done/tokenizer/tokenizer.json", w.folder / "tok/tokenizer.json")
    return w.train("tokenizer.kind=file", f"tokenizer.path={w.folder / 'tok'}", data="t.bin")


# ---- configs -------------------------------------------------------------------------------------------------------

overridden("model.n_layers=3", words=("model.n_layers=3", "model.n_layer"))
overridden("model.n_layer=three", words=("model.n_layer=three", "integer"))
overridden("model.n_layer=0", words=("model.n_layer=0",))
overridden("model.n_embd=33", words=("model.n_embd=33", "model.n_head=2"))
overridden("model.position=rope", "model.head_dim=5", words=("model.head_dim=5", "odd"))
overridden("training.batch_tokens=65", words=("training.batch_tokens=65", "64 or 80"))
overridden("training.micro_batch=3", words=("training.micro_batch=3", "use 2"))
overridden("training.epochs=2.0", words=("training.max_steps=4", "training.epochs=2.0"))
overridden("model.rope_theta=5", words=("model.rope_theta=5", "no effect", "model.position=learned"))
overridden("tokenizer.vocab_size=500", words=("tokenizer.vocab_size=500", "no effect"))
overridden("schedule.min_lr=1.0", words=("schedule.min_lr=1.0", "optimizer.lr"))
overridden("run.device=abacus", words=("abacus",))
overridden("run.device=cuda:7", words=("cuda",))
overridden("model.vocab_size=3", words=("model.vocab_size=3",))
overridden("model.dropout", words=("model.dropout", "section.key=value"))
overridden("model.init_from=/nowhere", words=("/nowhere",))
overridden("tokenizer.kind=file", "tokenizer.path=/nowhere/tok.json", words=("/nowhere/tok.json",))
overridden("tokenizer.kind=bpe", "tokenizer.vocab_size=100", words=("vocab_size", "100"))
configured("empty.yaml", "", "holds no settings")
configured("broken.yaml", "model: {n_layer: 3", "YAML")
configured("twice.yaml", "run: {seed: 1}\nrun: {seed: 2}\n", "twice")
configured("utf16.yaml", "run: {seed: 1}".encode("utf-16"), "UTF-8")
configured("broken.json", '{"run": {"seed": 1}', "JSON")


@case(2, "neither a file nor a preset", "shakespeare-char")
def config_missing(w):
    return ["train", "shakespeare-chars", f"data.train={w.folder / 'text.txt'}"]


@case(2, "training.max_steps")
def run_without_a_length(w):
    config = w.put(
        "c.yaml", "model: {n_layer: 1, n_head: 2, n_embd: 32, context_length: 16}\ntokenizer: {kind: char}\n"
    )
    return ["train", str(config), f"data.train={w.folder / 'text.txt'}", "run.threads=1", "training.batch_tokens=64",
            "--run-dir", str(w.folder / "new")]  # fmt: skip


@case(2, "vocab")
def gpt2_vocabulary_of_which_a_part_is_missing(w):
    w.put("gpt2/encoder.json", "{}")
    return w.train("tokenizer.kind=gpt2", f"tokenizer.path={w.folder / 'gpt2'}")


@case(2, "tokenizer.json")
def tokenizer_that_is_none(w):
    return w.train("tokenizer.kind=file", f"tokenizer.path={w.put('tokenizer.json', '{}')}")


@pytest.mark.parametrize("name", CASES)
def test_one_sentence_the_right_status_and_nothing_lost(refused, name):
    refused(*CASES[name])
