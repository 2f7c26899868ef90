"""Hugging Face folders in every shape in which weights come, and all that can be wrong with them."""

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from minigpt.config import RequestError, WorkError
from minigpt.interop import import_model
from minigpt.interop.huggingface.families import FAMILIES
from minigpt.interop.huggingface.reading import build_model, read_config, read_state
from minigpt.storage import CorruptFolderError

State = dict[str, torch.Tensor]
WEIGHTS, BIN = "model.safetensors", "pytorch_model.bin"


@pytest.fixture
def expected(tiny_gpt2: Path) -> State:
    return read_state(tiny_gpt2)


def take_weights(folder: Path) -> State:
    """The tensors of the folder, whose file is gone then."""
    state = load_file(folder / WEIGHTS)
    state = {name: tensor.clone() for name, tensor in state.items()}
    (folder / WEIGHTS).unlink()
    return state


def shards(folder: Path, state: State, name: str, write: Callable[[State, Path], Any]) -> None:
    stem, ending = name.rsplit(".", 1)
    places: dict[str, str] = {}
    for number in range(3):
        file = f"{stem}-0000{number + 1}-of-00003.{ending}"
        part = {key: tensor for i, (key, tensor) in enumerate(state.items()) if i % 3 == number}
        write(part, folder / file)
        places |= dict.fromkeys(part, file)
    (folder / f"{name}.index.json").write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))


def old_format(state: State, path: Path) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


def without_prefix(state: State) -> State:
    return {name.removeprefix("transformer."): tensor for name, tensor in state.items()}


def with_old_tables(state: State) -> State:
    masks = {f"transformer.h.{i}.attn.bias": torch.ones(1, 1, 32, 32).tril() for i in range(2)}
    return state | masks | {"transformer.h.0.attn.masked_bias": torch.tensor(-1e4)}


def with_head(state: State) -> State:
    return state | {"lm_head.weight": state["transformer.wte.weight"].clone()}


SHAPES: dict[str, Callable[[Path, State], None]] = {
    "sharded": lambda folder, state: shards(folder, state, WEIGHTS, save_file),
    "bin": lambda folder, state: torch.save(state, folder / BIN),
    "old bin": lambda folder, state: old_format(state, folder / BIN),
    "sharded bin": lambda folder, state: shards(folder, state, BIN, torch.save),
    "without the prefix": lambda folder, state: save_file(without_prefix(state), folder / WEIGHTS),
    "with tables": lambda folder, state: save_file(with_old_tables(state), folder / WEIGHTS),
    "with its head": lambda folder, state: save_file(with_head(state), folder / WEIGHTS),
    "fp64": lambda folder, state: save_file({k: t.double() for k, t in state.items()}, folder / WEIGHTS),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_gives_the_same_weights(shape: str, tiny_gpt2: Path, expected: State):
    SHAPES[shape](tiny_gpt2, take_weights(tiny_gpt2))
    found = read_state(tiny_gpt2)
    assert found.keys() == expected.keys()
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == torch.float32 for name, tensor in expected.items()
    )


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_narrow_numbers_become_the_fp32_that_they_are(kind: torch.dtype, tiny_gpt2: Path, expected: State):
    state = {name: tensor.to(kind) for name, tensor in take_weights(tiny_gpt2).items()}
    save_file(state, tiny_gpt2 / WEIGHTS)
    found = read_state(tiny_gpt2)
    assert all(torch.equal(found[name], tensor.to(kind).float()) for name, tensor in expected.items())


def test_the_model_is_in_evaluation_mode_and_on_its_own_memory(tiny_gpt2: Path):
    model = build_model(tiny_gpt2)
    assert not model.training and model.config == read_config(tiny_gpt2)
    (tiny_gpt2 / WEIGHTS).write_bytes(b"")  # mapped weights would be lost now
    assert model(torch.tensor([[1, 2, 3]])).isfinite().all()


# ---- tensors that do not fit -----------------------------------------------------------------------------------------


def lacking(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if not name.endswith("c_fc.weight")}


def spare(state: State) -> State:
    return state | {"transformer.h.0.attn.extra.weight": torch.zeros(2)}


def misshapen(state: State) -> State:
    return state | {"transformer.h.1.attn.c_attn.weight": state["transformer.h.1.attn.c_attn.weight"].T.contiguous()}


