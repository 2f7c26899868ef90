"""GPUs by the names that drivers and people give them."""

import pytest

from minigpt.config import RequestError
from minigpt.config.hardware import GPUS, Machines, find_gpu, parse_machines


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H100 NVL", "H100 NVL"),
        ("NVIDIA A100-SXM4-40GB", "A100 40GB"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA A10", "A10"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L4", "L4"),
        ("Tesla V100-SXM2-32GB", "V100"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("h200", "H200"),
    ],
)
def test_a_driver_s_name(said, meant):
    found = find_gpu(said)
    assert found is not None and found.name == meant


def test_an_unknown_one():
    assert find_gpu("Quadro K2000") is None and find_gpu("H1000") is None


def test_every_one_is_found_by_its_own_name():
    for gpu in GPUS:
        assert find_gpu(gpu.name) is gpu
        assert parse_machines(gpu.name.replace(" ", "-") + "x8") == [Machines(gpu, 8)]  # as the messages write it
        assert gpu.single <= gpu.half and 0 < gpu.memory < 1e12


def test_machines_are_said_in_several_ways():
    said = [str(machines) for machines in parse_machines("H100x8, 4 x A100,4090")]
    assert said == ["8 x H100", "4 x A100", "RTX 4090"]


@pytest.mark.parametrize("wrong", ["K2000", "", "H100x0", "8xH100x8", "x8"])
def test_what_is_no_machine(wrong):
    with pytest.raises(RequestError, match="--gpus"):
        parse_machines(wrong)


def test_tf32_is_half_of_bf16_where_it_is_allowed():
    gpu = find_gpu("A100")
    assert gpu.peak("bf16") == 2 * gpu.peak("fp32", tf32=True) and gpu.peak("fp32") == 19.5e12
