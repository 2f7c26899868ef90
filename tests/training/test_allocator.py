"""The allocator keeps what is freed (Linux with glibc), and training stays what it was."""

import subprocess
import sys

import pytest

from minigpt.config import load_config
from minigpt.training.allocator import THRESHOLDS, returned_bytes

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


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_blocks_from_the_threshold_on_go_back_to_the_system():
    code = """if True:
        import torch
        from minigpt.training.allocator import keep_freed_memory
        assert keep_freed_memory(below=2**23)
        def resident():
            return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS")) / 2**10
        x = torch.ones(2**23)  # 32 MiB
        before = resident()
        del x
        print(round(before - resident()))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 31


def test_the_threshold_is_a_layers_weights():
    config, _ = load_config({"preset": "gpt2-124m", "data": {"train": "x.txt"}})
    assert returned_bytes(config, 1) is None
    layer = 12 * 768**2 + 13 * 768  # products, their biases and the two norms
    assert returned_bytes(config, 2) == pytest.approx(2 * layer, rel=0.001)
    small = config.model_copy(update={"model": config.model.model_copy(update={"n_embd": 32, "n_head": 2})})
    assert returned_bytes(small, 2) == THRESHOLDS[0]
