"""`minigpt import` and `minigpt export` as a person meets them."""

import json
import os
from pathlib import Path

import pytest
import torch

from minigpt.config import ModelConfig
from minigpt.model import GPT
from minigpt.storage import load_model_config, load_state, save_model
from minigpt.tokenizer import CharTokenizer


def same_weights(one: Path, other: Path) -> bool:
    first, second = load_state(one), load_state(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_out_and_in_again(run, model_folder, tmp_path):
    out, back = tmp_path / "out", tmp_path / "back"
    done = run("export", model_folder, out)
    assert done.status == 0 and done.out == "" and f"exported: {out}" in done.err and "verified" in done.err
    assert json.loads((out / "config.json").read_text())["model_type"] == "qwen3"
    assert run("import", out, back).status == 0
    assert same_weights(model_folder, back)
    question = ["--prompt", "abc", "--max-new-tokens", "8", "--temperature", "0", "--json"]
    texts = [run("generate", folder, *question).json["text"] for folder in (model_folder, out, back)]
    assert texts[0] == texts[1] == texts[2]


def test_a_real_folder_with_other_sizes(run, test_data, tmp_path):
    source = test_data("weights/tiny-random-gpt2")
    out = tmp_path / "model"
    sizes = ["--context-length", "16", "--vocab-multiple", "64"]
    assert run("import", source, out, *sizes).status == 0
    config = load_model_config(out)
    assert config.context_length == 16 and config.padded_vocab_size % 64 == 0
    assert load_state(out)["position.weight"].shape[0] == 16


def test_one_file_where_that_is_asked_for(run, test_data, tmp_path):
    weights = test_data("weights/stories260K")
    words = ["--tokenizer", weights / "tok512.bin"]
    assert run("import", weights / "stories260K.bin", tmp_path / "model", *words).status == 0
    done = run("export", tmp_path / "model", tmp_path / "one.bin", "--format", "llama2c")
    assert done.status == 0 and "tokenizer.bin left out: give a folder instead of one.bin to have it too" in done.err
    assert (tmp_path / "one.bin").read_bytes() == (weights / "stories260K.bin").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "one.bin"]
    again = run("export", tmp_path / "model", tmp_path / "one.bin", "--format", "llama2c")
    assert again.status == 2 and "one.bin exists already" in again.complaint


@pytest.mark.parametrize(
    "arguments, status, said",
    [
        (["export", "nowhere", "out"], 2, "nowhere does not exist"),
        (["export", "MODEL", "MODEL"], 2, "exists already"),
        (["export", "MODEL", "out", "--format", "onnx"], 2, "onnx"),
        (["export", "MODEL", "out", "--type", "q8_0"], 2, "--type=q8_0 is for --format gguf: for hf say --dtype"),
        (["export", "MODEL", "out", "--format", "gguf", "--dtype", "bf16"], 2, "--dtype=bf16 is not for --format gguf"),
        (["export", "MODEL", "out", "--format", "llama2c", "--dtype", "bf16"], 2, "choose one of fp32"),
        (["export", "MODEL", "out.gguf"], 2, "which --format hf does not write: say --format gguf"),
        (["export", "MODEL", "out.bin", "--format", "gguf"], 2, "say --format llama2c"),
        (["export", "MODEL", "/dev/null/out"], 1, "could not write /dev/null/out"),
        (["import", "./nowhere", "out"], 2, "nowhere does not exist"),
        (["import", "MODEL", "MODEL"], 2, "exists already"),
        (["import", "MODEL", "out", "--tokenizer", "nowhere"], 2, "tokenizer nowhere does not exist"),
        (["import", "MODEL", "out", "--context-length", "0"], 2, "0"),
        (["import", "MODEL", "out", "--vocab-size", "3"], 2, "--vocab-size"),
    ],
)
def test_wrong_requests(run, model_folder, tmp_path, monkeypatch, arguments, status, said):
    monkeypatch.chdir(tmp_path)
    done = run(*[str(model_folder) if word == "MODEL" else word for word in arguments])
    assert done.status == status and said in done.complaint
    assert not list(tmp_path.iterdir())


def test_the_reason_why_not_and_nothing_left(run, tmp_path):
    config = ModelConfig(n_layer=1, n_head=2, n_embd=8, context_length=8, vocab_size=9, embedding_size=4)
    save_model(tmp_path / "model", config, GPT(config).state_dict(), None)
    done = run("export", tmp_path / "model", tmp_path / "a" / "b")
    assert done.status == 2 and "no transformers class represents this model" in done.complaint
    assert "model.embedding_size=4" in done.complaint
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_tokenizer_with_more_ids_than_the_model(run, tmp_path):
    config = ModelConfig(n_layer=1, n_head=2, n_embd=8, context_length=8, vocab_size=3)
    save_model(tmp_path / "model", config, GPT(config).state_dict(), CharTokenizer.from_texts(["abcdef"]))
    done = run("export", tmp_path / "model", tmp_path / "out")
    assert done.status == 2 and "the model only 3" in done.complaint and not (tmp_path / "out").exists()


def test_a_damaged_source(run, model_folder, tmp_path):
    whole = (model_folder / "model.safetensors").read_bytes()
    config = (model_folder / "config.json").read_bytes()
    for damage in (whole[: len(whole) // 2], whole[:5], b""):
        folder = tmp_path / str(len(damage))
        folder.mkdir()
        (folder / "config.json").write_bytes(config)
        (folder / "model.safetensors").write_bytes(damage)
        done = run("export", folder, tmp_path / "out")
        assert done.status == 1 and "model.safetensors" in done.complaint
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(
    os.name == "nt" or not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere"
)
def test_a_folder_that_may_not_be_written(run, model_folder, tmp_path):
    (tmp_path / "shut").mkdir(mode=0o500)
    done = run("export", model_folder, tmp_path / "shut" / "out")
    assert done.status == 1 and "permission denied" in done.complaint
