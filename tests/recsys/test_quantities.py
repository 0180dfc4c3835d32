"""Amounts of bytes as people write and read them."""

import pytest

from recsys.errors import ConfigError
from recsys.training.distributed.quantities import bytes_text, count_text, parse_bytes


@pytest.mark.parametrize(
    ("text", "count"),
    [("80GB", 80 * 10**9), ("80GiB", 80 * 2**30), ("3.35TB", 3_350_000_000_000), ("512 B", 512)],
)
def test_amounts_are_read_with_their_units(text: str, count: int) -> None:
    assert parse_bytes(text, where="--hbm") == count


@pytest.mark.parametrize("text", ["80", "80 apples", "GB", "-1GB", "0GB", "1e9B"])
def test_an_amount_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^--hbm: found "):
        parse_bytes(text, where="--hbm")


def test_amounts_are_written_with_three_digits() -> None:
    assert [bytes_text(count) for count in (0, 999, 1000, 9_994, 9_996, 516e9, 999_600)] == [
        "0 B",
        "999 B",
        "1.00 kB",
        "9.99 kB",
        "10.0 kB",
        "516 GB",
        "1.00 MB",
    ]
    assert [count_text(count) for count in (26, 1_500_000_000, 1_024_000_000_000)] == [
        "26",
        "1.50B",
        "1.02T",
    ]
