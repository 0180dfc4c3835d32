"""Files to typed rows: every format, every conversion, and one clear sentence for everything that is wrong."""

import datetime
import gzip
import json
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import files, rows
from pipelines.rows import Tally
from recsys.errors import ConfigError, DataError, UserError
from tests.pipelines.small_pipeline import CSV, PIPELINE, SCHEMA, SmallPipeline

UTC = datetime.UTC


def parquet(path: Path, **columns: pa.Array) -> SmallPipeline:
    """The small pipeline over one Parquet file; `columns` replace those of the log."""
    log: dict[str, pa.Array] = {
        "user": pa.array(["ann", "bob"]),
        "item": pa.array([1, 2]),
        "price": pa.array([1.0, 2.0]),
        "shown_at": pa.array([0, 1], pa.timestamp("us", tz="UTC")),
        "clicked": pa.array([True, False]),
    }
    table = pa.table(
        {name: values for name, values in (log | columns).items() if values is not None}
    )
    text = PIPELINE.replace("log.csv", "log.parquet").replace('"csv"', '"parquet"')
    return SmallPipeline(path, pipeline=text, files={"log.parquet": table})


def refusal(pipeline: SmallPipeline, kind: type[UserError] = DataError) -> str:
    """The one sentence that a pipeline fails with."""
    with pytest.raises(kind) as caught:
        pipeline.rows()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_csv_with_header_becomes_typed_rows_with_nulls(tmp_path: Path) -> None:
    first, second, third = SmallPipeline(tmp_path).rows()
    assert first == {
        "user": "ann",
        "item": 1,
        "price": 2.5,
        "shown_at": datetime.datetime(2026, 10, 1, 10, tzinfo=UTC),
        "clicked": True,
    }
    assert second["price"] is None
    assert third["clicked"] is True


def test_csv_without_header_strips_blanks_before_it_looks_for_nulls(tmp_path: Path) -> None:
    settings = """
[csv]
header = false
names = ["user", "item", "price", "shown_at", "clicked"]
strip = true
nulls = ["?"]
"""
    text = "ann, 1, ?, 2026-10-01, 1\n ?, 2, 3, 2026-10-01, 0\n"
    first, second = SmallPipeline(
        tmp_path, pipeline=PIPELINE + settings, files={"log.csv": text}
    ).rows()
    assert (first["user"], first["item"], first["price"]) == ("ann", 1, None)
    assert (second["user"], second["price"]) == (None, 3.0)


def test_gz_other_delimiters_renames_and_lists_are_read(tmp_path: Path) -> None:
    schema = SCHEMA.replace(
        'price = "float32"', 'price = "float32"\ntags = "list<string>"'
    ).replace("[tasks]", 'tags = { kind = "multi_valued", table = "tag" }\n[tasks]')
    schema = schema.replace("[features]", "tag = { rows = 100 }\n[features]")
    text = "who\titem\tprice\tshown_at\tclicked\ttags\nann\t1\t2\t2026-10-01\t1\ta|b\nbob\t1\t2\t2026-10-01\t1\tNONE\n"
    pipeline = PIPELINE.replace("log.csv", "log.tsv.gz").replace(
        'format = "csv"',
        'format = "csv"\nrename = { who = "user" }\n'
        'csv = { delimiter = "\\t", nulls = ["NONE"], list_separator = "|" }',
    )
    first, second = SmallPipeline(
        tmp_path,
        schema=schema,
        pipeline=pipeline,
        files={"log.tsv.gz": gzip.compress(text.encode())},
    ).rows()
    assert (first["user"], first["tags"]) == ("ann", ["a", "b"])
    assert second["tags"] is None


def test_quoted_fields_may_hold_delimiters_and_line_breaks(tmp_path: Path) -> None:
    text = CSV.replace("ann,1", '"a,\nnn",1', 1)
    assert SmallPipeline(tmp_path, files={"log.csv": text}).rows()[0]["user"] == "a,\nnn"


@pytest.mark.parametrize(
    ("text", "hour"),
    [
        ("2026-10-01T10:00:00Z", 10),
        ("2026-10-01 10:00:00", 10),
        ("2026-10-01 10:00:00 UTC", 10),
        ("2026-10-01T12:00:00+02:00", 10),
        ("2026-10-01T12:00:00.250+0200", 10),
        ("2026-10-01", 0),
    ],
)
def test_iso_times_become_utc(tmp_path: Path, text: str, hour: int) -> None:
    rows = SmallPipeline(
        tmp_path, files={"log.csv": CSV.replace("2026-10-01T10:00:00Z", text)}
    ).rows()
    assert rows[0]["shown_at"].replace(microsecond=0) == datetime.datetime(
        2026, 10, 1, hour, tzinfo=UTC
    )