def another_head(state: State) -> State:
    return state | {"lm_head.weight": state["transformer.wte.weight"] + 1}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lacking, r"it lacks the tensor transformer\.h\.0\.mlp\.c_fc\.weight \(and 1 more\)"),
        (spare, r"it has the unknown tensor transformer\.h\.0\.attn\.extra\.weight"),
        (
            misshapen,
            r"the tensor transformer\.h\.1\.attn\.c_attn\.weight has the shape \(48, 16\) instead of \(16, 48\)",
        ),
        (another_head, r"it has a head of its own \(lm_head\.weight\)|has a head of its own \(lm_head\.weight\)"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    change: Callable[[State], State], said: str, tiny_gpt2: Path, tmp_path: Path
):
    save_file(change(take_weights(tiny_gpt2)), tiny_gpt2 / WEIGHTS)
    for act in (lambda: build_model(tiny_gpt2), lambda: import_model(tiny_gpt2, tmp_path / "out")):
        with pytest.raises(WorkError, match=said) as caught:
            act()
        assert "\n" not in str(caught.value) and str(tiny_gpt2) in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny"], "nothing is left"


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda tensor: tensor.to(torch.int8), "int8"),
        (lambda tensor: tensor.to(torch.float8_e4m3fn), "float8_e4m3fn"),
        (lambda tensor: tensor.to(torch.bool), "bool"),
        (lambda tensor: tensor.to(torch.complex64), "complex64"),
        (lambda tensor: tensor.to_sparse(), "sparse_coo"),
        (lambda tensor: tensor.to("meta"), "no"),
    ],
)
def test_numbers_that_mean_nothing_alone(change: Callable, kind: str, tiny_gpt2: Path, tmp_path: Path):
    state, name = take_weights(tiny_gpt2), "transformer.ln_f.weight"
    torch.save(state | {name: change(state[name])}, tiny_gpt2 / BIN)
    for act in (lambda: build_model(tiny_gpt2), lambda: import_model(tiny_gpt2, tmp_path / "out")):
        with pytest.raises(WorkError, match=rf"the tensor {name} holds {kind} numbers: minigpt reads fp32, bf16"):
            act()
    assert not (tmp_path / "out").exists()


# ---- files that are not what they should be --------------------------------------------------------------------------


def header(fields: Any, body: bytes = b"") -> bytes:
    text = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return struct.pack("<Q", len(text)) + text + body


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 7,
        struct.pack("<Q", 1 << 62) + b"{}",  # a header of four exabytes
        struct.pack("<Q", 99_999_999) + b"{}",
        header(b"{" * 100_000),
        header(b"\xff\xfe\xfd"),
        header({"transformer.wte.weight": F32}),  # offsets beyond the file
        header({"transformer.wte.weight": {**F32, "data_offsets": [8, 0]}}, b"\x00" * 8),
        header({"transformer.wte.weight": {**F32, "data_offsets": [-8, 8]}}, b"\x00" * 8),
        header({"transformer.wte.weight": {**F32, "shape": [1 << 62]}}, b"\x00" * 8),
        header({"transformer.wte.weight": {**F32, "shape": [-2]}}, b"\x00" * 8),
        header({"transformer.wte.weight": {**F32, "dtype": "F99"}}, b"\x00" * 8),
        header({"a": F32, "b": F32}, b"\x00" * 8),  # two tensors in one place
        header([F32], b"\x00" * 8),
        pickle.dumps({"transformer.wte.weight": 1}),
    ],
)
def test_a_damaged_or_malicious_header(content: bytes, tiny_gpt2: Path):
    (tiny_gpt2 / WEIGHTS).write_bytes(content)
    with pytest.raises(CorruptFolderError, match=r"model\.safetensors is not a whole safetensors file") as caught:
        build_model(tiny_gpt2)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_truncated_file(tiny_gpt2: Path):
    content = (tiny_gpt2 / WEIGHTS).read_bytes()
    for length in (9, 100, len(content) // 2, len(content) - 1):
        (tiny_gpt2 / WEIGHTS).write_bytes(content[:length])
        with pytest.raises(CorruptFolderError, match="not a whole safetensors file"):
            build_model(tiny_gpt2)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 1500), new=st.binary(min_size=1, max_size=8))
def test_whatever_the_first_bytes_are_nothing_but_a_sentence_comes(
    place: int, new: bytes, tiny_gpt2_made: Path, tmp_path: Path
):
    content = bytearray((tiny_gpt2_made / WEIGHTS).read_bytes())
    content[place : place + len(new)] = new
    (tmp_path / WEIGHTS).write_bytes(content)
    (tmp_path / "config.json").write_bytes((tiny_gpt2_made / "config.json").read_bytes())
    try:
        build_model(tmp_path)
    except (WorkError, RequestError) as error:
        assert "\n" not in str(error)


