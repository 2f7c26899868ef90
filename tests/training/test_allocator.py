"""The allocator keeps what is freed (Linux with glibc), and training stays what it was."""

import subprocess
import sys

import pytest

MEASURE = """
import resource, sys
import torch
from minigpt.training.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
for _ in range(3):
    torch.ones(2**23)  # 32 MiB, which the system clears page by page whenever it is new
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(2**23)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
@pytest.mark.slow
def test_large_blocks_are_reused():
    def faults(what: str) -> int:
        done = subprocess.run([sys.executable, "-c", MEASURE, what], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    kept = faults("keep")
    if faults("leave") < 1000:
        pytest.skip("this system's allocator keeps blocks by itself")
    assert kept < 1000
