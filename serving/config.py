"""What an operator may set, and how many cores this process really has."""

import os
from pathlib import Path

from pydantic import Field

from recsys.config import Config

_CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")


class Limits(Config):
    """Sizes beyond which a request is refused with 413."""

    max_candidates: int = Field(default=2000, ge=1)
    max_list_length: int = Field(default=10_000, ge=1)


class ServiceConfig(Config):
    """Limits on a request before it is parsed, and the inference threads; none named means one a core."""

    max_body_bytes: int = Field(default=4 * 2**20, ge=1)
    body_timeout_seconds: float = Field(default=10.0, gt=0)
    threads: int | None = Field(default=None, ge=1)


def available_cores() -> int:
    """Cores that this process may use: its affinity, or its control group's quota if that is less."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = _CGROUP_QUOTA.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return cores
    # A quota of 1.5 cores keeps two threads busy three quarters of the time; one would waste a third of it.
    return cores if quota == "max" else max(1, min(cores, -(-int(quota) // int(period))))
