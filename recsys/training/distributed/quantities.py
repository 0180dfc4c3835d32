"""Amounts as people write and read them: `80GB`, `3.35TB`, `1.0e12`."""

import re

from recsys.errors import ConfigError

_DECIMAL = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}
_BINARY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_UNITS = _DECIMAL | _BINARY
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([kMGTP]|[KMGT]i)?B")


def parse_bytes(text: str, *, where: str) -> int:
    """Bytes of a text such as `80GB` (10^9) or `80GiB` (2^30). Raises ConfigError that begins with `where`."""
    found = _AMOUNT.fullmatch(text.strip())
    amount = 0 if found is None else int(float(found[1]) * _UNITS[found[2] or ""])
    if not amount:
        raise ConfigError(
            f"{where}: found {text!r}, which is no amount of bytes; write one such as 80GB or 80GiB"
        )
    return amount


def bytes_text(count: float) -> str:
    """Bytes with three digits and a decimal unit: `516 GB`, `33.6 MB`, `0 B`."""
    return f"{_scaled(count, _DECIMAL)}B"


def count_text(count: float) -> str:
    """A number with three digits and a letter: `1.03T`, `512`."""
    return _scaled(count, _DECIMAL).replace(" ", "").replace("G", "B")


def _scaled(count: float, units: dict[str, int]) -> str:
    """The number in the largest unit that leaves at least 1, as `516 G`. Rounding may not lead into the next unit."""
    unit = "".join(name for name, size in units.items() if count >= 0.9995 * size and name)[-1:]
    value = count / units[unit]
    digits = 0 if value >= 99.95 or not unit else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f} {unit}"
