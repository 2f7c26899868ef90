"""Lets the tests of this folder import the random models beside them (random_hf.py, ...); one small GPT-2 folder."""

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

SIZES = {"vocab_size": 300, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2}


@pytest.fixture(scope="session")
def tiny_gpt2_made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 folder as transformers writes it, with a tokenizer of 300 ids, random weights and its head omitted."""
    import torch
    from safetensors.torch import save_file

    from minigpt.interop.huggingface.families import FAMILIES
    from minigpt.interop.tensors import to_theirs
    from minigpt.model import GPT
    from minigpt.tokenizer import train_bpe

    folder = tmp_path_factory.mktemp("tiny") / "gpt2"
    folder.mkdir()
    hf_config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], **SIZES}
    (folder / "config.json").write_text(json.dumps(hf_config))
    family = FAMILIES["gpt2"]
    config = family.read(hf_config)
    model = GPT(config, generator=torch.Generator().manual_seed(0))
    theirs = dict(to_theirs(family.rules(config), model.state_dict()))
    save_file(theirs, folder / "model.safetensors", {"format": "pt"})
    train_bpe(["the quick brown fox jumps over the lazy dog, 1234567890 times"] * 9, 300).save(folder)
    return folder


@pytest.fixture
def tiny_gpt2(tiny_gpt2_made: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    import shutil

    return Path(shutil.copytree(tiny_gpt2_made, tmp_path / "tiny"))