@pytest.mark.parametrize(
    ("unit", "factor"), [("seconds", 1), ("milliseconds", 1_000), ("microseconds", 1_000_000)]
)
def test_integer_times_need_a_unit(tmp_path: Path, unit: str, factor: int) -> None:
    moment = datetime.datetime(2026, 10, 1, 10, tzinfo=UTC)
    number = int(moment.timestamp()) * factor
    pipeline = parquet(tmp_path, shown_at=pa.array([number, number]))
    assert "say their unit under [timestamps]" in refusal(pipeline)
    pipeline.pipeline += f'\n[timestamps]\nshown_at = "{unit}"\n'
    assert pipeline.rows()[0]["shown_at"] == moment


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("item", pa.array([1, 2], pa.int16())),
        ("item", pa.array([1.0, 2.0])),
        ("user", pa.array(["ann", "bob"]).dictionary_encode()),
        ("user", pa.array(["ann", "bob"], pa.large_string())),
        ("price", pa.array([1, 2])),
        ("price", pa.array([None, None])),
        ("clicked", pa.array([1, 0], pa.int8())),
        ("shown_at", pa.array([0, 1], pa.timestamp("ns"))),
        ("shown_at", pa.array([0, 1], pa.date32())),
    ],
)
def test_parquet_types_of_the_same_family_are_converted(
    tmp_path: Path, column: str, values: pa.Array
) -> None:
    rows = parquet(tmp_path, **{column: values}).rows()
    typed = declared(column)
    assert pa.array([row[column] for row in rows], typed).equals(
        pa.array([row[column] for row in rows]).cast(typed)
    )
    assert [row[column] is None for row in rows] == [value is None for value in values.to_pylist()]


def declared(column: str) -> pa.DataType:
    types = {"user": pa.string(), "item": pa.int64(), "price": pa.float32(), "clicked": pa.bool_()}
    return types.get(column, pa.timestamp("us", tz="UTC"))


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        (
            "item",
            pa.array(["1", "2"]),
            "column 'item' is string in the file, the schema says int64",
        ),
        ("user", pa.array([1, 2]), "column 'user' is int64 in the file, the schema says string"),
        ("item", pa.array([1.0, 2.5]), "row 2, column 'item': found 2.5, which is no int64"),
        ("clicked", pa.array([1, 2]), "row 2, column 'clicked': found 2, which is no bool"),
        ("price", pa.array([[1.0], [2.0]]), "column 'price' is list"),
        (
            "shown_at",
            pa.array([1.5, 2.5]),
            "column 'shown_at' holds numbers, the schema says timestamp; say their unit",
        ),
    ],
)
def test_another_family_or_a_value_that_would_be_lost_is_refused(
    tmp_path: Path, column: str, values: pa.Array, said: str
) -> None:
    assert said in refusal(parquet(tmp_path, **{column: values}))


def test_a_bad_value_is_named_with_its_file_row_and_column(tmp_path: Path) -> None:
    # 100 000 rows: the bad one lies in a later block of the file.
    lines = ["user,item,price,shown_at,clicked", *["ann,1,2.5,2026-10-01,1"] * 100_000]
    lines[90_123] = "ann,1,cheap,2026-10-01,1"
    message = refusal(SmallPipeline(tmp_path, files={"log.csv": "\n".join(lines)}))
    assert (
        f"{tmp_path / 'log.csv'}, row 90123, column 'price': found 'cheap', which is no float32"
        in message
    )


def test_out_of_range_integers_are_refused(tmp_path: Path) -> None:
    schema = SCHEMA.replace('item = "int64"', 'item = "int8"')
    message = refusal(
        SmallPipeline(tmp_path, schema=schema, files={"log.csv": CSV.replace("bob,2", "bob,200")})
    )
    assert "row 2, column 'item': found '200', which is no int8" in message


def test_unneeded_columns_are_not_even_read(tmp_path: Path) -> None:
    text = "\n".join(f"{line},junk" for line in CSV.strip().splitlines())
    assert "junk" not in SmallPipeline(tmp_path, files={"log.csv": text}).rows()[0]


