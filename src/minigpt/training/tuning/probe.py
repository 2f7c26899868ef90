"""A few steps of a run in a process of its own, to see what they take: `python -m minigpt.training.tuning.probe`.

The request comes as one line of JSON on stdin; the process ends when the other end of stdin does, so that it never
outlives whoever asked. The answer is one line of JSON on stdout.
"""

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import torch

from minigpt.config import RequestError, WorkError, load_config
from minigpt.training.callbacks import Callback
from minigpt.training.run import train
from minigpt.training.setup import assemble
from minigpt.training.snapshots import copy_to_cpu
from minigpt.training.telemetry import peak_memory_mb
from minigpt.training.trainer import Trainer

OUT_OF_MEMORY = 3
"""Exit status of a process whose GPU had no more memory, or whose allocator gave up."""
_NO_MEMORY = "can't allocate memory"


class WorstMoment(Callback):
    """Holds a copy of the state from the first step on, as the writer of a checkpoint does while a step goes on."""

    def __init__(self) -> None:
        self.copies: dict[str, torch.Tensor] = {}

    def on_train_batch_end(self, trainer: Trainer, step: int) -> None:
        """Take it."""
        if not self.copies and trainer.device.type == "cpu":
            self.copies = copy_to_cpu(trainer.model.state_dict()) | copy_to_cpu(trainer.optimizer.tensors())


def main() -> int:
    """Do what was asked; the exit status."""
    request: dict[str, Any] = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        config, _ = load_config(request["config"])
        if request["only_prepare"]:
            assemble(config)
            print(json.dumps({}), flush=True)
            return 0
        limit = request["limit"]
        if limit is not None and config.run.device.startswith("cuda"):
            total = torch.cuda.get_device_properties(config.run.device).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total), config.run.device)
        folder = Path(request["run_dir"])
        train(config, run_dir=folder, resume="never", callbacks=[WorstMoment()] if request["copies"] else [])
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        speeds = [line["perf/tokens_per_second"] for line in lines if "perf/tokens_per_second" in line]
        device = torch.device(config.run.device if config.run.device != "auto" else "cpu")
        print(json.dumps({"peak": 1e6 * peak_memory_mb(device), "tokens_per_second": speeds[-1]}), flush=True)
        return 0
    except (RequestError, WorkError) as error:
        print(json.dumps({"error": str(error), "request": isinstance(error, RequestError)}), flush=True)
        return 1
    except (torch.OutOfMemoryError, MemoryError):
        return OUT_OF_MEMORY
    except RuntimeError as error:
        if _NO_MEMORY in str(error):
            return OUT_OF_MEMORY
        raise


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # threads that are still there have nothing more to do
