"""Meeting the other processes, and meshes that cannot be."""

import socket
from typing import Any

import processes
import pytest

from minigpt.config import Config, RequestError, WorkError
from minigpt.config.mesh import refuse_mesh, settle_mesh
from minigpt.parallel.launch import end_world, start_world


def config_of(mesh: dict[str, int] | None = None, **sections: dict[str, Any]) -> Config:
    model = {"vocab_size": 64, "n_layer": 2, "n_head": 4, "n_kv_head": 4, "n_embd": 64, "context_length": 16}
    training = {"batch_tokens": 128, "micro_batch": 1, "max_steps": 1} | sections.pop("training", {})
    distributed = {"mesh": mesh or {}} | sections.pop("distributed", {})
    return Config.model_validate(
        {"model": model, "training": training, "data": {"train": ["x"]}, "distributed": distributed} | sections
    )


@pytest.mark.parametrize(
    ("mesh", "processes_", "sizes"),
    [
        ({}, 1, [1, 1, 1, 1, 1]),
        ({}, 6, [1, 6, 1, 1, 1]),
        ({"fsdp": 2}, 8, [1, 4, 2, 1, 1]),
        ({"dp": 2, "tp": 2}, 4, [1, 2, 1, 1, 2]),
        ({"pp": 2, "cp": 2}, 4, [2, 1, 1, 2, 1]),
    ],
)
def test_dp_is_what_the_others_leave(mesh, processes_, sizes):
    assert list(settle_mesh(config_of(mesh), processes_).values()) == sizes


@pytest.mark.parametrize(
    ("mesh", "processes_", "said"),
    [
        (
            {"fsdp": 2},
            1,
            "{fsdp: 2} needs 2 processes, and this run is one process: start it with --nproc 2 or torchrun",
        ),
        ({"fsdp": 2}, 3, "{fsdp: 2} needs a multiple of 2 processes, and this run has 3: start it with --nproc 2"),
        ({"dp": 2, "fsdp": 2}, 2, "{dp: 2, fsdp: 2} needs 4 processes, and this run has 2"),
        ({"dp": 1}, 2, "{dp: 1} needs 1 process, and this run has 2"),
    ],
)
def test_another_number_of_processes_is_refused(mesh, processes_, said):
    with pytest.raises(RequestError) as caught:
        settle_mesh(config_of(mesh), processes_)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("mesh", "sections", "said"),
    [
        ({"dp": 3}, {}, "training.batch_tokens=128 is 8 rows of 16, which 3 processes cannot share equally: use 144"),
        (
            {"dp": 4},
            {"training": {"micro_batch": 4}},
            "a batch of 8 rows into 2, which 4 .*: set training.micro_batch=2",
        ),
        ({"dp": 2}, {"schedule": {"accumulation": [[0, 2], [5, 3]]}}, "has 3 micro-batches, .*: use a multiple of 2"),
        ({"dp": 2}, {"run": {"device": "cuda:1"}}, "run.device=cuda:1 is one device"),
        ({"dp": 2}, {"run": {"device": "mps"}}, "run.device=mps is one device"),
        ({"fsdp": 2}, {"distributed": {"gather": "bf16"}}, "set training.precision=bf16, or distributed.gather=fp32"),
    ],
)
def test_what_a_mesh_cannot_do(mesh, sections, said):
    config = config_of(mesh, **sections)
    if "distributed" in sections:
        config = config.model_copy(update={"distributed": config.distributed.model_copy(update={"gather": "bf16"})})
    with pytest.raises(RequestError, match=said):
        refuse_mesh(config, settle_mesh(config, next(iter(mesh.values()))))


def test_the_micro_batch_that_is_advised_works():
    for rows in (8, 12, 20):
        for micro in (divisor for divisor in range(1, rows + 1) if rows % divisor == 0):
            config = config_of({"dp": 4}, training={"batch_tokens": rows * 16, "micro_batch": micro})
            try:
                refuse_mesh(config, {"pp": 1, "dp": 4, "fsdp": 1, "cp": 1, "tp": 1})
            except RequestError as error:
                advised = int(str(error).rsplit("=", 1)[1])
                better = config_of({"dp": 4}, training={"batch_tokens": rows * 16, "micro_batch": advised})
                refuse_mesh(better, {"pp": 1, "dp": 4, "fsdp": 1, "cp": 1, "tp": 1})


# ---- several processes -------------------------------------------------------------------------------------------


def meet(mesh: dict[str, int]) -> dict[str, list[int]]:
    """Who is in which group."""
    import torch.distributed as dist

    world = start_world(config_of(mesh))
    groups = {name: dist.get_process_group_ranks(group) for name, group in world.groups.items()}
    places = world.collect(world.place)
    assert places[world.rank] == world.place
    assert sorted(world.collect(world.rank)) == list(range(world.size))
    for name, ranks in groups.items():
        for dimension in world.place:
            here = {places[rank][dimension] for rank in ranks}
            assert len(here) == (world.sizes[dimension] if dimension in name.split("+") else 1)
        box = [world.rank]
        dist.broadcast_object_list(box, src=ranks[0], group=world.groups[name])
        assert box == [ranks[0]]
    assert world.group("cp") is None
    end_world(world)
    return groups


def test_groups_of_every_combination():
    results = processes.run(4, __file__, "meet", {"dp": 2, "fsdp": 2})
    assert results[1]["dp"] == [1, 3]
    assert results[1]["fsdp"] == [0, 1]
    assert results[1]["dp+fsdp"] == results[1]["dp+fsdp+cp"] == [0, 1, 2, 3]
    assert results[3]["fsdp+cp"] == [2, 3]


def refused(mesh: dict[str, int]) -> tuple[str, str]:
    try:
        start_world(config_of(mesh, distributed={"timeout_seconds": 1.0}))
    except (RequestError, WorkError) as error:
        return type(error).__name__, str(error)
    return "", ""


def test_a_port_in_use_is_named_on_every_process():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        results = processes.run(2, __file__, "refused", {}, MASTER_PORT=str(port))
    assert [kind for kind, _ in results] == ["WorkError", "WorkError"]
    assert results[0][1] == (
        f"process 0 of 2 could not meet the others at 127.0.0.1:{port}: another program has that port: choose another "
        "(torchrun --master-port, or MASTER_PORT)"
    )
    assert f"process 1 of 2 could not meet the others at 127.0.0.1:{port}" in results[1][1]


def test_a_wrong_mesh_is_refused_by_every_process_alike():
    results = processes.run(2, __file__, "refused", {"fsdp": 4})
    assert results[0] == results[1]
    assert results[0][0] == "RequestError"


def test_variables_that_are_wrong(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(RequestError, match="WORLD_SIZE=two is no number"):
        start_world(config_of())


def test_too_few_gpus_are_refused_by_every_process(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    for name, value in {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RequestError, match="4 processes of this machine need a GPU each, and there are 2"):
        start_world(config_of())


def test_one_process_alone_meets_nobody(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    world = start_world(config_of())
    assert world.size == 1
    assert world.control is None
    end_world(world)
