"""The CPU's library keeps few kernels, whatever shapes it meets."""

import os
import subprocess
import sys

import pytest

from minigpt.model.kernels import KERNELS, keep_few_kernels

NAMES = "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"

GROW = """
import sys
import torch
from minigpt.inference.loaded import pick_device
if sys.argv[1] == "few":
    pick_device("cpu")
def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS")) / 2**10
torch.set_num_threads(1)
weight = torch.randn(512, 384, dtype=torch.bfloat16)
def products(first, last):
    for rows in range(first, last):
        torch.randn(rows, 384, dtype=torch.bfloat16) @ weight.t()
products(1, 200)
before = resident()
products(200, 800)
print(resident() - before)
"""


def test_the_user_has_the_last_word(monkeypatch):
    monkeypatch.setenv(NAMES[0], "7")
    monkeypatch.delenv(NAMES[1], raising=False)
    keep_few_kernels()
    assert [os.environ[name] for name in NAMES] == ["7", str(KERNELS)]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_shapes():
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}

    def growth(what: str) -> float:
        done = subprocess.run([sys.executable, "-c", GROW, what], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return float(done.stdout)

    many = growth("many")
    if many < 100:
        pytest.skip("no kernels are kept for bf16 on this processor")
    assert growth("few") < many / 5  # MiB
