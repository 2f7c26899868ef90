"""What the processes agree on."""

import processes
import pytest

from minigpt.parallel.world import World


def agree() -> list[float]:
    import torch.distributed as dist

    dist.init_process_group("gloo")
    world = World(rank=dist.get_rank(), size=dist.get_world_size(), control=dist.group.WORLD)
    total = world.sum([0.1 * (world.rank + 1), 1.0])
    assert world.tell(world.rank) == 0
    assert world.collect(world.rank) == list(range(world.size))
    world.wait()
    dist.destroy_process_group()
    return total


def test_sums_have_the_same_bits_everywhere():
    results = processes.run(3, __file__, "agree")
    assert results[0] == results[1] == results[2] == [0.1 + 0.2 + 0.30000000000000004, 3.0]


def fail() -> None:
    raise ValueError("no such thing")


def test_an_error_in_a_process_is_raised_here():
    with pytest.raises(RuntimeError, match="no such thing"):
        processes.run(2, __file__, "fail")


def test_one_process_needs_no_others():
    world = World()
    assert world.sum([1, 2]) == [1.0, 2.0]
    assert world.tell("a") == "a"
    assert world.collect("a") == ["a"]
    assert world.group("dp", "tp") is None
