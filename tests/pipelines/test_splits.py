"""Splits by the hash of a column that only the files know, and by rules."""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from recsys.errors import ConfigError, DataError
from recsys.schema import TIMESTAMP
from tests.pipelines.small_pipeline import CSV, PIPELINE, SmallPipeline


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view()], ids=str)
def test_a_hash_split_takes_text_as_other_tools_write_it(tmp_path: Path, kind: pa.DataType) -> None:
    names = pa.array([f"page-{number}" for number in range(20)])

    def numbers(visits: pa.Array) -> list[int]:
        return (
            _hash_split(tmp_path / str(visits.type), visits).batches()[0].assigned.number_B.tolist()
        )

    assert numbers(names.cast(kind)) == numbers(names)


def test_a_hash_split_of_numbers_that_are_no_ids_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the column of the split is float64"):
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


RULES = """by = "rules"
[split.rules]
early = { column = "shown_at", below = 2026-10-01T10:30:00Z }
second = { column = "item", equals = 2 }
rest = { column = "price", not_null = true }
"""


def _split_by(folder: Path, split: str, csv: str = CSV) -> SmallPipeline:
    pipeline = PIPELINE[: PIPELINE.index("by = ")] + split
    return SmallPipeline(folder, pipeline=pipeline, files={"log.csv": csv})


def _named(small: SmallPipeline) -> list[str]:
    return [
        rows.assigned.names[number] for rows in small.batches() for number in rows.assigned.number_B
    ]


def test_a_split_by_rules_takes_the_first_that_is_true(tmp_path: Path) -> None:
    csv = CSV + "ann,2,3.5,2026-10-01T09:00:00Z,1\nann,3,3.5,2026-10-03T09:00:00Z,1\n"

    assert _named(_split_by(tmp_path, RULES, csv)) == ["early", "second", "second", "early", "rest"]


def test_a_split_by_rules_reads_columns_that_the_schema_lacks(tmp_path: Path) -> None:
    csv = "\n".join(
        line + end for line, end in zip(CSV.split(), [",part", ",a", ",b", ",a"], strict=True)
    )
    rules = '[split.rules]\ntrain = { column = "part", equals = "a" }\ntest = { column = "part", equals = "b" }'

    assert _named(_split_by(tmp_path, f'by = "rules"\n{rules}', csv)) == ["train", "test", "train"]


def test_a_row_that_no_rule_takes_is_refused_by_its_number_in_the_file(tmp_path: Path) -> None:
    csv = CSV + "ann,3,,2026-10-03T09:00:00Z,1\n"

    with pytest.raises(DataError, match=r"log.csv, row 4: no rule of \[split\] is true"):
        _split_by(tmp_path, RULES, csv).batches()


@pytest.mark.parametrize(
    ("split", "said"),
    [
        ('by = "rules"', 'is needed with by = "rules"'),
        (RULES + "[split.parts]\na = 0.5\nb = 0.5", 'is needed with by = "hash"'),
        (RULES.replace("early", '"../early"'), "becomes a folder"),
        (RULES.replace('"rules"', '"rules"\ncolumn = "item"'), "takes neither column nor seed"),
        (RULES.replace("equals = 2", 'equals = "2"'), "split.rules.second: '2' cannot be compared"),
        (RULES.replace('by = "rules"', 'by = "time"'), 'is needed with by = "rules"'),
    ],
)
def test_an_impossible_split_by_rules_is_refused(tmp_path: Path, split: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        _split_by(tmp_path, split).plan()
