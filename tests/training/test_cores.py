"""Counting cores: affinity, siblings and quotas, on made-up machines."""

import os

import pytest

from minigpt.training import cores


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with these logical CPUs, siblings and quota files."""

    def make(siblings, allowed, **files):
        for cpu, text in siblings.items():
            folder = tmp_path / f"cpu{cpu}/topology"
            folder.mkdir(parents=True)
            (folder / "thread_siblings_list").write_text(text + "\n")
        for name, text in files.items():
            path = tmp_path / "cgroup" / name.replace("__", "/").replace("cpu_", "cpu.")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        monkeypatch.setattr(cores, "TOPOLOGY", tmp_path)
        monkeypatch.setattr(cores, "CGROUP", tmp_path / "cgroup")
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(allowed), raising=False)
        return cores.available_cores()

    return make


FOUR_OF_TWO = {0: "0,4", 4: "0,4", 1: "1,5", 5: "1,5"}


def test_two_threads_of_a_core_are_one(machine):
    assert machine(FOUR_OF_TWO, [0, 1, 4, 5]) == 2


def test_only_the_allowed_ones_count(machine):
    assert machine(FOUR_OF_TWO, [0, 4]) == 1


def test_without_a_topology_each_counts(machine):
    assert machine({}, [0, 1, 2]) == 3


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu_max": "150000 100000\n"}, 2),
        ({"cpu_max": "50000 100000\n"}, 1),
        ({"cpu_max": "max 100000\n"}, 4),
        ({"cpu__cpu_cfs_quota_us": "200000\n", "cpu__cpu_cfs_period_us": "100000\n"}, 2),
        ({"cpu__cpu_cfs_quota_us": "-1\n", "cpu__cpu_cfs_period_us": "100000\n"}, 4),
    ],
)
def test_a_container_s_quota(machine, files, expected):
    assert machine({}, [0, 1, 2, 3], **files) == expected


def test_this_machine():
    assert 1 <= cores.available_cores() <= (os.cpu_count() or 1)