BAD_FILES: dict[str, tuple[str | bytes, str]] = {
    "no bytes": (b"", "the file is empty (0 bytes)"),
    "duplicate header": (CSV.replace("price", "item", 1), "column 'item' occurs twice"),
    "missing column": (
        CSV.replace("price", "prise", 1),
        "no column 'price' (did you mean 'prise'?)",
    ),
    "ragged row": (CSV + "ann,1\n", "row 4: 2 fields where the file has 5 columns, found 'ann,1'"),
    "not UTF-8": (CSV.encode().replace(b"bob", b"b\xffb"), "row 2: not UTF-8"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_csv_file_is_one_sentence_that_names_it(tmp_path: Path, name: str) -> None:
    content, said = BAD_FILES[name]
    message = refusal(SmallPipeline(tmp_path, files={"log.csv": content}))
    assert said in message
    assert str(tmp_path / "log.csv") in message


def test_a_truncated_gz_file_is_refused(tmp_path: Path) -> None:
    packed = gzip.compress(("\n".join([CSV.strip(), *["ann,1,1,2026-10-01,1"] * 5_000])).encode())
    pipeline = PIPELINE.replace("log.csv", "log.csv.gz")
    message = refusal(
        SmallPipeline(tmp_path, pipeline=pipeline, files={"log.csv.gz": packed[: len(packed) // 2]})
    )
    assert "log.csv.gz: not readable as CSV" in message


def test_a_corrupt_parquet_file_is_refused(tmp_path: Path) -> None:
    pipeline = parquet(tmp_path)
    pipeline.write()
    whole = (tmp_path / "log.parquet").read_bytes()
    for broken in (whole[: len(whole) // 2], b"\x00" * len(whole), b"user,item\n"):
        pipeline.files = {"log.parquet": broken}
        assert "log.parquet: not readable as Parquet" in refusal(pipeline)


def test_a_missing_file_names_the_path_and_the_setting(tmp_path: Path) -> None:
    assert f"{tmp_path / 'log.csv'}: no such file" in refusal(SmallPipeline(tmp_path, files={}))
    globbed = SmallPipeline(tmp_path, pipeline=PIPELINE.replace("log.csv", "*.csv"), files={})
    assert f"{tmp_path / '*.csv'}: no file matches" in refusal(globbed)


def test_a_folder_is_named_by_an_environment_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = SmallPipeline(
        tmp_path / "here",
        pipeline=PIPELINE.replace("log.csv", "${SOME_DATA}/log.csv"),
        files={"../there/log.csv": CSV},
    )
    monkeypatch.delenv("SOME_DATA", raising=False)
    assert "needs the environment variable SOME_DATA, which is not set" in refusal(
        pipeline, ConfigError
    )
    monkeypatch.setenv("SOME_DATA", str(tmp_path / "there"))
    assert len(pipeline.rows()) == 3


def test_files_are_read_in_the_order_of_their_names_and_once(tmp_path: Path) -> None:
    header, *lines = CSV.strip().splitlines()
    files: dict[str, str | bytes | pa.Table] = {
        f"log-{n}.csv": f"{header}\n{line}\n" for n, line in zip((2, 1, 3), lines, strict=True)
    }
    pipeline = SmallPipeline(
        tmp_path, pipeline=PIPELINE.replace("log.csv", "log-*.csv"), files=files
    )
    assert [row["user"] for row in pipeline.rows()] == ["bob", "ann", "ann"]
    pipeline.pipeline = PIPELINE.replace('"log.csv"', '["log-*.csv", "log-1.csv"]')
    assert "log-1.csv is named twice" in refusal(pipeline, ConfigError)


@pytest.mark.parametrize(("row_group", "part"), [(1000, 1000), (77, 1000), (77, 200), (77, 10)])
def test_row_keys_number_files_and_rows_however_they_are_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row_group: int, part: int
) -> None:
    monkeypatch.setattr(rows, "cut_into_parts", partial(files.cut_into_parts, part_rows=part))
    times = pa.array(range(1000), pa.timestamp("us", tz="UTC"))
    table = pa.table(
        {
            "user": ["ann"] * 1000,
            "item": range(1000),
            "price": [1.0] * 1000,
            "shown_at": times,
            "clicked": [True] * 1000,
        }
    )
    pipeline = parquet(tmp_path)
    pipeline.pipeline = pipeline.pipeline.replace("log.parquet", "*.parquet")
    pipeline.files = {}
    for name in ("a", "b"):
        pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=row_group)
    batches = pipeline.batches()
    assert [int(key) for batch in batches for key in batch.row_key_B] == [
        *range(1000),
        *range(1 << 40, (1 << 40) + 1000),
    ]
    assert [int(row) for batch in batches for row in batch.row_B] == [*range(1000)] * 2


def test_filters_count_what_they_take_and_null_does_not_pass(tmp_path: Path) -> None:
    filters = '\n[[filters]]\ncolumn = "price"\nat_least = 1\n\n[[filters]]\ncolumn = "user"\nin = ["ann", "eve"]\n'
    text = CSV + "cat,3,2,2026-10-01,0\n"
    pipeline = SmallPipeline(tmp_path, pipeline=PIPELINE + filters, files={"log.csv": text})
    tally = Tally()
    kept = [row["item"] for batch in pipeline.batches(tally) for row in batch.table.to_pylist()]
    assert kept == [1, 2]
    assert (tally.read, tally.kept, tally.filtered) == (4, 2, [1, 1])


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("equals = 3", [False, None, True, False]),
        ("in = [1, 3]", [True, None, True, False]),
        ("at_least = 3, below = 5", [False, None, True, False]),
        ("above = 3", [False, None, False, True]),
        ("at_most = 2.5", [True, None, False, False]),
        ("equals = 3, negate = true", [True, None, False, True]),
        ("not_null = true", [True, False, True, True]),
        ("not_null = true, negate = true", [False, True, False, False]),
    ],
)
def test_a_label_rule_keeps_null_as_null(
    tmp_path: Path, rule: str, expected: list[bool | None]
) -> None:
    pipeline = PIPELINE + f'\n[labels]\nclicked = {{ column = "stars", {rule} }}\n'
    text = "user,item,price,shown_at,stars\n" + "".join(
        f"ann,1,1,2026-10-01,{stars}\n" for stars in ("1", "", "3", "5")
    )
    schema = SCHEMA.replace("[keys]", 'stars = "int8"\n[keys]')
    rows = SmallPipeline(tmp_path, schema=schema, pipeline=pipeline, files={"log.csv": text}).rows()
    assert [row["clicked"] for row in rows] == expected


def test_a_float_rule_compares_in_the_width_of_the_column(tmp_path: Path) -> None:
    pipeline = PIPELINE + '\n[labels]\nclicked = { column = "price", equals = 0.1 }\n'
    text = "user,item,price,shown_at\nann,1,0.1,2026-10-01\n"
    assert (
        SmallPipeline(tmp_path, pipeline=pipeline, files={"log.csv": text}).rows()[0]["clicked"]
        is True
    )


@pytest.mark.parametrize(
    ("rule", "kept"),
    [("in = [2.5, 3]", [3]), ("in = [2.0, 1e300]", [2]), ("in = [2, 3]\nnegate = true", [1])],
)
def test_an_integer_is_in_a_list_only_as_itself(tmp_path: Path, rule: str, kept: list[int]) -> None:
    lines = "".join(f"ann,{item},1,2026-10-01,1\n" for item in (1, 2, 3))
    files: dict[str, str | bytes | pa.Table] = {"log.csv": f"{CSV.splitlines()[0]}\n{lines}"}
    text = f'{PIPELINE}\n[[filters]]\ncolumn = "item"\n{rule}\n'
    assert [row["item"] for row in SmallPipeline(tmp_path, pipeline=text, files=files).rows()] == (
        kept
    )


def test_an_integer_beyond_64_bits_fits_no_column(tmp_path: Path) -> None:
    text = f'{PIPELINE}\n[[filters]]\ncolumn = "item"\nbelow = {2**63}\n'
    assert "cannot be compared with column 'item', which is int64" in refusal(
        SmallPipeline(tmp_path, pipeline=text), ConfigError
    )


@pytest.mark.parametrize(
    ("rule", "kept"),
    [("at_least = 2", ["bob"]), ("not_null = true", ["bob"]), ("in = [2]\nnegate = true", [])],
)
@pytest.mark.parametrize("format_", ["jsonl", "parquet"])
def test_a_file_without_any_value_of_an_undeclared_column_answers_null(
    tmp_path: Path, rule: str, kept: list[str], format_: str
) -> None:
    row = {"item": 1, "price": 1.0, "shown_at": "2026-10-01", "clicked": True}
    rows = {"a": {**row, "user": "ann", "stars": None}, "b": {**row, "user": "bob", "stars": 2}}
    files: dict[str, str | bytes | pa.Table] = {
        f"log-{name}.{format_}": pa.Table.from_pylist([row])
        if format_ == "parquet"
        else json.dumps(row)
        for name, row in rows.items()
    }
    text = PIPELINE.replace('"log.csv"', f'"*.{format_}"').replace('"csv"', f'"{format_}"')
    text += f'\n[[filters]]\ncolumn = "stars"\n{rule}\n'
    found = SmallPipeline(tmp_path, pipeline=text, files=files).rows()
    assert [row["user"] for row in found] == kept


def test_a_label_may_be_made_of_an_undeclared_column_and_of_an_earlier_label(
    tmp_path: Path,
) -> None:
    labels = """
[labels]
bought = { column = "event", equals = "buy" }
clicked = { column = "bought", equals = true }
"""
    text = "user,item,price,shown_at,event\nann,1,1,2026-10-01,buy\nann,1,1,2026-10-01,view\n"
    rows = SmallPipeline(tmp_path, pipeline=PIPELINE + labels, files={"log.csv": text}).rows()
    assert [row["clicked"] for row in rows] == [True, False]


BAD_SETTINGS: dict[str, tuple[str, str]] = {
    "unknown key": ('[sauce]\npath = "x"', "unknown key 'sauce' (did you mean 'source'?)"),
    "unknown key in a rule": (
        '[labels]\nx = { column = "price", equal = 1 }',
        "did you mean 'equals'",
    ),
    "a rule that says nothing": ('[labels]\nx = { column = "price" }', "a rule needs one of"),
    "text for a number": (
        '[labels]\nx = { column = "price", equals = "1" }',
        "'1' cannot be compared",
    ),
    "order of texts": ('[[filters]]\ncolumn = "user"\nat_least = "a"', "has no order"),
    "label order": (
        '[labels]\nx = { column = "y", equals = true }\ny = { column = "price", equals = 1 }',
        "labels.x is made of label 'y', which stands at or below it",
    ),
    "shares": ('[split]\nby = "hash"\nparts = { a = 0.5, b = 0.6 }', "add up to 1.1"),
    "split name": ('[split]\nby = "hash"\nparts = { "../a" = 0.5, b = 0.5 }', "becomes a folder"),
    "time without fit_on": ('[split]\nby = "time"', "fit_on is missing"),
    "history of no list": ('[histories.h]\ntokens = { price = "item" }', "must be a list column"),
    "unit of no timestamp": ('[timestamps]\nshown = "seconds"', "did you mean 'shown_at'"),
    "no header and no names": ("[csv]\nheader = false", "names are needed with header = false"),
    "encoding": ('[csv]\nencoding = "utf-9"', "encoding 'utf-9' is unknown"),
    "split of a source": (
        '[source]\npath = "log.csv"\nformat = "csv"\nsplit = "train"',
        'is needed with [split] by = "file"',
    ),
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_an_impossible_setting_is_refused_before_any_file_is_opened(
    tmp_path: Path, name: str
) -> None:
    block, said = BAD_SETTINGS[name]
    section = block.split("\n")[0].strip("[]")
    pipeline = PIPELINE
    if f"[{section}]" in PIPELINE:
        start = PIPELINE.index(f"[{section}]")
        end = PIPELINE.find("\n\n", start)
        pipeline = PIPELINE[:start] + (PIPELINE[end:] if end > 0 else "")
    small = SmallPipeline(tmp_path, pipeline=f"{pipeline}\n{block}\n", files={})
    with pytest.raises(ConfigError) as caught:
        small.plan()
    assert said in str(caught.value)
    assert str(small.path) in str(caught.value)


def test_a_column_that_nobody_provides_is_refused_before_rows_are_read(tmp_path: Path) -> None:
    message = refusal(
        SmallPipeline(
            tmp_path, pipeline=PIPELINE + '\n[[filters]]\ncolumn = "prize"\nnot_null = true\n'
        )
    )
    assert "no column 'prize' (did you mean 'price'?)" in message
