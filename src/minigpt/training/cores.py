"""How many CPU cores are really there for this process: more threads than that make every step slower, not faster."""

import os
from pathlib import Path

TOPOLOGY = Path("/sys/devices/system/cpu")
CGROUP = Path("/sys/fs/cgroup")


def available_cores() -> int:
    """Physical cores that this process may run on, within its container's quota of processor time. At least 1."""
    everywhere = not hasattr(os, "sched_getaffinity")
    cores = (os.cpu_count() or 1) if everywhere else _physical(os.sched_getaffinity(0))
    quota = _quota()
    return max(1, cores if quota is None else min(cores, round(quota)))


def _physical(cpus: set[int]) -> int:
    """Cores behind these logical CPUs: matrix products gain nothing from a core's second thread."""
    cores = set()
    for cpu in cpus:
        try:
            siblings = (TOPOLOGY / f"cpu{cpu}/topology/thread_siblings_list").read_text()
        except OSError:  # not Linux, or hidden: each counts
            siblings = str(cpu)
        cores.add(siblings.strip())
    return len(cores)


def _quota() -> float | None:
    """Cores' worth of time that the control group grants (`docker run --cpus`); None: no limit."""
    try:
        quota, period = (CGROUP / "cpu.max").read_text().split()  # cgroup v2
    except (OSError, ValueError):
        try:
            quota = (CGROUP / "cpu/cpu.cfs_quota_us").read_text().strip()  # cgroup v1
            period = (CGROUP / "cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if quota in ("max", "-1"):
        return None
    return int(quota) / int(period)
