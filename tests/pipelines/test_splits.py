"""A split by the hash of a column that only the files know."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from recsys.errors import DataError
from recsys.schema import TIMESTAMP
from tests.pipelines.small_pipeline import PIPELINE, SmallPipeline


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view()], ids=str)
def test_a_hash_split_takes_text_as_other_tools_write_it(tmp_path: Path, kind: pa.DataType) -> None:
    names = pa.array([f"page-{number}" for number in range(20)])

    def numbers(visits: pa.Array) -> list[int]:
        return (
            _hash_split(tmp_path / str(visits.type), visits).batches()[0].assigned.number_B.tolist()
        )

    assert numbers(names.cast(kind)) == numbers(names)


def test_a_hash_split_of_numbers_that_are_no_ids_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the column of the split is double"):
        _hash_split(tmp_path, pa.array(np.arange(20) / 2)).batches()


def _hash_split(folder: Path, pages: pa.Array) -> SmallPipeline:
    """A pipeline split by `page`, a column that the schema does not declare."""
    count = len(pages)
    log = pa.table(
        {
            "user": pa.array(["ann"] * count),
            "item": pa.array(range(count)),
            "price": pa.array([1.0] * count, pa.float32()),
            "shown_at": pa.array(range(count), TIMESTAMP),
            "clicked": pa.array([True] * count),
            "page": pages,
        }
    )
    pipeline = PIPELINE.replace("log.csv", "log.parquet").replace('"csv"', '"parquet"')
    return SmallPipeline(
        folder,
        pipeline=pipeline.replace('by = "hash"', 'by = "hash"\ncolumn = "page"'),
        files={"log.parquet": log},
    )
