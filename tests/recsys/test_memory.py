"""What a step frees is there for the next one."""

import subprocess
import sys

# Blocks of 64 MiB, taken and given back: how often the system had to hand out their pages, out of eight times.
_TIMES = """
import resource
import numpy as np
from recsys.memory import keep_freed_memory

def times():
    np.ones(2**23)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        np.ones(2**23)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return faults * resource.getpagesize() / 2**26

print(times())
assert keep_freed_memory()
print(times())
"""


def test_kept_memory_is_not_asked_for_again() -> None:
    found = subprocess.run(
        [sys.executable, "-c", _TIMES], capture_output=True, text=True, check=True
    )
    before, kept = map(float, found.stdout.split())
    # The interpreter itself takes a few pages.
    assert kept < 0.1
    # Huge pages, where a system gives them to everybody, need fewer faults; otherwise this is 8.
    assert before > kept
