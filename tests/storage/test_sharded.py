"""Checkpoints that several processes write together: what is read back, whole and box by box, and what others read."""

import errno
import os
from pathlib import Path

import processes
import pytest
import torch

from minigpt.config import ModelConfig, WorkError
from minigpt.storage import CorruptFolderError, fs, verify_folder
from minigpt.storage.checkpoint import load_checkpoint, load_latest, save_sharded_checkpoint, verify_model
from minigpt.storage.parts import Box, Part
from minigpt.storage.tensors import load_tensors

CONFIG = ModelConfig(n_layer=1, n_head=2, n_embd=8, vocab_size=5, context_length=4)
WHOLE = {
    "embed.weight": torch.arange(7 * 4).reshape(7, 4).float() / 3,
    "blocks.0.qkv.weight": torch.arange(12 * 4).reshape(12, 4).float().sin(),
    "norm.weight": torch.arange(5).bfloat16(),
}


def fused(rank: int, size: int, rows: int, columns: int) -> Part:
    """A share of each of three matrices that lie above each other: three boxes."""
    third, mine = rows // 3, rows // 3 // size
    boxes = (Box((i * third + rank * mine, 0), (mine, columns), (i * mine, 0)) for i in range(3))
    return Part((rows, columns), (3 * mine, columns), tuple(boxes))


def held(rank: int, size: int) -> tuple[dict, dict]:
    """What a process holds: rows of the first, a share of the second as of fused heads, all of the third."""
    rows = -(-7 // size)  # the last process has fewer rows, as with FSDP
    parts = {
        "embed.weight": Part.whole((7, 4)).rows(min(7, rank * rows), min(7, (rank + 1) * rows)),
        "blocks.0.qkv.weight": fused(rank, size, 12, 4),
        "norm.weight": Part.whole((5,), rank, size),
    }
    model = {name: (part, part.cut(WHOLE[name])) for name, part in parts.items()}
    moments = {f"{name}.exp_avg": (part, -tensor) for name, (part, tensor) in model.items()}
    return model, moments | {"norm.weight.step": (Part.whole((), rank, size), torch.tensor(3.0))}


def save(run: str) -> str:
    """In each process: a save for which one of them has no room, then one that works. What the first one says."""
    torch.distributed.init_process_group("gloo")
    group = torch.distributed.group.WORLD
    model, optimizer = held(group.rank(), group.size())
    arguments = {
        "model_config": CONFIG, "model": model, "optimizer": optimizer, "trainer_state": {"rank": group.rank()},
        "tokenizer": None, "loss_for_best": 1.0,
    }  # fmt: skip
    write = fs.write_chunks
    if group.rank() == 1:
        fs.write_chunks = full
    with pytest.raises(WorkError) as error:
        save_sharded_checkpoint(Path(run), 1, group, **arguments)
    torch.distributed.barrier()
    assert list((Path(run) / "checkpoints").iterdir()) == []
    torch.distributed.barrier()
    fs.write_chunks = write
    save_sharded_checkpoint(Path(run), 1, group, **arguments)
    assert load_checkpoint(Path(run) / "checkpoints" / "step-00000001").step == 1  # in place on every process
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    return str(error.value)


def full(path: Path, chunks: object) -> None:
    path.write_bytes(b"x")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def expected_optimizer() -> dict[str, torch.Tensor]:
    return {f"{name}.exp_avg": -tensor for name, tensor in WHOLE.items()} | {"norm.weight.step": torch.tensor(3.0)}


def test_two_processes_write_one_checkpoint(tmp_path):
    said = processes.run(2, __file__, "save", str(tmp_path))
    no_room = f"process 1 could not write {tmp_path}/checkpoints/step-00000001: no space left on device"
    assert said == [f"{no_room}; there was no checkpoint before"] * 2

    folder = tmp_path / "checkpoints" / "step-00000001"
    verify_folder(folder)
    files = sorted(path.name for path in folder.iterdir())
    shards = [name for name in files if name.startswith("optimizer")]
    rest = ["MANIFEST.json", "config.json", "model.safetensors", "trainer_state.json"]
    assert files == sorted([*rest, *shards]) and len(shards) > 2
    assert shards[0] == f"optimizer-00001-of-{len(shards):05d}.safetensors"
    assert (tmp_path / "checkpoints" / "last").read_text() == "step-00000001\n"

    loaded = load_latest(tmp_path, pytest.fail)
    assert loaded.trainer_state == {"rank": 0} and loaded.loss == 1.0
    for found, wanted in ((loaded.model_state, WHOLE), (loaded.optimizer_state, expected_optimizer())):
        assert set(found) == set(wanted)
        for name, tensor in wanted.items():
            assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name
    assert {k: v.tolist() for k, v in load_tensors(folder / "model.safetensors").items()} == {
        k: v.tolist() for k, v in WHOLE.items()
    }
    for size in (1, 3):  # as if it went on with another number of processes
        for rank in range(size):
            for name, (part, tensor) in held(rank, size)[1].items():
                read = part.take(lambda offset, box, name=name: loaded.optimizer_state.read(name, offset, box), tensor)
                assert torch.equal(read, tensor), (name, rank, size)

    from torch.distributed import checkpoint as dcp

    names = [name for name in expected_optimizer() if name != "norm.weight.step"]
    into = {name: torch.zeros_like(expected_optimizer()[name]) for name in names}
    with pytest.warns(UserWarning, match="single process"):
        dcp.load(into, storage_reader=dcp.HuggingFaceStorageReader(str(folder)))
    for name in names:
        assert torch.equal(into[name], expected_optimizer()[name]), name

    (folder / shards[0]).write_bytes((folder / shards[0]).read_bytes()[:-1])
    verify_model(folder)  # what is damaged is the optimizer's
    with pytest.raises(CorruptFolderError, match=shards[0]):
        load_checkpoint(folder)
