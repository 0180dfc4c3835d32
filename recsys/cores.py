"""How many cores this process really has."""

import os
from pathlib import Path

_CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def available_cores() -> int:
    """Cores that this process may use: its affinity, or its control group's quota if that is less."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = _CGROUP_QUOTA.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return cores
    # A quota of 1.5 cores keeps two threads busy three quarters of the time; one would waste a third of it.
    return cores if quota == "max" else max(1, min(cores, -(-int(quota) // int(period))))
