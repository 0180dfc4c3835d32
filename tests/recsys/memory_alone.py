"""What a process of its own needs of memory to read a run: `python -m tests.recsys.memory_alone WHAT RUN OUT`.

WHAT is "export" or "load". It prints a JSON object in bytes: by how much the process grew at its peak (`grown`, mapped
files included), and by how much memory of its own (`private`).
"""

import json
import sys
import threading
from pathlib import Path

from recsys.export import export
from recsys.run import load_run

_SAMPLE_SECONDS = 0.002


def main(what: str, run: Path, out: Path) -> None:
    before = _status()
    peak = dict(before)
    done = threading.Event()
    watching = threading.Thread(target=_watch, args=(peak, done))
    watching.start()
    try:
        if what == "export":
            export(run, out)
        else:
            load_run(run)
    finally:
        done.set()
        watching.join()
    grown = _status()["VmHWM"] - before["VmHWM"]
    private = peak["RssAnon"] - before["RssAnon"]
    print(json.dumps({"grown": grown, "private": private}))  # noqa: T201


def _watch(peak: dict[str, int], done: threading.Event) -> None:
    while not done.wait(_SAMPLE_SECONDS):
        for name, found in _status().items():
            peak[name] = max(peak[name], found)


def _status() -> dict[str, int]:
    """Numbers of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    fields = (line.split() for line in lines if line.endswith(" kB"))
    return {name.removesuffix(":"): 1024 * int(kib) for name, kib, _ in fields}


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
