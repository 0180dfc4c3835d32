"""Files of named tensors: whatever blocks they were written by, they read as the whole tensors."""

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from recsys import tensor_files
from recsys.errors import ArtifactError
from recsys.tensor_files import Block, read_tensors, row_blocks, stored_tensors, write_blocks

ROWS = torch.arange(24.0).view(6, 4)
SUMS = torch.arange(6.0) + 100
SHAPES = {"empty": (0, 4), "rows": (6, 4), "sums": (6,)}


def test_blocks_of_rows_and_columns_make_the_tensors(tmp_path: Path) -> None:
    file = tmp_path / "tables.safetensors"
    blocks = [
        Block("rows", (4, 0), ROWS[4:]),
        Block("rows", (0, 0), ROWS[:4, :1]),
        Block("rows", (0, 1), ROWS[:4, 1:]),
        Block("sums", (2,), SUMS[2:]),
        Block("sums", (0,), SUMS[:2]),
        Block("empty", (0, 0), torch.zeros(0, 4)),
    ]

    write_blocks(file, SHAPES, blocks)

    found = safetensors.torch.load_file(file)
    assert found.keys() == SHAPES.keys()
    assert torch.equal(found["rows"], ROWS)
    assert torch.equal(found["sums"], SUMS)
    assert found["empty"].shape == (0, 4)


def test_the_numbers_begin_where_they_may_be_mapped(tmp_path: Path) -> None:
    for name in ("a", "ab", "abc", "abcd", "abcde", "abcdef", "abcdefg", "abcdefgh"):
        file = tmp_path / name
        write_blocks(file, {name: (3,)}, [Block(name, (0,), SUMS[:3])])
        assert int.from_bytes(file.read_bytes()[:8], "little") % 8 == 0
        assert torch.equal(read_tensors(file)[name], SUMS[:3])


def test_parts_are_read_without_the_rest(tmp_path: Path) -> None:
    file = tmp_path / "tables.safetensors"
    write_blocks(file, {"rows": (6, 4)}, [Block("rows", (0, 0), ROWS)])

    found = stored_tensors(file)["rows"]
    assert found.shape == (6, 4)
    assert torch.equal(found[1:3, 2:4], ROWS[1:3, 2:4])
    assert torch.equal(found[4:], ROWS[4:])
    assert found[6:6, 0:4].shape == (0, 4)
    assert torch.equal(found.take(torch.tensor([5, 0, 5])), ROWS[[5, 0, 5]])


def test_a_tensor_larger_than_a_block_is_written_and_read_by_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two rows of four numbers.
    monkeypatch.setattr(tensor_files, "_BLOCK_BYTES", 32)
    assert list(row_blocks(slice(1, 6), 4)) == [slice(1, 3), slice(3, 5), slice(5, 6)]
    assert list(row_blocks(slice(0, 2), 100)) == [slice(0, 1), slice(1, 2)]
    written: list[int] = []
    numbers = tensor_files._numbers

    def watched(values: torch.Tensor) -> Any:
        written.append(len(values))
        return numbers(values)

    monkeypatch.setattr(tensor_files, "_numbers", watched)
    file = tmp_path / "tables.safetensors"

    write_blocks(
        file, {"rows": (6, 4)}, [Block("rows", (1, 0), ROWS[1:]), Block("rows", (0, 0), ROWS[:1])]
    )

    assert written == [2, 2, 1, 1]
    assert torch.equal(safetensors.torch.load_file(file)["rows"], ROWS)


def test_a_model_without_tables_has_a_file_without_tensors(tmp_path: Path) -> None:
    write_blocks(tmp_path / "none", {}, [])
    assert read_tensors(tmp_path / "none") == {}


def test_a_file_that_holds_no_tensors_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "tables.safetensors"
    file.write_bytes(b"nothing of the kind")
    for read in (stored_tensors, read_tensors):
        with pytest.raises(ArtifactError, match=r"tables\.safetensors: cannot be read"):
            read(file)


def test_a_file_that_is_cut_short_or_holds_other_numbers_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "tables.safetensors"
    write_blocks(file, {"sums": (6,)}, [Block("sums", (0,), SUMS)])
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="cannot be read"):
        stored_tensors(file)
    safetensors.torch.save_file({"sums": SUMS.double()}, file)
    with pytest.raises(ArtifactError, match="cannot be read"):
        stored_tensors(file)
