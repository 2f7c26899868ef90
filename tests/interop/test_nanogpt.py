"""nanoGPT's ckpt.pt: against transformers' GPT-2 with the exact GELU, which is the same network."""

import os
import random

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from minigpt.config import RequestError, WorkError
from minigpt.interop.importing import import_model
from minigpt.interop.nanogpt import read_nanogpt
from minigpt.model import GPT
from minigpt.storage import CorruptFolderError, build_model

SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 12, "vocab_size": 30}


def checkpoint(bias: bool = True, compiled: bool = False, sizes: dict[str, int] = SIZES) -> dict:
    """What train.py of nanoGPT saves."""
    C, generator = sizes["n_embd"], torch.Generator().manual_seed(0)
    shapes = {"wte": (sizes["vocab_size"], C), "wpe": (sizes["block_size"], C), "ln_f": (C,)}
    for i in range(sizes["n_layer"]):
        shapes |= {f"h.{i}.ln_1": (C,), f"h.{i}.attn.c_attn": (3 * C, C), f"h.{i}.attn.c_proj": (C, C),
                   f"h.{i}.ln_2": (C,), f"h.{i}.mlp.c_fc": (4 * C, C), f"h.{i}.mlp.c_proj": (C, 4 * C)}  # fmt: skip
    state = {}
    for name, shape in shapes.items():
        state[f"transformer.{name}.weight"] = torch.randn(shape, generator=generator)
        if bias and name not in ("wte", "wpe"):
            state[f"transformer.{name}.bias"] = torch.randn(shape[0], generator=generator)
    state["lm_head.weight"] = state["transformer.wte.weight"]
    prefix = "_orig_mod." if compiled else ""
    return {
        "model": {prefix + name: tensor for name, tensor in state.items()},
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]},
        "model_args": {**sizes, "bias": bias, "dropout": 0.1},
        "iter_num": 2000,
        "best_val_loss": torch.tensor(1.47),
        "config": {"out_dir": "out", "compile": True},
    }


def reference(content: dict) -> GPT2LMHeadModel:
    state, sizes = content["model"], content["model_args"]
    config = GPT2Config(n_layer=sizes["n_layer"], n_head=sizes["n_head"], n_embd=sizes["n_embd"],
                        n_positions=sizes["block_size"], vocab_size=sizes["vocab_size"], activation_function="gelu",
                        attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0)  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    matrices = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    given = {name.removeprefix("_orig_mod."): tensor for name, tensor in state.items()}
    given = {name: tensor.T if name.endswith(matrices) else tensor for name, tensor in given.items()}
    zeros = {name: torch.zeros_like(t) for name, t in model.state_dict().items() if name.endswith(".bias")}
    model.load_state_dict(zeros | given)
    return model


@torch.no_grad()
@pytest.mark.parametrize(("bias", "compiled"), [(True, True), (False, False)])
def test_logits_are_those_of_the_same_network(tmp_path, bias, compiled):
    content = checkpoint(bias, compiled)
    torch.save(content, tmp_path / "ckpt.pt")
    imported = read_nanogpt(tmp_path / "ckpt.pt")
    model = GPT(imported.config)
    model.load_state_dict(dict(imported.tensors))
    ids = torch.randint(30, (2, 12))
    torch.testing.assert_close(model.eval()(ids), reference(content)(ids).logits, rtol=1e-5, atol=1e-4)
    assert imported.config.dropout == 0.1 and "give it with --tokenizer" in imported.notes[0]


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("seed", range(20))
def test_random_sizes(tmp_path, seed):
    draw = random.Random(seed)
    heads = draw.randint(1, 5)
    sizes = {"n_layer": draw.randint(1, 4), "n_head": heads, "n_embd": heads * draw.randint(1, 9),
             "block_size": draw.randint(1, 40), "vocab_size": draw.randint(2, 99)}  # fmt: skip
    content = checkpoint(draw.random() < 0.5, draw.random() < 0.5, sizes)
    torch.save(content, tmp_path / "ckpt.pt")
    import_model(tmp_path / "ckpt.pt", tmp_path / "model")
    ids = torch.randint(sizes["vocab_size"], (2, sizes["block_size"]))
    got, expected = build_model(tmp_path / "model")(ids), reference(content)(ids).logits
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4)


def test_files_of_before_the_option_bias_and_of_before_zip_files(tmp_path):
    content = checkpoint()
    del content["model_args"]["bias"], content["model_args"]["dropout"]
    content["model"]["transformer.h.0.attn.bias"] = torch.ones(1, 1, 12, 12).tril()
    torch.save(content, tmp_path / "ckpt.pt", _use_new_zipfile_serialization=False)
    imported = read_nanogpt(tmp_path / "ckpt.pt")
    assert imported.config.bias and len(dict(imported.tensors)) == 2 + 2 + 2 * 12


class Bomb:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_a_pickle_that_would_run_code_is_refused_and_did_not_run(tmp_path):
    content = {**checkpoint(), "config": Bomb(f"touch {tmp_path / 'ran'}")}
    torch.save(content, tmp_path / "ckpt.pt")
    with pytest.raises(WorkError, match="is refused: reading it would run code"):
        read_nanogpt(tmp_path / "ckpt.pt")
    assert not (tmp_path / "ran").exists()


def test_wrong_files_are_one_sentence(tmp_path):
    path = tmp_path / "ckpt.pt"

    def refused(content: object, error: type[Exception], message: str) -> None:
        torch.save(content, path)
        with pytest.raises(error, match=message):
            read_nanogpt(path)

    refused([1, 2], RequestError, "is not a checkpoint of nanoGPT: it has no model and model_args")
    refused({"model": checkpoint()["model"]}, RequestError, "is not a checkpoint of nanoGPT")
    content = checkpoint()
    del content["model"]["transformer.h.1.ln_2.bias"]
    refused(content, WorkError, "lacks the tensor transformer.h.1.ln_2.bias")
    content = checkpoint()
    content["model"]["transformer.extra"] = torch.ones(1)
    refused(content, WorkError, "unknown tensor transformer.extra")
    content = checkpoint()
    content["model_args"]["block_size"] = 13
    refused(content, WorkError, r"transformer.wpe.weight has the shape \(12, 16\) instead of \(13, 16\)")
    content["model_args"]["block_size"] = "long"
    refused(content, RequestError, "block_size='long'")
    content = checkpoint()
    content["model_args"]["n_head"] = 3
    refused(content, RequestError, "n_embd=16 is not divisible by model.n_head=3")
    content = checkpoint()
    content["model"]["lm_head.weight"] = content["model"]["lm_head.weight"] + 1
    refused(content, WorkError, "has a head of its own")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CorruptFolderError):
        read_nanogpt(path)
