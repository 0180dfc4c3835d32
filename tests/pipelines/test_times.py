"""Times of files: ISO 8601, stated formats, epochs of any unit, and one clear sentence for everything else."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.convert import convert, parse
from recsys.errors import ConfigError, DataError
from tests.pipelines.small_pipeline import CSV, PIPELINE, SmallPipeline


def log(tmp_path: Path, *times: str, form: str | None = None) -> SmallPipeline:
    """The small pipeline over rows of these times."""
    rows = "".join(f'ann,1,1,"{time}",1\n' for time in times)
    stated = "" if form is None else f'\n[timestamps]\nshown_at = "{form}"\n'
    return SmallPipeline(
        tmp_path,
        pipeline=PIPELINE + stated,
        files={"log.csv": f"user,item,price,shown_at,clicked\n{rows}"},
    )


def refusal(pipeline: SmallPipeline) -> str:
    with pytest.raises(DataError) as caught:
        pipeline.rows()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("form", "text", "expected"),
    [
        ("%d/%m/%Y %H:%M", "01/10/2026 09:30", datetime(2026, 10, 1, 9, 30)),
        ("%d/%m/%Y %H:%M", "1/10/2026 9:30", datetime(2026, 10, 1, 9, 30)),
        ("%Y%m%d", "20261001", datetime(2026, 10, 1)),
        ("%m/%d/%y %I:%M %p", "10/01/26 09:30 PM", datetime(2026, 10, 1, 21, 30)),
        (
            "%Y-%m-%d %H:%M:%S.%f",
            "2026-10-01 09:30:00.25",
            datetime(2026, 10, 1, 9, 30, 0, 250_000),
        ),
        ("%d %b %Y %H:%M %z", "01 Oct 2026 09:30 +0200", datetime(2026, 10, 1, 7, 30)),
        ("seconds", "1790847000", datetime(2026, 10, 1, 9, 30)),
        ("seconds", "1790847000.5", datetime(2026, 10, 1, 9, 30, 0, 500_000)),
        ("milliseconds", "1.790847e12", datetime(2026, 10, 1, 9, 30)),
    ],
)
def test_text_of_a_stated_form_becomes_utc(
    tmp_path: Path, form: str, text: str, expected: datetime
) -> None:
    rows = log(tmp_path, text, "", form=form).rows()
    assert [row["shown_at"] for row in rows] == [expected.replace(tzinfo=UTC), None]


@given(
    moments=st.lists(st.datetimes(datetime(1700, 1, 1), datetime(2200, 1, 1)), max_size=5),
    form=st.sampled_from(["%d/%m/%Y %H:%M:%S", "%Y%m%d%H%M%S", "%H.%M on %m-%d-%Y", "%Y week %j"]),
    text=st.sampled_from(["31/02/2026 10:00:00", "01/10/2026 10:00:00 x", "x", ""]),
)
def test_a_format_reads_what_strptime_reads_and_nothing_else(
    moments: list[datetime], form: str, text: str
) -> None:
    written = [moment.strftime(form) for moment in moments]
    expected = [datetime.strptime(value, form).replace(tzinfo=UTC) for value in written]
    assert parse(pa.array(written, pa.string()), "timestamp", unit=form).to_pylist() == expected
    with pytest.raises(pa.ArrowInvalid):
        parse(pa.array([*written, text], pa.string()), "timestamp", unit=form)


@pytest.mark.parametrize(
    ("unit", "factor"), [("seconds", 1), ("milliseconds", 1_000), ("microseconds", 1_000_000)]
)
def test_floats_of_a_unit_are_times_to_the_microsecond(unit: str, factor: int) -> None:
    moment = datetime(2026, 10, 1, 9, 30, 0, 250_000, tzinfo=UTC)
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    number = (moment - epoch) / timedelta(seconds=1) * factor
    assert convert(pa.array([number, None]), "timestamp", unit=unit).to_pylist() == [moment, None]


def test_integers_may_be_dates_of_a_format() -> None:
    values = pa.array([20261001, None])
    found = convert(values, "timestamp", unit="%Y%m%d").to_pylist()
    assert found == [datetime(2026, 10, 1, tzinfo=UTC), None]


@pytest.mark.parametrize(
    "times",
    [
        pa.array([0, 253_402_300_800 * 1_000_000], pa.timestamp("us", tz="UTC")),
        pa.array([0, 253_402_300_800], pa.timestamp("s")),
        pa.array([0, 2_932_897], pa.date32()),
    ],
)
def test_a_typed_time_beyond_the_calendar_is_named_with_its_row(
    tmp_path: Path, times: pa.Array
) -> None:
    table = pa.table({"user": ["ann"] * 2, "item": [1, 2], "price": [1.0] * 2, "shown_at": times})
    table = table.append_column("clicked", pa.array([True, False]))
    text = PIPELINE.replace("log.csv", "log.parquet").replace('"csv"', '"parquet"')
    message = refusal(SmallPipeline(tmp_path, pipeline=text, files={"log.parquet": table}))
    assert "log.parquet, row 2, column 'shown_at': found 10000-01-01" in message
    assert "which is no timestamp; correct the file, or change [columns]" in message


@pytest.mark.parametrize("digits", ["1234567", "123456789"])
@pytest.mark.parametrize("zone", ["", "Z", " UTC", "+00:00"])
def test_digits_beyond_microseconds_are_cut(digits: str, zone: str) -> None:
    found = parse(pa.array([f"2026-10-01 09:30:00.{digits}{zone}"]), "timestamp").to_pylist()
    assert found == [datetime(2026, 10, 1, 9, 30, 0, 123_456, tzinfo=UTC)]


BAD_TIMES: dict[str, tuple[tuple[str, ...], str | None, str]] = {
    "three formats": (
        ("2026-10-01", "01/10/2026", "Oct 1 2026"),
        None,
        "row 2, column 'shown_at': found '01/10/2026', which is no ISO 8601 time, as those before it are; "
        "write all times of a column in one format",
    ),
    "another format from the start": (
        ("01/10/2026 10:00",),
        None,
        "row 1, column 'shown_at': found '01/10/2026 10:00', which is no ISO 8601 time; say how the column's times "
        'are written under [timestamps], such as shown_at = "%d/%m/%Y %H:%M"',
    ),
    "numbers without a unit": (
        ("1790847000123",),
        None,
        'say its unit: shown_at = "milliseconds" under [timestamps]',
    ),
    "not of the stated format": (
        ("01/10/2026", "10/31/2026"),
        "%d/%m/%Y",
        "row 2, column 'shown_at': found '10/31/2026', which does not read as \"%d/%m/%Y\"",
    ),
    "a day that no month has": (
        ("31/02/2026",),
        "%d/%m/%Y",
        "found '31/02/2026', which does not read as",
    ),
    "a unit too large": (
        ("1790847000", "1790847000123"),
        "seconds",
        "row 2, column 'shown_at': found '1790847000123', which as seconds lies beyond the year 9999; "
        "correct timestamps.shown_at",
    ),
    "no number": (
        ("2026-10-01",),
        "seconds",
        "found '2026-10-01', which is no number of seconds; correct the file, or timestamps.shown_at",
    ),
}


@pytest.mark.parametrize("name", BAD_TIMES)
def test_a_time_of_another_form_is_named_with_its_row(tmp_path: Path, name: str) -> None:
    times, form, said = BAD_TIMES[name]
    message = refusal(log(tmp_path, *times, form=form))
    assert message.startswith(f"{tmp_path / 'log.csv'}, row ")
    assert said in message


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ("second", "'second' is neither a unit (seconds, milliseconds, microseconds)"),
        ("second", "(did you mean 'seconds'?)"),
        ("%d/%m %H:%M", "does not name year, month and day"),
        ("%Q", "is no format that strptime reads"),
    ],
)
def test_an_impossible_form_is_refused(tmp_path: Path, form: str, said: str) -> None:
    small = SmallPipeline(
        tmp_path,
        pipeline=f'{PIPELINE}\n[timestamps]\nshown_at = "{form}"\n',
        files={"log.csv": CSV},
    )
    with pytest.raises(ConfigError) as caught:
        small.plan()
    assert said in str(caught.value)
