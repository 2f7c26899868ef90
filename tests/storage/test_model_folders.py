"""Model folders say what they are, and the right one is found from whatever path a person gives."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from minigpt.config import ModelConfig, RequestError, WorkError
from minigpt.storage import (
    CorruptFolderError,
    build_model,
    load_model_config,
    load_state,
    lock_folder,
    require_trust,
    resolve_model,
    save_checkpoint,
    save_model,
)

CONFIG = ModelConfig(n_layer=1, n_head=2, n_embd=8, vocab_size=5, context_length=4, rope_theta=1e6, norm_eps=1e-5)
STATE = {"embed.weight": torch.arange(40.0).reshape(5, 8)}


def checkpoint(run: Path, step: int, tokenizer=None, loss: float | None = None) -> Path:
    return save_checkpoint(
        run,
        step,
        model_config=CONFIG,
        model_state=STATE,
        optimizer_state={},
        trainer_state={},
        tokenizer=tokenizer,
        loss_for_best=loss,
    )


def edit(folder: Path, **changes) -> Path:
    """Change config.json by hand, as a person would; the manifest goes, as it would not match."""
    (folder / "MANIFEST.json").unlink(missing_ok=True)
    content = {**json.loads((folder / "config.json").read_text()), **changes}
    (folder / "config.json").write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))
    return folder


@pytest.fixture
def folder(tmp_path, tokenizer) -> Path:
    save_model(tmp_path / "m", CONFIG, STATE, tokenizer, extra={"step": 5})
    return tmp_path / "m"


def test_config_json_is_flat_and_says_what_it_is(folder):
    content = json.loads((folder / "config.json").read_text())
    assert list(content)[:2] == ["model_type", "format_version"]
    assert content["model_type"] == "minigpt" and content["format_version"] == 1
    assert content["n_embd"] == 8 and content["extra"] == {"step": 5}
    assert "init_from" not in content
    assert load_model_config(folder) == CONFIG
    assert torch.equal(load_state(folder)["embed.weight"], STATE["embed.weight"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": ...}, "has no model_type"),
        ({"format_version": 2}, "newer minigpt .format_version 2"),
        ({"format_version": ...}, "format_version=None"),
        ({"n_head": 3}, "n_embd=8 is not divisible by model.n_head=3"),
        ({"n_head": "2"}, "n_head='2': "),
        ({"heads": 3}, "heads=3: "),
        ({"vocab_size": None}, "no vocab_size"),
    ],
)
def test_wrong_configs_are_one_sentence(folder, changes, message):
    edit(folder, **changes)
    for read in (load_model_config, resolve_model):
        with pytest.raises(RequestError, match=message) as caught:
            read(folder)
        assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_of_another_kind_is_found_but_read_elsewhere(folder):
    edit(folder, model_type="llama")
    assert resolve_model(folder).path == folder
    require_trust(folder)  # which no code of its own needs
    with pytest.raises(RequestError, match=r"is a Hugging Face 'llama' folder, .* with minigpt import"):
        load_model_config(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(RequestError, match=r"no model\.safetensors, no pytorch_model\.bin and no index"):
        resolve_model(folder)
    (folder / "pytorch_model.bin.index.json").write_text("{}")
    assert resolve_model(folder).path == folder


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_config_that_is_not_json(folder, text):
    edit(folder)
    (folder / "config.json").write_bytes(text)
    with pytest.raises(CorruptFolderError, match=r"config\.json is not JSON"):
        resolve_model(folder)


def test_paths_that_are_no_models(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("x")
    (tmp_path / "other" / "model").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("x")
    (tmp_path / "fresh" / "checkpoints").mkdir(parents=True)
    cases = {
        "absent": "does not exist",
        "empty": "it is empty",
        "other": "neither a run folder nor a model folder",
        "other/notes.txt": "is a file",
        "run": "has no checkpoint yet",
        "fresh": "has no usable checkpoint",
        "fresh/checkpoints/last": "has no usable checkpoint",
        "fresh/checkpoints/best": "has no best checkpoint",
    }
    for name, message in cases.items():
        with pytest.raises(RequestError, match=message):
            resolve_model(tmp_path / name)
    (edit(folder) / "model.safetensors").unlink()
    with pytest.raises(RequestError, match=r"has no model\.safetensors"):
        resolve_model(folder)


def test_model_folders_and_their_files(folder):
    for path in (folder, str(folder), folder / "config.json", folder / "model.safetensors"):
        found = resolve_model(path)
        assert (found.path, found.tokenizer_path, found.step) == (folder, folder / "tokenizer.json", None)
    edit(folder)
    (folder / "tokenizer.json").unlink()
    assert resolve_model(folder).tokenizer_path is None


def test_named_damaged_folder_is_an_error(folder):
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(CorruptFolderError, match=r"tokenizer\.json"):
        resolve_model(folder)


def test_run_folder_while_training_and_after(tmp_path, tokenizer):
    run = tmp_path / "run"
    with lock_folder(run):
        (run / "config.yaml").write_text("x")
        one, two = checkpoint(run, 1, loss=1.0), checkpoint(run, 2, tokenizer, loss=2.0)
        assert resolve_model(run, pytest.fail).path == two
        assert resolve_model(run).step == 2 and resolve_model(run).tokenizer_path == two / "tokenizer.json"
        assert resolve_model(run / "checkpoints").path == two
        assert resolve_model(run / "checkpoints" / "last").path == two
        assert resolve_model(run / "checkpoints" / "best").path == one
        assert resolve_model(one).step == 1
    save_model(run / "model", CONFIG, STATE, tokenizer)
    assert resolve_model(run, pytest.fail).path == run / "model"
    assert resolve_model(run / "checkpoints").path == two
    (run / "model" / "model.safetensors").write_bytes(b"x")
    lines = []
    assert resolve_model(run, lines.append).path == two
    assert len(lines) == 1 and "model.safetensors" in lines[0] and "newest checkpoint" in lines[0]
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(CorruptFolderError, match=r"model\.safetensors"):
        resolve_model(run)


def test_readers_pass_over_damaged_checkpoints_and_move_nothing(tmp_path):
    one, two = checkpoint(tmp_path, 1), checkpoint(tmp_path, 2)
    (two / "optimizer.safetensors").write_bytes(b"x")
    assert resolve_model(tmp_path, pytest.fail).path == two  # nobody reads the optimizer here
    (two / "model.safetensors").write_bytes(b"x")
    lines = []
    assert resolve_model(tmp_path, lines.append).path == one
    assert len(lines) == 1 and "step-00000002" in lines[0] and "model.safetensors" in lines[0]
    assert two.is_dir()
    with pytest.raises(CorruptFolderError):
        resolve_model(two)
    (two / "MANIFEST.json").unlink()
    with pytest.raises(CorruptFolderError, match=r"MANIFEST\.json is missing"):
        resolve_model(two)


def test_broken_pointers_still_lead_somewhere(tmp_path):
    two = checkpoint(tmp_path, 2, loss=math.nan)
    for content in (b"\xff", b"nonsense", b""):
        (tmp_path / "checkpoints" / "last").write_bytes(content)
        assert resolve_model(tmp_path / "checkpoints" / "last").path == two
    (tmp_path / "checkpoints" / "last").unlink()
    assert resolve_model(tmp_path / "checkpoints" / "last").path == two


def test_a_network_goes_to_disk_and_back(tmp_path):
    from minigpt.model import GPT

    model = GPT(CONFIG)
    model.init_weights(torch.Generator().manual_seed(3))
    save_model(tmp_path / "m", CONFIG, model.state_dict(), None)
    back = build_model(tmp_path / "m")
    ids = torch.tensor([[0, 1, 2, 3]])
    assert not back.training
    with torch.no_grad():
        assert torch.equal(back(ids), model.eval()(ids))
    state = dict(model.state_dict())
    name = next(iter(state))
    del state[name]
    save_model(tmp_path / "lacking", CONFIG, state, None)
    with pytest.raises(WorkError, match=f"lacks the tensor {name}"):
        build_model(tmp_path / "lacking")


def test_save_needs_a_known_vocabulary(tmp_path):
    with pytest.raises(ValueError, match="vocab_size"):
        save_model(tmp_path / "m", CONFIG.model_copy(update={"vocab_size": None}), STATE, None)
    assert list(tmp_path.iterdir()) == []
