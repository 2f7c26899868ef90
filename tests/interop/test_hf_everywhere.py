"""A Hugging Face folder is a MODEL: every command and call that takes one takes it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import minigpt
from minigpt.cli import main
from minigpt.config import RequestError, load_config
from minigpt.interop import import_model, read_model
from minigpt.interop.begin import begin_ids
from minigpt.storage import load_model_config, load_state, resolve_model

TEXT = "the quick brown fox jumps over the lazy dog\n"


def test_load_and_generate(tiny_gpt2: Path):
    loaded = minigpt.load(tiny_gpt2, device="cpu")
    assert loaded.tokenizer is not None and loaded.config.n_layer == 2
    text = loaded.generate(TEXT, max_new_tokens=5, temperature=0.0)
    assert not isinstance(text, list) and len(text.ids) == 5
    for name in ("config.json", "model.safetensors"):
        assert resolve_model(tiny_gpt2 / name).path == tiny_gpt2


def test_commands(tiny_gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "text.txt").write_text(TEXT * 20)
    model = str(tiny_gpt2)
    assert main(["generate", model, "--prompt", "the", "--max-new-tokens", "3", "--seed", "1", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["ids"]) == 3
    assert main(["eval", model, "--task", "loss", "--data", str(tmp_path / "text.txt"), "--json"]) == 0
    assert 4 < json.loads(capsys.readouterr().out)["loss"] < 8  # of 300 ids at random: ln 300 = 5.7


@pytest.mark.parametrize("pair", [True, False])
def test_its_tokenizer_in_other_files(pair: bool, tiny_gpt2: Path):
    content = json.loads((tiny_gpt2 / "tokenizer.json").read_text())
    ids = minigpt.load(tiny_gpt2, device="cpu").encode(TEXT)
    for path in tiny_gpt2.glob("tokenizer*"):
        path.unlink()
    if pair:
        words = {**content["model"]["vocab"], **{t["content"]: t["id"] for t in content["added_tokens"]}}
        (tiny_gpt2 / "vocab.json").write_text(json.dumps(words))
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in content["model"]["merges"]]
        (tiny_gpt2 / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    loaded = minigpt.load(tiny_gpt2, device="cpu")
    if pair:
        assert loaded.encode(TEXT) == ids
    else:
        assert loaded.tokenizer is None
        with pytest.raises(RequestError, match="has no tokenizer"):
            loaded.generate(TEXT)
        assert main(["generate", str(tiny_gpt2), "--prompt", "the"]) == 2


def train(folder: Path, tmp_path: Path, **more: Any) -> int:
    (tmp_path / "text.txt").write_text(TEXT * 200)
    keys = {
        "data.train": tmp_path / "text.txt", "model.n_layer": 2, "model.n_head": 2, "model.n_embd": 16,
        "model.context_length": 32, "model.norm": "layernorm", "model.norm_eps": 1e-5, "model.position": "learned",
        "model.qk_norm": "none", "model.mlp": "gelu_tanh", "model.bias": "true", "model.vocab_size": 300,
        "model.init_from": folder, "optimizer.lr": 1e-9, "schedule.kind": "constant", "training.max_steps": 1,
        "training.batch_tokens": 64, "training.compile": "false", "run.device": "cpu", **more,
    }  # fmt: skip
    config = tmp_path / "config.yaml"
    config.write_text("{}\n")
    assert load_config(config) is not None
    return main(["train", str(config), "--run-dir", str(tmp_path / "run"), *(f"{k}={v}" for k, v in keys.items())])


def test_training_starts_from_its_weights(tiny_gpt2: Path, tmp_path: Path):
    assert train(tiny_gpt2, tmp_path) == 0
    begun, ended = minigpt.load(tiny_gpt2, device="cpu"), minigpt.load(tmp_path / "run", device="cpu")
    for name, tensor in begun.model.state_dict().items():
        assert torch.allclose(ended.model.state_dict()[name], tensor, atol=1e-5), name
    assert ended.tokenizer is not None and ended.encode(TEXT) == begun.encode(TEXT)


def test_training_from_another_network_names_what_differs(
    tiny_gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert train(tiny_gpt2, tmp_path, **{"model.n_layer": 3, "model.mlp": "gelu"}) == 2
    said = capsys.readouterr().err
    assert "is another network" in said and "model.n_layer=3 is 2 there" in said
    assert "model.mlp=gelu is gelu_tanh there" in said


# ---- import ----------------------------------------------------------------------------------------------------------


def test_import_makes_a_model_folder_of_the_same_function(tiny_gpt2: Path, tmp_path: Path):
    import_model(tiny_gpt2, tmp_path / "new" / "out")
    before, after = minigpt.load(tiny_gpt2, device="cpu"), minigpt.load(tmp_path / "new" / "out", device="cpu")
    ids = torch.randint(300, (2, 32))
    assert torch.equal(before.model(ids), after.model(ids))
    assert load_model_config(tmp_path / "new" / "out") == before.config
    assert after.encode(TEXT) == before.encode(TEXT)


def test_import_with_other_sizes(tiny_gpt2: Path, tmp_path: Path):
    out = tmp_path / "out"
    options = ["--context-length", "16", "--vocab-size", "310", "--vocab-multiple", "64"]
    assert main(["import", str(tiny_gpt2), str(out), *options]) == 0
    config, state = load_model_config(out), load_state(out)
    assert (config.context_length, config.vocab_size, config.padded_vocab_size) == (16, 310, 320)
    assert state["embed.weight"].shape == (320, 16) and state["position.weight"].shape == (16, 16)
    ids = torch.randint(300, (2, 16))
    before, after = minigpt.load(tiny_gpt2, device="cpu").model(ids), minigpt.load(out, device="cpu").model(ids)
    assert torch.allclose(before, after[..., :300], atol=1e-5)
    again = read_model(out)  # and one of ours again
    assert again.config == config and dict(again.tensors).keys() == state.keys()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--vocab-size", "100"], "the tokenizer has 300 ids and the model only 100"),
        (["--tokenizer", "nowhere"], "tokenizer nowhere does not exist"),
    ],
)
def test_a_wrong_request_leaves_nothing(
    arguments: list[str], said: str, tiny_gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["import", str(tiny_gpt2), str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("./nowhere", "does not exist"),
        ("nowhere/at/all", "does not exist"),
        ("gone.gguf", "does not exist"),
        ("words.txt", "is no model file that minigpt knows"),
        ("empty", "it is empty"),
    ],
)
def test_sources_that_are_no_models(
    source: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    Path("words.txt").write_text("words")
    Path("empty").mkdir()
    assert main(["import", source, "out"]) == 2
    assert said in capsys.readouterr().err and not Path("out").exists()


def test_a_target_that_is_there_or_cannot_be(tiny_gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    assert main(["import", str(tiny_gpt2), str(tmp_path / "full")]) == 2
    assert main(["import", str(tiny_gpt2), str(tmp_path / "file")]) == 2
    assert main(["import", str(tiny_gpt2), str(tmp_path / "file" / "below")]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 3 and "Traceback" not in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full", "tiny"]


def test_a_tokenizer_that_cannot_be_used_is_left_out_with_a_line(
    tiny_gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tiny_gpt2 / "tokenizer.json").write_text("{}")
    assert main(["import", str(tiny_gpt2), str(tmp_path / "out")]) == 0
    assert "without its tokenizer: " in capsys.readouterr().err
    assert resolve_model(tmp_path / "out").tokenizer_path is None


# ---- what stands before every text -----------------------------------------------------------------------------------


def give_begin(folder: Path, nested: bool) -> int:
    """Let the tokenizer of a folder put its last token before every text, as Llama 3's does; gives its id."""
    content = json.loads((folder / "tokenizer.json").read_text())
    name, token_id = "<|endoftext|>", content["added_tokens"][0]["id"]
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": name, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {name: {"id": name, "ids": [token_id], "tokens": [name]}},
    }
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    content["post_processor"] = {"type": "Sequence", "processors": [byte_level, template]} if nested else template
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return int(token_id)


