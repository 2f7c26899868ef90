"""Tensors that lie in pieces in several files: any box of them, from any pieces; and files that do not fit together."""

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from minigpt.config import RequestError
from minigpt.storage import CorruptFolderError, tensor_files
from minigpt.storage.tensor_files import PLACES, TYPES, TensorFiles, write_whole
from minigpt.storage.tensors import load_tensors, save_tensors


def write_pieces(path: Path, pieces: dict[str, tuple[tuple[int, ...], torch.Tensor]], **metadata: str) -> Path:
    places = {name: {"saved_offsets": list(offset)} for name, (offset, _) in pieces.items()}
    tensors = {name: tensor.contiguous() for name, (_, tensor) in pieces.items()}
    save_file(tensors, path, metadata={PLACES: json.dumps(places), **metadata})
    return path


@st.composite
def grids(draw) -> tuple[tuple[int, ...], list[list[tuple[int, int]]]]:
    """A shape, and by dimension where it is cut."""
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    cuts = []
    for size in shape:
        inner = draw(st.lists(st.integers(1, size - 1), unique=True, max_size=2)) if size > 1 else []
        edges = [0, *sorted(inner), size]
        cuts.append(list(itertools.pairwise(edges)))
    return shape, cuts


@settings(max_examples=25, deadline=None)
@given(grids(), st.data())
def test_any_box_of_any_pieces(tmp_path_factory, grid, data):
    shape, cuts = grid
    whole = torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape)
    folder = tmp_path_factory.mktemp("pieces")
    places = [[]]
    for edges in cuts:
        places = [[*place, edge] for place in places for edge in edges]
    paths = []
    for number, place in enumerate(places):
        piece = whole[tuple(slice(a, b) for a, b in place)]
        paths.append(write_pieces(folder / f"{number}", {"x": (tuple(a for a, _ in place), piece)}))
    files = TensorFiles(data.draw(st.permutations(paths)))
    assert files.shape("x") == shape and torch.equal(files["x"], whole)
    offset = tuple(data.draw(st.integers(0, size - 1)) for size in shape)
    size = tuple(data.draw(st.integers(0, n - a)) for n, a in zip(shape, offset, strict=True))
    expected = whole[tuple(slice(a, a + n) for a, n in zip(offset, size, strict=True))]
    found = files.read("x", offset, size)
    assert found.dtype == expected.dtype and torch.equal(found, expected)


def test_writing_whole_tensors_gives_the_bytes_that_saving_them_gives(tmp_path):
    tensors = {"b.weight": torch.randn(4, 6), "a.weight": torch.randn(5), "scale": torch.tensor(2.0)}
    save_tensors(tmp_path / "expected", tensors)
    first = write_pieces(
        tmp_path / "1", {"b.weight": ((0, 0), tensors["b.weight"][:3]), "a.weight": ((0,), tensors["a.weight"])}
    )
    second = write_pieces(
        tmp_path / "2", {"b.weight": ((3, 0), tensors["b.weight"][3:]), "scale": ((), tensors["scale"])}
    )
    write_whole(tmp_path / "found", TensorFiles([first, second]))
    assert (tmp_path / "found").read_bytes() == (tmp_path / "expected").read_bytes()


def test_files_that_are_put_together_are_not_all_mapped_at_once(tmp_path, monkeypatch):
    tensors = {str(i): torch.randn(1000) for i in range(10)}
    save_tensors(tmp_path / "x", tensors)
    monkeypatch.setattr(tensor_files, "MAPPED_BYTES", 8000)
    opened = []
    monkeypatch.setattr(tensor_files, "_open", lambda *args, of=tensor_files._open: opened.append(args) or of(*args))
    write_whole(tmp_path / "y", TensorFiles([tmp_path / "x"]))
    assert (tmp_path / "y").read_bytes() == (tmp_path / "x").read_bytes()
    assert len(opened) == 4  # after each 3 tensors of 4,000 bytes


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads /proc")
def test_closed_files_are_not_mapped_and_can_be_read_again(tmp_path):
    tensors = {"a": torch.randn(100_000), "b": torch.randn(100_000)}
    save_tensors(tmp_path / "x", tensors)
    files = TensorFiles([tmp_path / "x"])

    def mapped() -> bool:
        return str(tmp_path / "x") in Path("/proc/self/maps").read_text()

    assert torch.equal(files["a"], tensors["a"]) and mapped()
    files.close()
    assert not mapped() and list(files) == ["a", "b"]
    assert torch.equal(files["b"], tensors["b"])


def test_types_of_all_kinds(tmp_path):
    tensors = {
        **{str(i): torch.tensor([i, 2]).to(dtype) for i, dtype in enumerate(TYPES.values())},
        "flag": torch.tensor([True, False, True]), "half": torch.randn(3).half(), "count": torch.tensor([1, 2**60]),
        "small": torch.tensor([3], dtype=torch.uint8), "odd": torch.tensor([math.nan, -0.0]), "none": torch.zeros(0, 3),
    }  # fmt: skip
    save_tensors(tmp_path / "x", tensors)
    write_whole(tmp_path / "y", TensorFiles([tmp_path / "x"]))
    assert (tmp_path / "y").read_bytes() == (tmp_path / "x").read_bytes()
    back = load_tensors(tmp_path / "y")
    assert back.keys() == tensors.keys() and all(back[name].dtype == tensors[name].dtype for name in tensors)


def test_files_that_do_not_belong_together(tmp_path):
    x = torch.zeros(4, 2)
    top, bottom = (
        write_pieces(tmp_path / n, {"x": (o, t)}) for n, o, t in (("1", (0, 0), x[:2]), ("2", (2, 0), x[2:]))
    )
    assert TensorFiles([top, bottom])["x"].shape == (4, 2)
    with pytest.raises(CorruptFolderError, match="2 and the files that belong to it do not make x"):
        TensorFiles([bottom])
    other = write_pieces(tmp_path / "3", {"x": ((2, 0), x[2:].half())})
    with pytest.raises(CorruptFolderError, match="3 does not say where its pieces belong"):
        TensorFiles([top, other])
    for places in ("[]", "{}", "nonsense", '{"x": {"saved_offsets": [0]}}', '{"x": {"saved_offsets": [-1, 0]}}'):
        save_file({"x": x}, tmp_path / "bad", metadata={PLACES: places})
        with pytest.raises(CorruptFolderError, match="bad does not say where its pieces belong"):
            TensorFiles([tmp_path / "bad"])
    (tmp_path / "cut").write_bytes(top.read_bytes()[:-1])
    with pytest.raises(CorruptFolderError, match="cut is not a whole safetensors file"):
        TensorFiles([tmp_path / "cut"])
    with pytest.raises(RequestError, match="absent does not exist"):
        TensorFiles([tmp_path / "absent"])
    with pytest.raises(KeyError):
        TensorFiles([top, bottom])["y"]
    assert len(TensorFiles([])) == 0
