"""CSV as people write it: delimiters, encodings, quotes, line ends, ragged rows, and cuts inside a large file."""

import csv
import gzip
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines import csv_files
from pipelines.agreement import require_columns
from pipelines.files import cut_into_parts, read
from pipelines.sources import Csv, DataFile
from recsys.errors import ConfigError, DataError

Row = tuple[str | None, ...]


def rows_of(
    path: Path, columns: tuple[str, ...] = ("a", "b"), *, part_bytes: int = 1 << 20, **given: Any
) -> list[Row]:
    """The rows of a CSV file, part by part; every batch must say how many rows stand before it."""
    file = DataFile(path, 0, "csv", Csv(**given), {})
    require_columns([file], columns)
    found: list[Row] = []
    for part in cut_into_parts([file], part_bytes=part_bytes):
        for piece in part:
            for batch in read(piece, columns):
                assert batch.first_row == len(found)
                found += [tuple(row.values()) for row in batch.table.to_pylist()]
    return found


def write(folder: Path, content: str | bytes, name: str = "log.csv") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


READABLE: dict[str, tuple[str | bytes, dict[str, Any], list[Row]]] = {
    "two colons": ("a::b\n1::x:y\n", {"delimiter": "::"}, [("1", "x:y")]),
    "two bars": ("a||b\n1||x|y\n", {"delimiter": "||"}, [("1", "x|y")]),
    "a sign of two bytes": ('a§b\n1§"x§y"\n', {"delimiter": "§"}, [("1", "x§y")]),
    "comma and blank": ("a, b\n1, 2,3\n", {"delimiter": ", "}, [("1", "2,3")]),
    "a wide delimiter inside quotes": (
        'a::b\n1::"x::y"\n"p::\n""q"::2\n',
        {"delimiter": "::"},
        [("1", "x::y"), ('p::\n"q', "2")],
    ),
    "quotes that mean nothing": ('a::b\n1::"x\n', {"delimiter": "::", "quote": ""}, [("1", '"x')]),
    "an inch": ('a,b\n1,5" disk\n2,x\n', {}, [("1", '5" disk'), ("2", "x")]),
    "UTF-16": ("a,b\n1,é\n".encode("utf-16"), {"encoding": "utf-16"}, [("1", "é")]),
    "UTF-16 without a mark": (
        "a,b\n1,é\n".encode("utf-16-le"),
        {"encoding": "utf-16-le"},
        [("1", "é")],
    ),
    "latin-1": ("a,b\n1,é\n".encode("latin-1"), {"encoding": "latin-1"}, [("1", "é")]),
    "a byte order mark": ("\ufeffa,b\n1,é\n", {}, [("1", "é")]),
    "a byte order mark without a header": (
        "\ufeff1,2\n",
        {"header": False, "names": ("a", "b")},
        [("1", "2")],
    ),
    "CRLF, an empty line, no final line end": (
        "a,b\r\n1,2\r\n\r\n3,4",
        {},
        [("1", "2"), ("3", "4")],
    ),
    "carriage returns alone": ("a,b\r1,2\r3,4", {}, [("1", "2"), ("3", "4")]),
    "blanks around names": (' a ,"b "\n1,2\n', {}, [("1", "2")]),
    "names that replace the header": ("x,x\n1,2\n", {"names": ("a", "b")}, [("1", "2")]),
    "a name twice that nobody needs": ("a,b,c,c\n1,2,3,4\n", {}, [("1", "2")]),
    "another order": ("b,c,a\n2,3,1\n", {}, [("1", "2")]),
    "a header only": ("a,b\n", {}, []),
    "a header only, without a line end": ("a,b", {}, []),
}


@pytest.mark.parametrize("name", READABLE)
def test_csv_is_read_as_it_was_meant(tmp_path: Path, name: str) -> None:
    content, given, expected = READABLE[name]
    assert rows_of(write(tmp_path, content), **given) == expected


def test_names_with_blanks_are_columns_too(tmp_path: Path) -> None:
    assert rows_of(write(tmp_path, "item id,b\n1,2\n"), ("item id",)) == [("1",)]


