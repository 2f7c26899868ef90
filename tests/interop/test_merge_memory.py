"""How much memory a merge takes: near one model's, whatever the method and however many models there are."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from minigpt.config import ModelConfig
from minigpt.model import GPT
from minigpt.storage import save_model

CONFIG = ModelConfig(n_layer=4, n_head=8, n_embd=768, vocab_size=16000, context_length=32)
MERGE = """
import re, sys
from pathlib import Path
from minigpt.interop.merge.run import merge_models
from minigpt.interop.merge import methods, sources

def peak():  # not getrusage's, which also counts what the program that started this one had taken
    return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

before = peak()
base, out, method, *models = sys.argv[1:]
merge_models(out, models, method=method, **({"base": base} if method == "ties" else {}))
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_memory_stays_near_one_model(tmp_path: Path):
    for number in range(6):
        model = GPT(CONFIG, generator=torch.Generator().manual_seed(number))
        save_model(tmp_path / str(number), CONFIG, model.state_dict(), None)
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    assert size > 100_000_000  # so that a model is much against what else is there

    def peak(method: str, count: int) -> float:
        """In models, beyond what PyTorch takes."""
        models = [str(tmp_path / str(number)) for number in range(1, 1 + count)]
        arguments = [str(tmp_path / "0"), str(tmp_path / f"{method}-{count}"), method, *models]
        done = subprocess.run([sys.executable, "-c", MERGE, *arguments], capture_output=True, text=True, check=True)
        return int(done.stdout) / size

    few, many = peak("linear", 2), peak("linear", 5)
    assert few < 1.7 and many < few + 0.3
    assert peak("ties", 5) < 2