@pytest.mark.parametrize("nested", [True, False])
def test_a_token_before_every_text_goes_before_prompts(nested: bool, tiny_gpt2: Path, tmp_path: Path):
    tokenizers = pytest.importorskip("tokenizers")
    plain = minigpt.load(tiny_gpt2, device="cpu").encode(TEXT)
    begin = give_begin(tiny_gpt2, nested)
    theirs = tokenizers.Tokenizer.from_file(str(tiny_gpt2 / "tokenizer.json")).encode(TEXT).ids
    import_model(tiny_gpt2, tmp_path / "out")
    import_model(tmp_path / "out", tmp_path / "again", vocab_multiple=8)
    for folder in (tiny_gpt2, tmp_path / "out", tmp_path / "again"):
        loaded = minigpt.load(folder, device="cpu")
        assert loaded.encode(TEXT) == [begin, *plain] == theirs
        assert loaded.encode([1, 2]) == [1, 2], "ids are as they are given"


WRONG = {"single": [{"SpecialToken": {"id": "x"}}], "special_tokens": {"x": {"ids": ["a"]}}}
NOTHING = {"single": [3], "special_tokens": {}}


@pytest.mark.parametrize("template", [None, 3, {}, {"single": []}, WRONG, NOTHING])
def test_a_template_that_says_nothing(template: Any, tiny_gpt2: Path):
    content = json.loads((tiny_gpt2 / "tokenizer.json").read_text())
    processor = {"type": "TemplateProcessing", **template} if isinstance(template, dict) else template
    (tiny_gpt2 / "tokenizer.json").write_text(json.dumps({**content, "post_processor": processor}))
    assert begin_ids(tiny_gpt2) == ()


def test_what_another_program_changed_is_no_damage(tiny_gpt2: Path, tmp_path: Path):
    """An export lists its files with their sums, and a person may well edit its chat template."""
    assert main(["export", str(tiny_gpt2), str(tmp_path / "out")]) == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    (tmp_path / "out" / "config.json").write_text(json.dumps(config | {"note": "edited"}))
    assert resolve_model(tmp_path / "out").path == tmp_path / "out"
