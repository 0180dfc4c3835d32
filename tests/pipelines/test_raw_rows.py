"""`recsys rows` writes exactly the rows that `recsys build` encodes."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.build import build, fit
from pipelines.raw_rows import write_rows
from recsys.encode import load_encoder
from recsys.errors import DataError
from recsys.publish import resolve
from tests.pipelines.small_pipeline import SmallPipeline

BY_DAY = """
schema_file = "schema.toml"
fit_on = { from = "2026-10-01", to = "2026-10-02" }
[source]
path = "log.csv"
format = "csv"
[split]
by = "time"
"""
FIRST, SECOND = "2026-10-01", "2026-10-02"


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    return SmallPipeline(tmp_path / "log", pipeline=BY_DAY).write()


def test_encoding_the_rows_of_a_day_gives_the_published_day(pipeline: Path, tmp_path: Path) -> None:
    fit(pipeline, tmp_path / "encoder")
    build(pipeline, tmp_path / "data", encoder=tmp_path / "encoder")
    write_rows(pipeline, tmp_path / "rows.parquet", days=[FIRST])
    day = pq.read_table(resolve(tmp_path / "data" / FIRST, kind="day").path / "part-00000.parquet")
    encoded = load_encoder(tmp_path / "encoder").encode(pq.read_table(tmp_path / "rows.parquet"))
    # Without an impression key the row key is the row's place, which only the pipeline knows.
    own = [name for name in day.column_names if name not in ("row_key", "group")]
    assert day.num_rows == 2
    assert encoded.select(own).equals(day.select(own))


def test_all_days_come_in_the_order_of_the_files(pipeline: Path, tmp_path: Path) -> None:
    written = write_rows(pipeline, tmp_path / "rows.parquet")
    rows = pq.read_table(tmp_path / "rows.parquet")
    assert written.rows == 3
    assert rows.column("user").to_pylist() == ["ann", "bob", "ann"]
    assert rows.column("clicked").type == pa.bool_()


def test_a_limit_ends_the_reading(pipeline: Path, tmp_path: Path) -> None:
    assert write_rows(pipeline, tmp_path / "rows.parquet", days=[FIRST, SECOND], limit=1).rows == 1
    assert pq.read_table(tmp_path / "rows.parquet").num_rows == 1


def test_a_day_without_rows_is_an_error_and_writes_nothing(pipeline: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'2026-10-03' has no rows \(did you mean '2026-10-0[12]'"):
        write_rows(pipeline, tmp_path / "rows" / "out.parquet", days=["2026-10-03"])
    assert not list((tmp_path / "rows").iterdir())
