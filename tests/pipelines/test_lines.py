"""Blocks of whole lines: nothing is lost or torn, however small the pieces in which a file is read."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines import lines
from pipelines.lines import count_rows, cut_ranges, line_blocks

CALM = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@given(
    text=st.text("ab é\n\r", max_size=30),
    encoding=st.sampled_from(["utf-8", "utf-16", "utf-16-le", "latin-1"]),
    size=st.integers(1, 9),
)
@CALM
def test_blocks_are_whole_lines_and_together_the_file(
    tmp_path: Path, text: str, encoding: str, size: int
) -> None:
    path = tmp_path / "some.txt"
    path.write_bytes(text.encode(encoding))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "BLOCK_BYTES", size)
        blocks = list(line_blocks(path, encoding=encoding))
    assert all(block.endswith(b"\n") for block in blocks)
    ended = text if text.endswith("\n") or not text else f"{text}\n"
    assert b"".join(blocks).decode() == ended


@given(text=st.text("a \t\n\r", max_size=40), part_bytes=st.integers(1, 20))
@CALM
def test_ranges_cover_a_file_and_know_the_rows_before_them(
    tmp_path: Path, text: str, part_bytes: int
) -> None:
    content = text.encode()
    path = tmp_path / "some.txt"
    path.write_bytes(content)
    ranges = cut_ranges(path, part_bytes=part_bytes, count=count_rows)
    if ranges is None:
        assert any(len(line) >= part_bytes for line in content.split(b"\n"))
        return
    pieces = [content[item.start : item.stop] for item in ranges]
    assert b"".join(pieces) == content
    assert all(len(piece) <= part_bytes for piece in pieces)
    for item in ranges:
        before = content[: item.start].split(b"\n")
        assert item.first_row == sum(1 for line in before if line.strip())
        assert item.start == 0 or content[item.start - 1 : item.start] == b"\n"
