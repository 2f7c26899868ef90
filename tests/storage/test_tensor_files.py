"""Tensor files: exact, deterministic, and safe to read whatever is in them."""

import json
import os
import pickle
import stat
import struct

import pytest
import torch
from safetensors import safe_open

from minigpt.config import RequestError, WorkError
from minigpt.storage import CorruptFolderError
from minigpt.storage.tensors import load_state_into, load_tensors, save_tensors


def some_tensors():
    generator = torch.Generator().manual_seed(1)
    return {
        "b.weight": torch.randn(3, 5, generator=generator),
        "a.weight": torch.randn(4, 2, generator=generator).bfloat16(),
        "half": torch.randn(7, generator=generator).half(),
        "step": torch.tensor(17.0),
        "count": torch.tensor([1, 2**60]),
        "flag": torch.tensor([True, False]),
        "empty": torch.zeros(0, 3),
        "odd": torch.tensor([float("nan"), float("-inf"), -0.0, 1e-45]),
        "turned": torch.randn(3, 4, generator=generator).T,
    }


def test_round_trip_to_the_bit(tmp_path):
    tensors = some_tensors()
    save_tensors(tmp_path / "x.safetensors", tensors)
    back = load_tensors(tmp_path / "x.safetensors")
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype and back[name].shape == tensor.shape
        as_bytes = [t.contiguous().reshape(-1).view(torch.uint8) for t in (back[name], tensor)] if tensor.dim() else []
        assert not as_bytes or torch.equal(*as_bytes)
    assert back["step"].item() == 17.0
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_equal_tensors_give_equal_bytes_in_any_order(tmp_path):
    tensors = some_tensors()
    save_tensors(tmp_path / "x", tensors)
    save_tensors(tmp_path / "y", dict(reversed(tensors.items())))
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


def test_file_has_the_permissions_of_any_other(tmp_path):
    (tmp_path / "plain").write_text("x")
    save_tensors(tmp_path / "x", some_tensors())
    assert stat.S_IMODE(os.stat(tmp_path / "x").st_mode) == stat.S_IMODE(os.stat(tmp_path / "plain").st_mode)


def test_loaded_tensors_are_ones_own(tmp_path):
    save_tensors(tmp_path / "x", {"a": torch.zeros(1000)})
    before = (tmp_path / "x").read_bytes()
    load_tensors(tmp_path / "x")["a"].fill_(5)
    assert (tmp_path / "x").read_bytes() == before


@pytest.mark.parametrize("name", ["_orig_mod.a", "module.a", "blocks.0._orig_mod.a", "_fsdp_wrapped_module.a"])
def test_wrapper_prefixes_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="wrapper"):
        save_tensors(tmp_path / "x", {name: torch.zeros(1)})


def header(content) -> bytes:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(data)) + data


class Payload:
    def __reduce__(self):
        return (os.mkdir, ("executed",))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 4,
        struct.pack("<Q", 2**63) + b"{}",
        header(b"not json"),
        header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}) + b"\0" * 7,
        header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 2**63]}}) + b"\0" * 8,
        header({"a": {"dtype": "F32", "shape": [2**62, 8], "data_offsets": [0, 8]}}) + b"\0" * 8,
        header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}) + b"\0" * 99,
        pickle.dumps(Payload()),
    ],
)
def test_bad_files_are_one_sentence_and_run_nothing(tmp_path, monkeypatch, data):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(CorruptFolderError, match=r"model\.safetensors is not a whole safetensors file"):
        load_tensors(tmp_path / "model.safetensors")
    assert not (tmp_path / "executed").exists()


def test_every_truncation_is_found(tmp_path):
    save_tensors(tmp_path / "x", {"a": torch.arange(10.0)})
    data = (tmp_path / "x").read_bytes()
    for length in range(len(data)):
        (tmp_path / "y").write_bytes(data[:length])
        with pytest.raises(WorkError):
            load_tensors(tmp_path / "y")


def test_missing_file(tmp_path):
    with pytest.raises(RequestError, match="does not exist"):
        load_tensors(tmp_path / "x")


def test_state_must_fit_the_module(tmp_path):
    module = torch.nn.Linear(3, 2)
    good = {"weight": torch.ones(2, 3), "bias": torch.ones(2)}
    cases = {
        "good": good,
        "lacks the tensor bias$": {"weight": torch.ones(2, 3)},
        r"unknown tensor extra \(and 1 more\)$": {**good, "extra": torch.ones(1), "more": torch.ones(1)},
        r"weight has the shape \(3, 2\) instead of \(2, 3\)$": {**good, "weight": torch.ones(3, 2)},
    }
    for number, (message, state) in enumerate(cases.items()):
        path = tmp_path / str(number)
        save_tensors(path, state)
        if message == "good":
            load_state_into(module, path)
            assert torch.equal(module.weight, good["weight"]) and torch.equal(module.bias, good["bias"])
        else:
            with pytest.raises(WorkError, match=message):
                load_state_into(module, path)