MANY = b"a,b\n" + b"".join(b"%d,%d\n" % (n, n * n) for n in range(10_000))
REFUSED: dict[str, tuple[str | bytes, dict[str, Any], tuple[str, ...]]] = {
    "too few fields": (
        "a,b\n1,2\n\n3\n",
        {},
        ("row 2: 1 field where the file has 2 columns, found '3'; correct the row, or [csv]",),
    ),
    "too many fields late in the file": (
        MANY + b"1,2,3\n",
        {},
        ("row 10001: 3 fields where the file has 2 columns, found '1,2,3'",),
    ),
    "too many fields of a wide delimiter": (
        "a::b\n1::2\n3::4::5\n",
        {"delimiter": "::"},
        ("row 2: 3 fields where the file has 2 columns, found '3::4::5'",),
    ),
    "a quote that is never closed": (
        'a,b\n1,2\n3,"4\n5,6\n',
        {},
        ("row 2: a quote is opened and never closed, found '3,4\\n5,6'", 'set quote = ""'),
    ),
    "a quote that swallows a large file": (
        b'a,b\n1,"2\n' + MANY * 3,
        {},
        ("row 1: a field of more than 131,072 characters", "a quote that is never closed"),
    ),
    "latin-1 taken for UTF-8": (
        "a,b\n1,x\n2,é\n".encode("latin-1"),
        {},
        ("row 2: not UTF-8, found '2,\\xe9'", 'such as encoding = "latin-1"'),
    ),
    "UTF-16 taken for UTF-8": (
        "a,b\n1,2\n".encode("utf-16"),
        {},
        ('looks like UTF-16, not utf-8; say encoding = "utf-16" under [csv]',),
    ),
    "UTF-8 taken for UTF-16": (
        "a,b\n1,2\n",
        {"encoding": "utf-16"},
        ("does not look like utf-16; take encoding out of [csv]",),
    ),
    "a stand-in in the text": (
        "a::b\n1::\x1f\n",
        {"delimiter": "::"},
        ("control character 0x1F", "separate fields by one character"),
    ),
    "an open quote in the header": ('"a,b\n1,2\n', {}, ("the header line '\"a,b' opens a quote",)),
    "an empty header": ("\n\na,b\n", {}, ("the header line is empty", "header = false")),
    "fewer names than fields": (
        "x,y\n1,2\n",
        {"names": ("a", "b", "c")},
        ("[csv] gives 3 names, the header 'x,y' has 2",),
    ),
    "a gzip under another name": (gzip.compress(MANY), {}, ("packed by gzip; give it a name",)),
    "a Parquet file": (b"PAR1....", {}, ('is a Parquet file; say format = "parquet"',)),
    "a PDF": (b"%PDF-1.7\n\x00\xff", {}, ("is a PDF; export the table in it as CSV",)),
    "an Excel workbook": (b"PK\x03\x04....", {}, ("Excel workbook; unpack it, or save it as CSV",)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_named_with_its_row(tmp_path: Path, name: str) -> None:
    content, given, said = REFUSED[name]
    path = write(tmp_path, content)
    with pytest.raises(DataError) as caught:
        rows_of(path, **given)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    for part in said:
        assert part in message


@pytest.mark.parametrize(("size", "plain"), [(3_000, False), (-4, False), (None, True)])
def test_a_packed_file_that_is_cut_short_or_not_packed_says_so(
    tmp_path: Path, size: int | None, plain: bool
) -> None:
    path = write(tmp_path, MANY if plain else gzip.compress(MANY)[:size], "log.csv.gz")
    with pytest.raises(DataError, match="incomplete or damaged, or the file is not packed"):
        rows_of(path)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"delimiter": ""}, "at least 1 character"),
        ({"delimiter": "\n"}, "cannot end it"),
        ({"quote": "“"}, "an ASCII character that is no part of it"),
        ({"quote": ","}, "quote ',' cannot enclose fields beside delimiter ','"),
        ({"header": False}, "names are needed with header = false"),
        ({"list_separator": ":"}, "list_separator and map_separator are both ':'"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Csv.parse(given, where="pipeline.toml: csv")
    assert said in str(caught.value)


fields = st.text('ab"\n, ', max_size=4)


@given(
    table=st.lists(st.tuples(fields, fields), max_size=12),
    delimiter=st.sampled_from([",", "::", "\t", ", "]),
    end=st.sampled_from(["\n", "\r\n"]),
    encoding=st.sampled_from(["utf-8", "utf-16", "latin-1"]),
    part_bytes=st.integers(5, 60),
)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_whatever_is_written_comes_back(
    tmp_path: Path,
    table: list[Row],
    delimiter: str,
    end: str,
    encoding: str,
    part_bytes: int,
) -> None:
    # Python's writer joins by one character, so a wide delimiter is put in afterwards.
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter="\x1e", lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerows([("a", "b"), *table])
    path = write(tmp_path, text.getvalue().replace("\x1e", delimiter).encode(encoding))
    found = rows_of(path, part_bytes=part_bytes, delimiter=delimiter, encoding=encoding, nulls=())
    assert found == [tuple(row) for row in table]


@pytest.mark.parametrize("before", range(12))
def test_a_line_end_of_two_characters_is_not_cut_between_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    # Text beyond one read of the parser's, as a block of translated text can be.
    monkeypatch.setattr(csv_files, "_PARSED_BYTES", 16)
    line = "x" * before
    quoted = write(tmp_path, f'a,b\r\n{line},"1\r\n"\r\n2,"\r\n3"\r\n', "quoted.csv")
    assert rows_of(quoted) == [(line or None, "1\r\n"), ("2", "\r\n3")]
    plain = write(tmp_path, f"a,b\r\n{line},1\r\n" + "22,333\r\n" * 4)
    assert rows_of(plain) == [(line or None, "1"), *[("22", "333")] * 4]


@given(
    lines=st.lists(st.sampled_from(["1,2", "33,", ",4", "", "5,6"]), max_size=40),
    end=st.sampled_from(["\n", "\r\n"]),
    final=st.booleans(),
    part_bytes=st.integers(4, 40),
)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_file_without_quotes_is_cut_and_its_rows_are_counted(
    tmp_path: Path, lines: list[str], end: str, final: bool, part_bytes: int
) -> None:
    path = write(tmp_path, end.join(["a,b", *lines]) + (end if final else ""))
    expected = [tuple(line.split(",")) for line in lines if line]
    assert rows_of(path, part_bytes=part_bytes, nulls=()) == expected


def test_only_a_file_whose_lines_are_rows_is_cut(tmp_path: Path) -> None:
    file = DataFile(write(tmp_path, MANY), 0, "csv", Csv(), {})
    assert len(cut_into_parts([file], part_bytes=10_000)) > 5
    quoted = DataFile(write(tmp_path, MANY + b'"1",2\n', "quoted.csv"), 0, "csv", Csv(), {})
    assert len(cut_into_parts([quoted], part_bytes=10_000)) == 1
    packed = DataFile(write(tmp_path, gzip.compress(MANY), "log.csv.gz"), 0, "csv", Csv(), {})
    assert len(cut_into_parts([packed], part_bytes=100)) == 1


def test_a_fault_in_a_later_part_is_named_with_its_row_in_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, MANY + b"1\n")
    with pytest.raises(DataError, match="row 10001: 1 field where"):
        rows_of(path, part_bytes=10_000)
