"""Raw days hold the rows of encoded ones: encoded as they are read, they are the same to the last bit."""

from pathlib import Path

import pytest

from pipelines.build import build, build_raw, fit
from recsys.days import open_days, open_form
from recsys.encode import load_encoder
from recsys.errors import ArtifactError
from recsys.layout import encoded_arrow
from recsys.raw_days import Raw
from tests.pipelines.small_pipeline import PIPELINE, SmallPipeline

EVENTS = """
[counters.shown]
by = ["user", "item"]
window_seconds = 86_400

[[filters]]
column = "item"
not_null = true
"""


def pipeline(folder: Path) -> SmallPipeline:
    """600 rows with nulls, a filter, a counter and a split in two."""
    lines = ["user,item,price,shown_at,clicked"]
    for row in range(600):
        price = "" if row % 7 == 0 else f"{row / 8}"
        item = "" if row % 11 == 0 else str(row % 30)
        at = f"2026-10-0{1 + row // 300}T10:{row % 60:02}:00Z"
        lines.append(f"u{row % 13},{item},{price},{at},{row % 3 == 0:d}")
    schema = SmallPipeline(folder).schema.replace(
        "[keys]", 'shown = "int64"\n\n[keys]\nkeep = ["price"]', 1
    )
    schema = schema.replace("[tasks]", 'shown = { kind = "numeric" }\n\n[tasks]', 1)
    return SmallPipeline(folder, schema, PIPELINE + EVENTS, {"log.csv": "\n".join(lines) + "\n"})


def test_raw_days_are_encoded_to_the_same_rows(tmp_path: Path) -> None:
    small = pipeline(tmp_path)
    fit(small.write(), tmp_path / "encoder")
    encoded = build(small.path, tmp_path / "data", encoder=tmp_path / "encoder")
    raw = build_raw(small.path, tmp_path / "raw")
    assert [(day.day, day.rows) for day in raw.days] == [
        (day.day, day.rows) for day in encoded.days
    ]
    encoder = load_encoder(tmp_path / "encoder")
    columns = encoded_arrow(encoder.schema).names
    for day in ("train", "test"):
        stored = open_days(tmp_path / "data", [day], encoder=encoder)
        read = open_form(tmp_path / "raw", [day], Raw(encoder))
        assert read.labels_digest == stored.labels_digest
        assert read.read(read.groups, columns).equals(stored.read(stored.groups, columns))
        assert read.label_means() == stored.label_means()


def test_raw_days_do_not_pass_for_encoded_ones(tmp_path: Path) -> None:
    small = pipeline(tmp_path)
    encoder = fit(small.write(), tmp_path / "encoder")
    build_raw(small.path, tmp_path / "raw", days=["train"])
    with pytest.raises(ArtifactError, match="holds a published raw day in place of the day"):
        open_days(tmp_path / "raw", ["train"], encoder=encoder)