class Runs:
    """What a stranger may put into a pickle."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (os.system, (f"touch {self.proof}",))


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tiny_gpt2: Path, tmp_path: Path):
    state, proof = take_weights(tiny_gpt2), tmp_path / "it-ran"
    for content in ({**state, "x": Runs(proof)}, Runs(proof)):
        for write in (torch.save, old_format):
            write(content, tiny_gpt2 / BIN)
            with pytest.raises(WorkError, match=r"refused: reading it would run code of its own .*system\)") as caught:
                build_model(tiny_gpt2)
            assert "safetensors" in str(caught.value) and "\n" not in str(caught.value)
    pickle.loads(pickle.dumps(Runs(proof)))
    assert proof.exists(), "the pickle would have run"
    proof.unlink()
    with pytest.raises(WorkError):
        import_model(tiny_gpt2, tmp_path / "out")
    assert not proof.exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"\x80\x02", b"words", pickle.dumps({"a": 1}, 4), pickle.dumps([1, 2], 2), b"PK\x03\x04" + b"\x00" * 99],
)
def test_a_bin_that_is_none(content: bytes, tiny_gpt2: Path):
    take_weights(tiny_gpt2)
    (tiny_gpt2 / BIN).write_bytes(content)
    with pytest.raises(WorkError) as caught:
        build_model(tiny_gpt2)
    assert "pytorch_model.bin" in str(caught.value) and "\n" not in str(caught.value)


def test_a_truncated_bin(tiny_gpt2: Path):
    state = take_weights(tiny_gpt2)
    for write in (torch.save, old_format):
        write(state, tiny_gpt2 / BIN)
        content = (tiny_gpt2 / BIN).read_bytes()
        (tiny_gpt2 / BIN).write_bytes(content[: len(content) // 2])
        with pytest.raises(WorkError, match=r"pytorch_model\.bin"):
            build_model(tiny_gpt2)


@pytest.mark.parametrize("name", [WEIGHTS, BIN])
def test_a_pointer_of_git_is_called_what_it_is(name: str, tiny_gpt2: Path):
    take_weights(tiny_gpt2)
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 548105171\n"
    (tiny_gpt2 / name).write_text(pointer)
    with pytest.raises(CorruptFolderError, match=rf"{name} only says where the file is: fetch it with git lfs pull"):
        build_model(tiny_gpt2)


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ("{", "is not a list of which tensor is in which file"),
        ("[]", "is not a list of which"),
        ('{"weight_map": {"a": 1}}', "is not a list of which"),
        (
            '{"weight_map": {"a": "../outside.safetensors"}}',
            r"it names '\.\./outside\.safetensors', which is not a file",
        ),
        ('{"weight_map": {"a": "/etc/passwd"}}', "it names '/etc/passwd', which is not a file beside it"),
        ('{"weight_map": {"a": "gone.safetensors"}}', r"gone\.safetensors is missing"),
        ('{"weight_map": {"a": "one.safetensors"}}', r"one\.safetensors lacks the tensor a"),
    ],
)
def test_an_index_that_is_wrong(index: str, said: str, tiny_gpt2: Path):
    save_file(take_weights(tiny_gpt2), tiny_gpt2 / "one.safetensors")
    (tiny_gpt2 / f"{WEIGHTS}.index.json").write_text(index)
    with pytest.raises(WorkError, match=said):
        build_model(tiny_gpt2)


# ---- what minigpt has no way to run ----------------------------------------------------------------------------------


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_an_unknown_architecture_names_the_known_ones(tiny_gpt2: Path):
    edit(tiny_gpt2, model_type="bert")
    with pytest.raises(
        RequestError, match=r"'bert' model, which minigpt cannot read; it reads gpt2, llama, .*qwen3"
    ) as caught:
        build_model(tiny_gpt2)
    assert all(name in str(caught.value) for name in FAMILIES)


def test_a_quantised_model_is_refused(tiny_gpt2: Path):
    edit(tiny_gpt2, quantization_config={"quant_method": "gptq"})
    with pytest.raises(RequestError, match="quantised model"):
        build_model(tiny_gpt2)
    edit(tiny_gpt2, quantization_config=None)
    build_model(tiny_gpt2)


def test_more_layers_than_any_model_has_are_refused_at_once(tiny_gpt2: Path):
    edit(tiny_gpt2, n_layer=10**9)
    for act in (build_model, read_config):
        with pytest.raises(RequestError, match="says that it has 1,000,000,000 layers: minigpt reads at most 1,000"):
            act(tiny_gpt2)


def test_a_folder_without_weights(tiny_gpt2: Path, tmp_path: Path):
    take_weights(tiny_gpt2)
    with pytest.raises(RequestError, match=r"no model\.safetensors, no pytorch_model\.bin and no index"):
        import_model(tiny_gpt2, tmp_path / "out")
    with pytest.raises(RequestError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        build_model(tiny_gpt2)
