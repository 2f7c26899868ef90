"""How much memory there is for a run."""

from pathlib import Path

import torch

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def available_memory(device: torch.device) -> float | None:
    """Bytes that this process could take: free ones of a GPU, or of main memory, within the container's limit.

    None where the system does not tell.
    """
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    found = [size for size in (_free(), _granted()) if size is not None]
    return min(found) if found else None


def _free() -> float | None:
    """What the system could give without swapping (Linux)."""
    try:
        for line in MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024.0 * int(line.split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return None


def _granted() -> float | None:
    """What the control group has left (`docker run --memory`); None: no limit."""
    for limit, used in (
        ("memory.max", "memory.current"),  # cgroup v2
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),  # v1
    ):
        try:
            granted = (CGROUP / limit).read_text().strip()
            if granted != "max":
                return max(0.0, float(granted) - float((CGROUP / used).read_text()))
        except (OSError, ValueError):
            continue
    return None
