"""The one list of what a newcomer can be told: the input, the command, and the sentence that answers it.

Every case starts from one small project that has been fitted, built, trained, evaluated and exported, changes some
files of it, and runs a command. The command has to end with exit code 2 and the sentence, alone on standard error,
and must neither change nor add a file. `...` in a sentence stands for any text.
"""

import ast
import fcntl
import gzip
import os
import re
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.cli import main

ROOT = Path(__file__).resolve().parent.parent
_VALUE = re.compile(r"%[\d.]*[sdefg]")
ERRORS = {
    "ArtifactError",
    "ConfigError",
    "DataError",
    "RequestError",
    "TrainingError",
    "ValueError",
    "WorkerLost",
}

SCHEMA = """
[columns]
user = "string"
item = "int64"
price = "float32"
paid = "float32"
shown_at = "timestamp"
brand = "string"
genres = "list<string>"
recent_item = "list<int64>"
clicked = "bool"
bought = "bool"

[keys]
user = "user"
item = "item"
time = "shown_at"

[tables]
item = { rows = 50, dim = 4 }
brand = { rows = 20, dim = 4 }
genre = { rows = 20, dim = 4 }

[features]
item = { kind = "categorical", table = "item" }
brand = { kind = "categorical", table = "brand" }
genres = { kind = "multi_valued", table = "genre" }
price = { kind = "numeric" }

[sequences.recent]
max_length = 5
item = { table = "item" }

[tasks]
click = { label = "clicked" }
buy = { label = "bought", given = "click" }
"""

PIPELINE = """
schema_file = "schema.toml"
fit_on = { from = "2026-10-01", to = "2026-10-02" }

[source]
path = "log.csv"
format = "csv"

[csv]
list_separator = "|"

[[joins]]
path = "items.csv"
format = "csv"
on = ["item"]

[labels]
bought = { column = "paid", above = 0 }

[histories.recent]
tokens = { recent_item = "item" }
where = { column = "clicked", equals = true }

[split]
by = "time"
"""

EXPERIMENT = """
[data]
train = { from = "2026-10-01", to = "2026-10-02" }
validation = ["2026-10-03"]
test = ["2026-10-04"]
batch_size = 64

[model]
mixing = { kind = "shared_bottom", hidden = [8] }

[train]
epochs = 1
"""

COLUMNS = ("user", "item", "price", "genres", "shown_at", "paid", "clicked")
DAYS, ROWS_A_DAY, ITEMS = 4, 40, 12


def _log() -> str:
    lines = [",".join(COLUMNS)]
    for row in range(DAYS * ROWS_A_DAY):
        day, place = divmod(row, ROWS_A_DAY)
        item = row * 7 % ITEMS + 1
        clicked = row % 3 == 1
        paid = 9.5 if clicked and row % 2 else 0
        time = f"2026-10-{day + 1:02}T{place // 4 + 8:02}:{place % 4 * 15:02}:00Z"
        genres = "|".join(("drama", "comedy", "war")[: item % 3 + 1])
        lines.append(f"u{row % 9},{item},{item / 2 + 1},{genres},{time},{paid:g},{clicked:d}")
    return "\n".join(lines) + "\n"


FILES = {
    "schema.toml": SCHEMA,
    "pipeline.toml": PIPELINE,
    "experiment.toml": EXPERIMENT,
    "log.csv": _log(),
    "items.csv": "item,brand\n" + "".join(f"{item},b{item % 4}\n" for item in range(1, ITEMS + 1)),
}

Change = Callable[[Path], None]


@dataclass(frozen=True)
class Case:
    """A command line in the changed project, the sentence on standard error, and the one folder that may be left."""

    name: str
    command: str
    changes: tuple[Change, ...]
    says: str
    leaves: str | None


def case(name: str, command: str, *changes: Change, says: str, leaves: str | None = None) -> Case:
    return Case(name, command, changes, says, leaves)


def put(name: str, content: str | bytes | pa.Table) -> Change:
    """A file of that content."""

    def do(folder: Path) -> None:
        if isinstance(content, pa.Table):
            pq.write_table(content, folder / name)
        elif isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            (folder / name).write_text(content, encoding="utf-8")

    return do


def replace(name: str, old: str, new: str) -> Change:
    """A file in which a text, found once at least, is another everywhere."""

    def do(folder: Path) -> None:
        text = (folder / name).read_text(encoding="utf-8")
        assert old in text, f"{name} holds no {old!r}"
        (folder / name).write_text(text.replace(old, new), encoding="utf-8")

    return do


def schema(old: str, new: str) -> Change:
    return replace("schema.toml", old, new)


def pipeline(old: str, new: str) -> Change:
    return replace("pipeline.toml", old, new)


def experiment(old: str, new: str) -> Change:
    return replace("experiment.toml", old, new)


def add(name: str, text: str) -> Change:
    """A file with more at its end."""

    def do(folder: Path) -> None:
        with (folder / name).open("a", encoding="utf-8") as file:
            file.write(text)

    return do


def feature(text: str) -> Change:
    """A schema with one more feature."""
    return schema("[features]\n", f"[features]\n{text}\n")


def column(text: str) -> Change:
    """A schema with one more column."""
    return schema("[columns]\n", f"[columns]\n{text}\n")


def cell(row: int, name: str, value: str) -> Change:
    """The log with another value in a column of a row, counted from 1 below the header."""

    def do(folder: Path) -> None:
        lines = (folder / "log.csv").read_text(encoding="utf-8").splitlines()
        fields = lines[row].split(",")
        fields[COLUMNS.index(name)] = value
        lines[row] = ",".join(fields)
        (folder / "log.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")

    return do


def without(name: str) -> Change:
    """No such file or folder."""

    def do(folder: Path) -> None:
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
        else:
            (folder / name).unlink()

    return do


def fitted(folder: Path) -> None:
    """The encoder of the changed files."""
    assert run(folder, "fit pipeline.toml", pytest.MonkeyPatch()).code == 0


def built(folder: Path) -> None:
    """The days of the changed files."""
    ended = run(folder, "build pipeline.toml", pytest.MonkeyPatch())
    assert ended.code == 0, ended.err


def evaluated_elsewhere(folder: Path) -> None:
    """A second report, of another day."""
    assert run(folder, "evaluate run other --days 2026-10-03", pytest.MonkeyPatch()).code == 0


def trained_by_another(folder: Path) -> None:
    """The run as a process holds it that is training it."""
    lock = folder / "run" / "training.lock"
    lock.write_text('{"process": 4711, "host": "trainer-1"}', encoding="utf-8")
    # Never closed: the end of the tests lets go of it.
    fcntl.flock(os.open(lock, os.O_RDWR), fcntl.LOCK_EX)


def folder(name: str) -> Change:
    """An empty folder."""
    return lambda place: (place / name).mkdir()


def evaluated_otherwise(folder: Path) -> None:
    """A second report, of a run with one task of another name."""
    schema(
        'click = { label = "clicked" }\nbuy = { label = "bought", given = "click" }',
        'tap = { label = "clicked" }',
    )(folder)
    for command in ("fit pipeline.toml encoder2", "build pipeline.toml data2 --encoder encoder2"):
        assert run(folder, command, pytest.MonkeyPatch()).code == 0
    sets = '--set data.directory="data2" --set data.encoder="encoder2"'
    assert run(folder, f"train experiment.toml run2 {sets}", pytest.MonkeyPatch()).code == 0
    assert run(folder, "evaluate run2 other", pytest.MonkeyPatch()).code == 0


def relabelled(folder: Path) -> None:
    """Days of which the last two were built by another rule for a label."""
    _rebuilt(folder, pipeline("above = 0", "above = 5"), kept=("2026-10-01", "2026-10-02"))


def ruled_otherwise(folder: Path) -> None:
    """Days of which the first was built without a filter that the others have."""
    added = add("pipeline.toml", '\n[[filters]]\ncolumn = "user"\nnot_null = true\n')
    _rebuilt(folder, added, kept=("2026-10-01",))


def _rebuilt(folder: Path, change: Change, *, kept: tuple[str, ...]) -> None:
    """The days built again after a change, but for some that stay as they were."""
    before = folder / "before"
    shutil.copytree(folder / "data", before)
    change(folder)
    built(folder)
    for day in kept:
        shutil.rmtree(folder / "data" / day)
        shutil.move(before / day, folder / "data" / day)
    shutil.rmtree(before)


JSON_LINES = (pipeline('path = "log.csv"\nformat = "csv"', 'path = "log.jsonl"\nformat = "jsonl"'),)
JSON_ROW = (
    '{"user": "a", "item": 1, "price": 2.5, "genres": ["war"], "shown_at": "2026-10-01T10:00:00Z", '
    '"paid": 0, "clicked": true}\n'
)
PARQUET = (
    pipeline('path = "log.csv"\nformat = "csv"', 'path = "log.parquet"\nformat = "parquet"'),
)
PARQUET_ROWS = pa.table(
    {
        "user": ["a"],
        "item": [1],
        "price": [2.5],
        "genres": [["war"]],
        "shown_at": pa.array(["2026-10-01"]).cast(pa.timestamp("us")),
        "paid": [0.0],
        "clicked": [True],
    }
)
PICTURES = (
    column('picture = "list<float32>"'),
    replace("log.csv", "paid,clicked", "paid,clicked,picture"),
    replace("log.csv", ",0\n", ",0,1|2\n"),
    replace("log.csv", ",1\n", ",1,1|2\n"),
)


def everything(*changes: Change) -> Change:
    """Several changes as one."""

    def do(folder: Path) -> None:
        for change in changes:
            change(folder)

    return do


def damaged_newest(folder: Path) -> None:
    """A second version of the test day, whose file is cut short."""
    built(folder)
    day = folder / "data" / "2026-10-04"
    newest = day / (day / "CURRENT").read_text(encoding="utf-8").strip()
    next(newest.glob("part-*")).write_bytes(b"PAR1")


# fmt: off
CASES = [
    # The command line itself.
    case("an unknown command", "traim experiment.toml",
         says="no such command 'traim' (did you mean 'train'?); see: recsys --help"),
    case("no argument", "fit",
         says="missing argument 'pipeline'; see: recsys fit --help"),
    case("one argument too many", "fit pipeline.toml encoder other",
         says="got unexpected extra argument(s) (other); see: recsys fit --help"),
    case("an unknown option", "train experiment.toml --resum",
         says="no such option: --resum (did you mean --resume?); see: recsys train --help"),
    case("a number that is none", "serve bundle --port eight",
         says="invalid value for '--port': must be a whole number, found 'eight'; see: recsys serve --help"),
    case("a limit of no rows", "rows pipeline.toml out.parquet --limit 0",
         says="invalid value for '--limit': must be at least 1, found '0'; see: recsys rows --help"),
    case("an option without its value", "train experiment.toml --set",
         says="option '--set' requires an argument; see: recsys --help"),
    # TOML files as such.
    case("no such file", "fit pipelin.toml",
         says="pipelin.toml: no such file; check the path"),
    case("a folder in place of a file", "fit data",
         says="data: is a folder; name a TOML file"),
    case("not TOML", "fit pipeline.toml", pipeline("[source]", "[source"),
         says="pipeline.toml: not valid TOML: Expected ']' at the end of a table declaration (at line 5, column 8), found '[source'; correct it; texts stand in quotes"),
    case("TOML with a text without quotes", "fit pipeline.toml", pipeline('"log.csv"', "log.csv"),
         says="pipeline.toml: not valid TOML: Invalid value (at line 6, column 8), found 'path = log.csv'; correct it; texts stand in quotes"),
    case("a key given twice", "fit pipeline.toml", pipeline('path = "log.csv"', 'path = "log.csv"\npath = "a.csv"'),
         says="pipeline.toml: not valid TOML: Cannot overwrite a value (at line 7, column 15), found 'path = \"a.csv\"'; correct it; texts stand in quotes"),
    case("not UTF-8", "fit pipeline.toml", put("pipeline.toml", "# caf\xe9".encode("latin-1")),
         says="pipeline.toml: not UTF-8 (unexpected end of data at byte 5); save it as UTF-8"),
    case("an experiment given to fit", "fit experiment.toml",
         says="experiment.toml: is an experiment file (it has [data], [model], [train]), where a pipeline file is needed; name that one"),
    case("a schema given to build", "build schema.toml",
         says="schema.toml: is a schema file (it has [columns], [keys], [tables]), where a pipeline file is needed; name that one"),
    case("a pipeline given to train", "train pipeline.toml",
         says="pipeline.toml: is a pipeline file (it has [source], [joins], [labels]), where an experiment file is needed; name that one"),
    case("a schema given to train", "train schema.toml",
         says="schema.toml: is a schema file (it has [columns], [keys], [tables]), where an experiment file is needed; name that one"),
    case("a log given to fit", "fit log.csv",
         says="log.csv: not valid TOML: Expected '=' after a key in a key/value pair (at line 1, column 5), found 'user,item,price,genres,shown_at,paid,clicked'; name a TOML file"),
    case("an experiment named as the schema", "fit pipeline.toml", pipeline('"schema.toml"', '"experiment.toml"'),
         says="experiment.toml: is an experiment file (it has [data], [model], [train]), where a schema file is needed; name that one"),
    case("a schema file that is missing", "fit pipeline.toml", pipeline('"schema.toml"', '"shema.toml"'),
         says="shema.toml: no such file; pipeline.toml names it as schema_file"),
    case("a misspelt key", "fit pipeline.toml", pipeline("[source]", "[sorce]"),
         says="pipeline.toml: unknown key 'sorce' (did you mean 'source'?)"),
    case("a misspelt key inside", "fit pipeline.toml", pipeline('format = "csv"\n\n[csv]', 'fromat = "csv"\n\n[csv]'),
         says="pipeline.toml: unknown key 'source.fromat' (did you mean 'format'?)"),
    case("a missing key", "fit pipeline.toml", pipeline('schema_file = "schema.toml"', ""),
         says="pipeline.toml: 'schema_file' is missing; add it"),
    case("a missing section", "fit pipeline.toml", pipeline('[split]\nby = "time"', ""),
         says="pipeline.toml: 'split' is missing; add it"),
    case("a section in place of a value", "fit pipeline.toml",
         pipeline('schema_file = "schema.toml"', "schema_file = {}"),
         says="pipeline.toml: schema_file: must be a text, found an empty section"),
    case("a value in place of a section", "fit schema2.toml",
         put("schema2.toml", 'source = "log.csv"\nschema_file = "schema.toml"\nsplit = 3\n'),
         says="schema2.toml: source: must be a section of settings, found 'log.csv'"),
    case("a text in place of a number", "fit pipeline.toml", schema("rows = 50", 'rows = "50"'),
         says="schema.toml: tables.item.rows: must be a whole number, found '50'"),
    case("a fraction in place of a whole number", "fit pipeline.toml", schema("rows = 50", "rows = 50.5"),
         says="schema.toml: tables.item.rows: must be a whole number, found 50.5"),
    case("a number too small", "fit pipeline.toml", schema("rows = 50", "rows = 1"),
         says="schema.toml: tables.item.rows: must be at least 3, found 1"),
    case("a number too large", "fit pipeline.toml", schema("dim = 4", "dim = 5000"),
         says="schema.toml: tables.item.dim: must be at most 4096, found 5000"),
    case("a number in place of a text", "fit pipeline.toml", schema('user = "user"', "user = 3"),
         says="schema.toml: keys.user: must be a text, found 3"),
    case("a number in place of true or false", "fit pipeline.toml",
         add("pipeline.toml", "\n[[filters]]\ncolumn = 'paid'\nnot_null = 1\n"),
         says="pipeline.toml: filters[0].not_null: must be true or false, found 1"),
    case("a text in place of an array", "fit pipeline.toml", pipeline('on = ["item"]', 'on = "item"'),
         says="pipeline.toml: joins[0].on: must be an array, such as [\"a\", \"b\"], found 'item'"),
    case("an array that is empty", "fit pipeline.toml", pipeline('on = ["item"]', "on = []"),
         says="pipeline.toml: joins[0].on: needs at least 1 entry, found []"),
    case("none of the choices", "fit pipeline.toml", pipeline('by = "time"', 'by = "tiem"'),
         says="pipeline.toml: split.by: must be 'time', 'hash', 'file' or 'rules', found 'tiem' (did you mean 'time'?)"),
    case("none of the formats", "fit pipeline.toml",
         pipeline('path = "log.csv"\nformat = "csv"', 'path = "log.csv"\nformat = "cvs"'),
         says="pipeline.toml: source.format: must be 'csv', 'parquet' or 'jsonl', found 'cvs' (did you mean 'csv'?)"),
    # schema.toml
    case("columns: an unknown dtype", "fit pipeline.toml", schema('price = "float32"', 'price = "flaot32"'),
         says="schema.toml: columns: column 'price' has unknown dtype 'flaot32' (did you mean 'float32'?); known: bool, int8, int16, int32, int64, float32, float64, string, timestamp, list<int64>, list<float32>, list<string>, list<timestamp>, map<string,float32>, map<int64,float32>"),
    case("columns: a dtype of another language", "fit pipeline.toml", schema('price = "float32"', 'price = "double"'),
         says="schema.toml: columns: column 'price' has unknown dtype 'double' (did you mean 'float64'?); known: bool, int8, int16, int32, int64, float32, float64, string, timestamp, list<int64>, list<float32>, list<string>, list<timestamp>, map<string,float32>, map<int64,float32>"),
    case("columns: missing", "fit pipeline.toml", put("schema.toml", '[features]\n[tasks]\n'),
         says="schema.toml: 'columns' is missing; add it"),
    case("keys: an unknown key", "fit pipeline.toml", schema('time = "shown_at"', 'tme = "shown_at"'),
         says="schema.toml: unknown key 'keys.tme' (did you mean 'time'?)"),
    case("keys: a column that is not declared", "fit pipeline.toml", schema('time = "shown_at"', 'time = "shown"'),
         says="schema.toml: keys.time names column 'shown', which [columns] does not declare (did you mean 'shown_at'?)"),
    case("keys: a column of another type", "fit pipeline.toml", schema('time = "shown_at"', 'time = "price"'),
         says="schema.toml: keys.time needs column 'price' to be timestamp, found float32; name another, or declare it so"),
    case("keys: a list as sample weight", "fit pipeline.toml", schema("[keys]", '[keys]\nsample_weight = "genres"'),
         says="schema.toml: keys.sample_weight needs column 'genres' to be one of bool, int8, int16, int32, int64, float32, float64, found list<string>; name another, or declare it so"),
    case("keys: a text to keep", "fit pipeline.toml", schema("[keys]", '[keys]\nkeep = "price"'),
         says="schema.toml: keys.keep: must be an array, such as [\"a\", \"b\"], found 'price'"),
    case("keys: an unknown column to keep", "fit pipeline.toml", schema("[keys]", '[keys]\nkeep = ["prise"]'),
         says="schema.toml: keys.keep names column 'prise', which [columns] does not declare (did you mean 'price'?)"),
    case("tables: without rows", "fit pipeline.toml", schema("rows = 50, dim = 4", "dim = 4"),
         says="schema.toml: 'tables.item.rows' is missing; add it"),
    case("tables: an unknown way to ids", "fit pipeline.toml",
         schema("rows = 50, dim = 4", 'rows = 50, ids = "hashed"'),
         says="schema.toml: tables.item.ids: must be 'vocabulary', 'hash', 'unbounded' or 'zch', found 'hashed' (did you mean 'hash'?)"),
    case("tables: TorchRec's other managed collision", "fit pipeline.toml",
         schema("rows = 50, dim = 4", 'rows = 50, ids = "mpzch"'),
         says="schema.toml: tables.item.ids: 'mpzch' may be TorchRec's multi-probe map, which fbgemm only reads on CPUs; say 'zch', its sorted map, or 'unbounded': both train alike on every device"),
    case("tables: counting ids that TorchRec does not count", "fit pipeline.toml",
         schema("rows = 50, dim = 4", 'rows = 50, ids = "zch", min_count = 2'),
         says="schema.toml: tables.item.min_count: with ids = \"zch\" TorchRec gives a row to every id that it meets; take min_count out, or say ids = \"unbounded\", which counts"),
    case("tables: evicting from a vocabulary", "fit pipeline.toml",
         schema("rows = 50, dim = 4", 'rows = 50, eviction = "lfu"'),
         says="schema.toml: tables.item.eviction: its ids are a vocabulary, of which none is ever evicted; say ids = \"unbounded\", or take eviction out"),
    case("tables: an unknown eviction", "fit pipeline.toml",
         schema("rows = 50, dim = 4", 'rows = 50, ids = "unbounded", eviction = "fifo"'),
         says="schema.toml: tables.item.eviction: must be 'lru' or 'lfu', found 'fifo'"),
    case("tables: read by nothing", "fit pipeline.toml", schema("[tables]", "[tables]\nuser = { rows = 9 }"),
         says="schema.toml: tables.user is read by no feature and no sequence; remove it"),
    case("tables: two families of ids", "fit pipeline.toml", schema('table = "brand"', 'table = "item"'),
         says="schema.toml: tables.item is read by column 'item' (integer) and column 'brand' (string); give each type a table of its own or declare the same dtype"),
    case("features: no kind", "fit pipeline.toml", schema('price = { kind = "numeric" }', "price = {}"),
         says="schema.toml: 'features.price.kind' is missing; add one of: categorical, cross, multi_valued, text, bucket, date_part, numeric, lookup, overlap, expression, vector"),
    case("features: a kind that is no text", "fit pipeline.toml",
         schema('price = { kind = "numeric" }', "price = { kind = 3 }"),
         says="schema.toml: features.price.kind: unknown '3'; known: categorical, cross, multi_valued, text, bucket, date_part, numeric, lookup, overlap, expression, vector"),
    case("features: an unknown kind", "fit pipeline.toml", schema('"numeric"', '"numerc"'),
         says="schema.toml: features.price.kind: unknown 'numerc' (did you mean 'numeric'?); known: categorical, cross, multi_valued, text, bucket, date_part, numeric, lookup, overlap, expression, vector"),
    case("features: an unknown setting", "fit pipeline.toml",
         schema('kind = "numeric"', 'kind = "numeric", clipp = 3'),
         says="schema.toml: unknown key 'features.price.clipp' (did you mean 'clip'?)"),
    case("features: a setting of another kind", "fit pipeline.toml",
         schema('kind = "numeric"', 'kind = "numeric", table = "item"'),
         says="schema.toml: unknown key 'features.price.table'; known here: clip, column, kind, normalize, serve, side, transform, value"),
    case("features: an impossible value", "fit pipeline.toml",
         schema('kind = "numeric"', 'kind = "numeric", clip = -1'),
         says="schema.toml: features.price.clip: must be above 0, found -1"),
    case("features: no choice of that name", "fit pipeline.toml",
         schema('kind = "numeric"', 'kind = "numeric", transform = "log"'),
         says="schema.toml: features.price.transform: must be 'none' or 'log1p', found 'log' (did you mean 'log1p'?)"),
    case("features: no such column", "fit pipeline.toml",
         schema('price = { kind = "numeric" }', 'prices = { kind = "numeric" }'),
         says="schema.toml: features.prices names column 'prices', which [columns] does not declare (did you mean 'price'?)"),
    case("features: a column of another type", "fit pipeline.toml",
         feature('name = { kind = "numeric", column = "brand" }'),
         says="schema.toml: features.name needs column 'brand' to be one of bool, int8, int16, int32, int64, float32, float64, found string; name another, or declare it so"),
    case("features: no such table", "fit pipeline.toml", schema('table = "brand"', 'table = "brands"'),
         says="schema.toml: features.brand names table 'brands', which [tables] does not declare (did you mean 'brand'?)"),
    case("features: no table", "fit pipeline.toml", schema(', table = "brand"', ""),
         says="schema.toml: 'features.brand.table' is missing; add it"),
    case("features: a label among the inputs", "fit pipeline.toml", feature('clicked = { kind = "numeric" }'),
         says="schema.toml: features.clicked reads column 'clicked', the label of task 'click'; remove the leak"),
    case("features: none", "fit pipeline.toml",
         put("schema.toml", '[columns]\nclicked = "bool"\n[features]\n[tasks]\nclick = { label = "clicked" }\n'),
         says="schema.toml: features: none declared; a model needs at least one input"),
    case("features: a name with a blank", "fit pipeline.toml",
         feature('"the price" = { kind = "numeric", column = "price" }'),
         says="schema.toml: features: name 'the price' must be a letter followed by letters, digits, '_' or '-' (64 at most)"),
    case("features: fixed without its value", "fit pipeline.toml",
         schema('kind = "numeric"', 'kind = "numeric", serve = "fixed"'),
         says='schema.toml: features.price: serve = "fixed" and value = ... belong together; give both or neither'),
    case("features: a fixed value of another type", "fit pipeline.toml",
         schema('kind = "numeric"', 'kind = "numeric", serve = "fixed", value = "x"'),
         says="schema.toml: features.price: value 'x' does not fit column 'price' of type float32; write one of that type"),
    case("features: a fixed value of a list", "fit pipeline.toml",
         schema('kind = "multi_valued", table = "genre"', 'kind = "multi_valued", table = "genre", serve = "fixed", value = "war"'),
         says="schema.toml: features.genres: column 'genres' is list<string>, and a fixed value is one number or text; take serve and value out"),
    case("features: an unknown side", "fit pipeline.toml",
         schema('kind = "numeric"', 'kind = "numeric", side = "item"'),
         says="schema.toml: features.price.side: must be 'user', 'context' or 'candidate', found 'item'"),
    case("bucket: edges out of order", "fit pipeline.toml",
         schema('kind = "numeric"', 'kind = "bucket", edges = [1.0, 3.0, 2.0]'),
         says="schema.toml: features.price.edges: edges must increase, found 3 before 2; sort them"),
    case("bucket: edges and buckets", "fit pipeline.toml",
         schema('kind = "numeric"', 'kind = "bucket", edges = [1.0, 3.0], buckets = 8'),
         says="schema.toml: features.price: edges and buckets are both given; give edges, or buckets to fit them"),
    case("bucket: whole numbers as edges are read; one text is not", "fit pipeline.toml",
         schema('kind = "numeric"', 'kind = "bucket", edges = ["1"]'),
         says="schema.toml: features.price.edges[0]: must be a number, found '1'"),
    case("bucket: a table of its name", "fit pipeline.toml", schema('"numeric"', '"bucket"'),
         schema("[tables]", "[tables]\nprice = { rows = 9 }"),
         says="schema.toml: features.price: a bucket feature brings its own table, and [tables] declares 'price' too; rename one"),
    case("date_part: an unknown part", "fit pipeline.toml", feature('hour = { kind = "date_part", part = "hours" }'),
         says="schema.toml: features.hour.part: must be 'hour', 'weekday', 'day_of_month', 'month' or 'hour_of_week', found 'hours' (did you mean 'hour'?)"),
    case("date_part: no time", "fit pipeline.toml", schema('time = "shown_at"', ""),
         feature('hour = { kind = "date_part", part = "hour" }'),
         says="schema.toml: features.hour is a part of the row's time, which [keys] does not name; add keys.time or column = ..."),
    case("cross: one column", "fit pipeline.toml",
         feature('both = { kind = "cross", columns = ["item"], table = "item" }'),
         says="schema.toml: features.both.columns: needs at least 2 entries, found ['item']"),
    case("cross: a column twice", "fit pipeline.toml",
         feature('both = { kind = "cross", columns = ["item", "item"], table = "item" }'),
         says="schema.toml: features.both names a column twice; name different columns"),
    case("cross: a table of plain ids", "fit pipeline.toml",
         feature('both = { kind = "cross", columns = ["user", "item"], table = "item" }'),
         says="schema.toml: tables.item is read by feature 'both' (hashed) and column 'item' (integer); give each type a table of its own or declare the same dtype"),
    case("cross: a column for the request that it does not read", "fit pipeline.toml",
         feature('both = { kind = "cross", columns = ["user", "item"], table = "item", user_columns = ["usr"] }'),
         says="schema.toml: features.both.user_columns names 'usr', which the feature does not read (did you mean 'user'?)"),
    case("cross: columns for the request on the user's side", "fit pipeline.toml",
         feature('both = { kind = "cross", columns = ["user", "item"], table = "item", side = "user", user_columns = ["user"] }'),
         says='schema.toml: features.both: all columns of a feature of side = "user" come once a request; remove user_columns'),
    case("overlap: a text and a number", "fit pipeline.toml",
         feature('both = { kind = "overlap", columns = ["genres", "item"] }'),
         says="schema.toml: features.both reads columns 'item' (integer) and 'genres' (string); compare ids of one type"),
    case("lookup: no map", "fit pipeline.toml",
         feature('price2 = { kind = "lookup", column = "price", key = "brand" }'),
         says="schema.toml: features.price2 needs column 'price' to be one of map<string,float32>, map<int64,float32>, found float32; name another, or declare it so"),
    case("lookup: no key", "fit pipeline.toml", column('scores = "map<string,float32>"'),
         feature('scores = { kind = "lookup" }'),
         says="schema.toml: 'features.scores.key' is missing; add it"),
    case("vector: no dim", "fit pipeline.toml", column('picture = "list<float32>"'),
         feature('picture = { kind = "vector" }'),
         says="schema.toml: 'features.picture.dim' is missing; add it"),
    case("vector: a list of texts", "fit pipeline.toml",
         feature('v = { kind = "vector", column = "genres", dim = 3 }'),
         says="schema.toml: features.v needs column 'genres' to be list<float32>, found list<string>; name another, or declare it so"),
    case("text: n-grams out of order", "fit pipeline.toml",
         feature('t = { kind = "text", column = "brand", table = "brand", ngrams = [2, 1] }'),
         says="schema.toml: features.t.ngrams: ngrams are lengths that increase, such as [1, 2], found [2, 1]"),
    case("text: an n-gram of nothing", "fit pipeline.toml",
         feature('t = { kind = "text", column = "brand", table = "brand", ngrams = [0] }'),
         says="schema.toml: features.t.ngrams[0]: must be at least 1, found 0"),
    case("expression: not closed", "fit pipeline.toml",
         feature('e = { kind = "expression", expression = "log(price" }'),
         says="schema.toml: features.e.expression: position 10: expected an operator or ')', found the end"),
    case("expression: an unknown function", "fit pipeline.toml",
         feature('e = { kind = "expression", expression = "lg(price)" }'),
         says="schema.toml: features.e.expression: position 1: no function 'lg' (did you mean 'log'?); known: log, log1p, exp, sqrt, abs, round, floor, min, max, clip, if"),
    case("expression: a sign that means nothing", "fit pipeline.toml",
         feature('e = { kind = "expression", expression = "price % 2" }'),
         says="schema.toml: features.e.expression: position 7: '%' means nothing here; remove it (a column with unusual characters goes in backticks)"),
    case("expression: no column", "fit pipeline.toml", feature('e = { kind = "expression", expression = "1 + 1" }'),
         says="schema.toml: features.e.expression: the expression reads no column; name at least one"),
    case("expression: an unknown column", "fit pipeline.toml",
         feature('e = { kind = "expression", expression = "prise + 1" }'),
         says="schema.toml: features.e names column 'prise', which [columns] does not declare (did you mean 'price'?)"),
    case("expression: nothing", "fit pipeline.toml", feature('e = { kind = "expression", expression = "" }'),
         says="schema.toml: features.e.expression: position 1: expected a number, a column, a function or '(', found the end"),
    case("expression: too many arguments", "fit pipeline.toml",
         feature('e = { kind = "expression", expression = "log1p(price, 2)" }'),
         says="schema.toml: features.e.expression: position 1: log1p takes 1 argument(s), found 2"),
    case("expression: too long", "fit pipeline.toml",
         feature(f'e = {{ kind = "expression", expression = "price{" + price" * 400}" }}'),
         says="schema.toml: features.e.expression: 3205 characters, at most 1000; split it into several features"),
    case("expression: too deep", "fit pipeline.toml",
         feature(f'e = {{ kind = "expression", expression = "{"(" * 200}price{")" * 200}" }}'),
         says="schema.toml: features.e.expression: position 52: more than 50 brackets inside each other; split it into several features"),
    case("sequences: no tokens", "fit pipeline.toml", schema('item = { table = "item" }\n\n[tasks]', "[tasks]"),
         says="schema.toml: sequences.recent has no tokens; add one such as item = { table = ... }"),
    case("sequences: a misspelt setting", "fit pipeline.toml", schema("max_length = 5", "max_lenght = 5"),
         says="schema.toml: sequences.recent: 'max_lenght' is neither a setting (did you mean 'max_length'?) nor a token such as { table = ... }"),
    case("sequences: a length of nothing", "fit pipeline.toml", schema("max_length = 5", "max_length = 0"),
         says="schema.toml: sequences.recent.max_length: must be at least 1, found 0"),
    case("sequences: a misspelt key of a token", "fit pipeline.toml",
         schema('item = { table = "item" }\n\n[tasks]', 'item = { tabel = "item" }\n\n[tasks]'),
         says="schema.toml: unknown key 'sequences.recent.item.tabel' (did you mean 'table'?)"),
    case("sequences: a token without its table", "fit pipeline.toml",
         schema('item = { table = "item" }\n\n[tasks]', 'item = {}\n\n[tasks]'),
         says="schema.toml: 'sequences.recent.item.table' is missing; add it"),
    case("sequences: a token of an unknown kind", "fit pipeline.toml",
         schema('item = { table = "item" }\n\n[tasks]', 'item = { table = "item" }\nage = { kind = "time_gpa" }\n\n[tasks]'),
         says="schema.toml: sequences.recent.age.kind: unknown 'time_gpa' (did you mean 'time_gap'?); known: id, time_gap"),
    case("sequences: a setting of a time gap", "fit pipeline.toml",
         schema('item = { table = "item" }\n\n[tasks]', 'item = { table = "item" }\nage = { kind = "time_gap", buckets = 1 }\n\n[tasks]'),
         says="schema.toml: sequences.recent.age.buckets: must be at least 2, found 1"),
    case("sequences: a table that is not there", "fit pipeline.toml",
         schema('item = { table = "item" }\n\n[tasks]', 'item = { table = "itme" }\n\n[tasks]'),
         says="schema.toml: sequences.recent.item names table 'itme', which [tables] does not declare (did you mean 'item'?)"),
    case("sequences: a column that is not there", "fit pipeline.toml",
         schema('item = { table = "item" }\n\n[tasks]', 'items = { table = "item" }\n\n[tasks]'),
         says="schema.toml: sequences.recent.items names column 'recent_items', which [columns] does not declare (did you mean 'recent_item'?)"),
    case("sequences: a column of another type", "fit pipeline.toml",
         schema('item = { table = "item" }\n\n[tasks]', 'item = { table = "item", column = "item" }\n\n[tasks]'),
         says="schema.toml: sequences.recent.item needs column 'item' to be one of list<int64>, list<string>, found int64; name another, or declare it so"),
    case("sequences: the name of a feature", "fit pipeline.toml", schema("[sequences.recent]", "[sequences.price]"),
         schema('item = { table = "item" }\n\n[tasks]', 'item = { table = "item", column = "recent_item" }\n\n[tasks]'),
         says="schema.toml: sequences.price: a feature has this name too; rename one"),
    case("sequences: a target that is no token", "fit pipeline.toml",
         schema("max_length = 5", 'max_length = 5\ntarget = { itm = "item" }'),
         says="schema.toml: sequences.recent.target.itm: no id token of that name (did you mean 'item'?)"),
    case("sequences: a target of another table", "fit pipeline.toml",
         schema("max_length = 5", 'max_length = 5\ntarget = { item = "brand" }'),
         says="schema.toml: sequences.recent.target.item needs a candidate-side categorical feature of table 'item', found 'brand'"),
    case("sequences: a time gap without a time", "fit pipeline.toml", column('recent_at = "list<timestamp>"'),
         schema('time = "shown_at"', ""),
         schema('item = { table = "item" }\n\n[tasks]', 'item = { table = "item" }\nat = { kind = "time_gap" }\n\n[tasks]'),
         says="schema.toml: sequences.recent.at is a time gap, so [keys] must name the impression's time column"),
    case("sequences: no section", "fit pipeline.toml",
         schema('[sequences.recent]\nmax_length = 5\nitem = { table = "item" }', '[sequences]\nrecent = "item"'),
         says="schema.toml: sequences.recent: must be a section of settings, found 'item'"),
    case("tasks: none", "fit pipeline.toml",
         schema('click = { label = "clicked" }\nbuy = { label = "bought", given = "click" }', ""),
         says="schema.toml: tasks: none declared; say what to predict, such as click = { label = 'clicked' }"),
    case("tasks: no such label", "fit pipeline.toml", schema('label = "clicked"', 'label = "cliked"'),
         says="schema.toml: tasks.click names column 'cliked', which [columns] does not declare (did you mean 'clicked'?)"),
    case("tasks: a label of texts", "fit pipeline.toml", schema('label = "clicked"', 'label = "user"'),
         says="schema.toml: tasks.click needs column 'user' to be one of bool, int8, int16, int32, int64, float32, float64, found string; name another, or declare it so"),
    case("tasks: a mask of fractions", "fit pipeline.toml",
         schema('label = "clicked"', 'label = "clicked", mask = "price"'),
         says="schema.toml: tasks.click.mask needs column 'price' to be one of bool, int8, int16, int32, int64, found float32; name another, or declare it so"),
    case("tasks: no such parent", "fit pipeline.toml", schema('given = "click"', 'given = "clik"'),
         says="schema.toml: tasks.buy.given names task 'clik', which is not declared (did you mean 'click'?)"),
    case("tasks: a parent of another kind", "fit pipeline.toml",
         schema('given = "click"', 'given = "click", kind = "regression"'),
         says="schema.toml: tasks.buy.given: both tasks of a funnel step must be binary, found a regression; take given out"),
    case("tasks: a circle", "fit pipeline.toml", schema('label = "clicked"', 'label = "clicked", given = "buy"'),
         says="schema.toml: tasks.click.given: the funnel runs in a circle; take one given out"),
    case("tasks: without a label", "fit pipeline.toml", schema('label = "clicked"', 'kind = "binary"'),
         says="schema.toml: 'tasks.click.label' is missing; add it"),
    # pipeline.toml
    case("pipeline: no source", "fit pipeline.toml", pipeline('[source]\npath = "log.csv"\nformat = "csv"\n', ""),
         says="pipeline.toml: give one [source], or several [[sources]]"),
    case("pipeline: a source and sources", "fit pipeline.toml",
         add("pipeline.toml", '\n[[sources]]\npath = "a.csv"\nformat = "csv"\n'),
         says="pipeline.toml: give one [source], or several [[sources]]"),
    case("pipeline: a source without its format", "fit pipeline.toml",
         pipeline('path = "log.csv"\nformat = "csv"', 'path = "log.csv"'),
         says="pipeline.toml: 'source.format' is missing; add it"),
    case("pipeline: fit_on is missing", "fit pipeline.toml",
         pipeline('fit_on = { from = "2026-10-01", to = "2026-10-02" }', ""),
         says='pipeline.toml: fit_on is missing; say the training days: fit_on = { from = "2026-10-01", to = "2026-10-12" }'),
    case("pipeline: fit_on is a number", "fit pipeline.toml",
         pipeline('fit_on = { from = "2026-10-01", to = "2026-10-02" }', "fit_on = 3"),
         says='pipeline.toml: fit_on: name days or splits, such as ["train"], or a range { from = "2026-10-01", to = "2026-10-31" }; found 3'),
    case("pipeline: fit_on without its end", "fit pipeline.toml", pipeline(', to = "2026-10-02" }', " }"),
         says="pipeline.toml: fit_on: needs from and to, such as { from = \"2026-10-01\", to = \"2026-10-31\" }, found ['from']"),
    case("pipeline: fit_on is backwards", "fit pipeline.toml", pipeline('to = "2026-10-02"', 'to = "2026-09-02"'),
         says="pipeline.toml: fit_on: runs from 2026-10-01 to 2026-09-02, which is backwards; swap them"),
    case("pipeline: fit_on from no day", "fit pipeline.toml", pipeline('to = "2026-10-02"', 'to = "2.10.2026"'),
         says="pipeline.toml: fit_on: '2.10.2026' is no day; write it as \"2026-10-01\""),
    case("pipeline: fit_on names nothing", "fit pipeline.toml",
         pipeline('{ from = "2026-10-01", to = "2026-10-02" }', "[]"),
         says="pipeline.toml: fit_on: names no day; give at least one day or split"),
    case("pipeline: fit_on names a day twice", "fit pipeline.toml",
         pipeline('{ from = "2026-10-01", to = "2026-10-02" }', '["2026-10-01", "2026-10-01"]'),
         says="pipeline.toml: fit_on: names a day twice; name each once"),
    case("pipeline: fit_on names a path", "fit pipeline.toml",
         pipeline('{ from = "2026-10-01", to = "2026-10-02" }', '["data/x"]'),
         says="pipeline.toml: fit_on: 'data/x' is not the name of a day or split"),
    case("pipeline: fit_on names a day without rows", "fit pipeline.toml",
         pipeline('{ from = "2026-10-01", to = "2026-10-02" }', '["2026-10-01", "2026-10-11"]'),
         says="pipeline.toml: fit_on names '2026-10-11', which has no rows (did you mean '2026-10-01'?); found 2026-10-01, 2026-10-02, 2026-10-03, 2026-10-04"),
    case("pipeline: fit_on names days without rows", "fit pipeline.toml",
         pipeline('{ from = "2026-10-01", to = "2026-10-02" }', '{ from = "2025-10-01", to = "2025-10-02" }'),
         says="pipeline.toml: no row is of the days or splits that fit_on names; found 2026-10-01, 2026-10-02, 2026-10-03, 2026-10-04; correct fit_on"),
    case("pipeline: a split by time without a time", "fit pipeline.toml", schema('time = "shown_at"', ""),
         says='pipeline.toml: split by = "time" needs keys.time in the schema; name the time column there, or split by hash or file'),
    case("pipeline: a split by time with a seed", "fit pipeline.toml",
         pipeline('by = "time"', 'by = "time"\nseed = 3'),
         says='pipeline.toml: split: by = "time" takes neither column nor seed; the time is keys.time of the schema'),
    case("pipeline: a split by hash without shares", "fit pipeline.toml", pipeline('by = "time"', 'by = "hash"'),
         says='pipeline.toml: split: parts = { train = 0.8, ... } is needed with by = "hash", and only then'),
    case("pipeline: shares that do not add up", "fit pipeline.toml",
         pipeline('by = "time"', 'by = "hash"\nparts = { train = 0.8, test = 0.3 }'),
         says="pipeline.toml: split: the shares {'train': 0.8, 'test': 0.3} add up to 1.1; they must add up to 1"),
    case("pipeline: a share of nothing", "fit pipeline.toml",
         pipeline('by = "time"', 'by = "hash"\nparts = { train = 1.0, test = 0.0 }'),
         says="pipeline.toml: split: the share of 'train' is 1; it must lie between 0 and 1"),
    case("pipeline: a split with an impossible name", "fit pipeline.toml",
         pipeline('by = "time"', 'by = "hash"\nparts = { train = 0.8, "a/b" = 0.2 }'),
         says="pipeline.toml: split: split name 'a/b' becomes a folder; use letters, digits, '_', '-' and '.'"),
    case("pipeline: a split by a column of fractions", "fit pipeline.toml",
         pipeline('by = "time"', 'by = "hash"\ncolumn = "price"\nparts = { train = 0.8, test = 0.2 }'),
         says="log.csv: the column of the split is float32; split by text, integers or timestamps"),
    case("pipeline: a split by a column with a null", "fit pipeline.toml",
         pipeline('by = "time"', 'by = "hash"\ncolumn = "user"\nparts = { train = 0.8, test = 0.2 }'),
         cell(7, "user", ""),
         says="log.csv, row 7: the column of the split is null, so the row belongs to none; add a filter with not_null = true"),
    case("pipeline: a split by a column that is not there", "fit pipeline.toml",
         pipeline('by = "time"', 'by = "hash"\ncolumn = "usr"\nparts = { train = 0.8, test = 0.2 }'),
         says="log.csv: no column 'usr' (did you mean 'user'?); the file has user, item, price, genres, shown_at, paid, clicked; correct [columns] or the rule that names it, rename a column, or add a join"),
    case("pipeline: a split by rules without rules", "fit pipeline.toml", pipeline('by = "time"', 'by = "rules"'),
         says='pipeline.toml: split: rules = { test = { column = "day", at_least = 30 }, ... } is needed with by = "rules", and only then'),
    case("pipeline: a split by rules with a seed", "fit pipeline.toml",
         pipeline('by = "time"', 'by = "rules"\nseed = 1\nrules = { train = { column = "item", at_least = 3 } }'),
         says='pipeline.toml: split: by = "rules" takes neither column nor seed; every rule names its own column'),
    case("pipeline: a row of no rule", "fit pipeline.toml",
         pipeline('by = "time"', 'by = "rules"\nrules = { train = { column = "item", at_least = 3 } }'),
         says="log.csv, row 1: no rule of [split] is true, so the row belongs to none; add a rule, or a filter that leaves such rows out"),
    case("pipeline: a source without its split", "fit pipeline.toml", pipeline('by = "time"', 'by = "file"'),
         says="pipeline.toml: source 1: split = ... is needed with [split] by = \"file\", and only then; found by = 'file'"),
    case("pipeline: a source with a needless split", "fit pipeline.toml",
         pipeline('path = "log.csv"', 'path = "log.csv"\nsplit = "train"'),
         says="pipeline.toml: source 1: split = ... is needed with [split] by = \"file\", and only then; found by = 'time'"),
    case("pipeline: a split of a source that is a number", "fit pipeline.toml",
         pipeline('path = "log.csv"', 'path = "log.csv"\nsplit = 3'),
         says="pipeline.toml: source.split.str: must be a text, found 3"),
    case("pipeline: a path that is a number", "fit pipeline.toml", pipeline('path = "log.csv"', "path = 3"),
         says='pipeline.toml: source.path: must be an array, such as ["a", "b"], found 3'),
    case("rules: no condition", "fit pipeline.toml", pipeline('{ column = "paid", above = 0 }', '{ column = "paid" }'),
         says="pipeline.toml: labels.bought: a rule needs one of equals, in, at_least, above, at_most, below, not_null"),
    case("rules: no column", "fit pipeline.toml", pipeline('{ column = "paid", above = 0 }', "{ above = 0 }"),
         says="pipeline.toml: 'labels.bought.column' is missing; add it"),
    case("rules: a misspelt condition", "fit pipeline.toml",
         pipeline('{ column = "paid", above = 0 }', '{ column = "paid", abov = 0 }'),
         says="pipeline.toml: unknown key 'labels.bought.abov' (did you mean 'above'?)"),
    case("rules: never true", "fit pipeline.toml",
         pipeline('{ column = "paid", above = 0 }', '{ column = "paid", in = [] }'),
         says="pipeline.toml: labels.bought: in = [] is never true; list at least one value"),
    case("rules: a text against a number", "fit pipeline.toml",
         pipeline('{ column = "paid", above = 0 }', '{ column = "paid", above = "0" }'),
         says="pipeline.toml: labels.bought: '0' cannot be compared with column 'paid', which is float32; write a value of that type, or declare the column's dtype under [columns] of the schema"),
    case("rules: a list as value", "fit pipeline.toml",
         pipeline('{ column = "paid", above = 0 }', '{ column = "paid", above = [0] }'),
         says="pipeline.toml: labels.bought.above: write one text, number, boolean or date, found [0]"),
    case("rules: a number without end", "fit pipeline.toml",
         pipeline('{ column = "paid", above = 0 }', '{ column = "paid", above = inf }'),
         says="pipeline.toml: labels.bought.above: write a finite number, found inf"),
    case("rules: an order of texts", "fit pipeline.toml",
         pipeline('{ column = "paid", above = 0 }', '{ column = "user", above = "u3" }'),
         says="pipeline.toml: labels.bought: column 'user' is string, which has no order for at_least, above, at_most or below; declare a number under [columns] of the schema"),
    case("rules: a column that no file has", "fit pipeline.toml",
         pipeline('{ column = "paid", above = 0 }', '{ column = "pay", above = 0 }'),
         says="log.csv: no column 'pay'; the file has user, item, price, genres, shown_at, paid, clicked; correct [columns] or the rule that names it, rename a column, or add a join"),
    case("labels: a dtype of texts", "fit pipeline.toml", schema('bought = "bool"', 'bought = "string"'),
         schema('buy = { label = "bought", given = "click" }', ""),
         says="pipeline.toml: labels.bought: the schema declares it as string; a label is a bool or a number"),
    case("labels: made of a label below", "fit pipeline.toml",
         pipeline("[labels]", '[labels]\nearly = { column = "bought", equals = true }'),
         says="pipeline.toml: labels.early is made of label 'bought', which stands at or below it; move that one up"),
    case("labels: a misspelt key of an attribution", "fit pipeline.toml",
         pipeline('bought = { column = "paid", above = 0 }', 'bought = { event = { column = "paid", above = 0 }, same = ["user"], within_second = 3 }'),
         says="pipeline.toml: unknown key 'labels.bought.within_second' (did you mean 'within_seconds'?)"),
    case("labels: an attribution without its window", "fit pipeline.toml",
         pipeline('bought = { column = "paid", above = 0 }', 'bought = { event = { column = "paid", above = 0 }, same = ["user"] }'),
         says="pipeline.toml: 'labels.bought.within_seconds' is missing; add it"),
    case("labels: an attribution by fractions", "fit pipeline.toml",
         pipeline('bought = { column = "paid", above = 0 }', 'bought = { event = { column = "paid", above = 0 }, same = ["price"], within_seconds = 30 }'),
         says="pipeline.toml: labels.bought: column 'price' is float32, and rows are told apart by text, integers, booleans or timestamps; name another, or declare it as one of these"),
    case("labels: a label from a history", "fit pipeline.toml",
         pipeline("[labels]", '[labels]\nlate = { column = "recent_item", not_null = true }'),
         says="pipeline.toml: labels.late names column 'recent_item', which histories.recent makes of other rows; name a column that the rows bring along"),
    case("filters: none is left", "build pipeline.toml",
         add("pipeline.toml", '\n[[filters]]\ncolumn = "price"\nabove = 1000\n'),
         says="pipeline.toml: no row is left to publish; check the source and the filters"),
    case("filters: none is left to fit on", "fit pipeline.toml",
         add("pipeline.toml", '\n[[filters]]\ncolumn = "price"\nabove = 1000\n'),
         says="pipeline.toml: no row is left to fit on; check the source and the filters"),
    case("filters: on a history", "fit pipeline.toml",
         add("pipeline.toml", '\n[[filters]]\ncolumn = "recent_item"\nnot_null = true\n'),
         says="pipeline.toml: filters[0] names column 'recent_item', which histories.recent makes of other rows; name a column that the rows bring along"),
    case("histories: a column that is no list", "fit pipeline.toml",
         pipeline('{ recent_item = "item" }', '{ price = "item" }'),
         says="pipeline.toml: histories.recent.tokens: 'price' must be a list column of the schema, which has it as float32"),
    case("histories: a column that is not declared", "fit pipeline.toml",
         pipeline('{ recent_item = "item" }', '{ recent_itm = "item" }'),
         says="pipeline.toml: histories.recent.tokens: 'recent_itm' must be a list column of the schema, which does not declare it (did you mean 'recent_item'?)"),
    case("histories: an event column that is not declared", "fit pipeline.toml",
         pipeline('{ recent_item = "item" }', '{ recent_item = "itm" }'),
         says="pipeline.toml: histories.recent.tokens: event column 'itm' is no column of the schema (did you mean 'item'?)"),
    case("histories: other types", "fit pipeline.toml",
         pipeline('{ recent_item = "item" }', '{ recent_item = "user" }'),
         says="pipeline.toml: histories.recent.tokens: 'recent_item' is list<int64>, event column 'user' is string; make them agree"),
    case("histories: no user", "fit pipeline.toml", schema('[keys]\nuser = "user"', "[keys]"),
         says="pipeline.toml: histories.recent: user is missing, and the schema has no keys.user; name the column"),
    case("histories: a time that is none", "fit pipeline.toml",
         pipeline("[histories.recent]", '[histories.recent]\ntime = "price"'),
         says="pipeline.toml: histories.recent: time column 'price' must be declared as a timestamp in the schema"),
    case("histories: no tokens", "fit pipeline.toml", pipeline('tokens = { recent_item = "item" }', "tokens = {}"),
         says="pipeline.toml: histories.recent.tokens: needs at least 1 entry, found an empty section"),
    case("histories: two of one column", "fit pipeline.toml",
         pipeline("[histories.recent]", '[histories.other]\ntokens = { recent_item = "item" }\n\n[histories.recent]'),
         says="pipeline.toml: histories.recent makes column 'recent_item', as histories.other does; give each its own"),
    case("counters: a column that is not declared", "fit pipeline.toml", add("pipeline.toml", "\n[counters.views]\n"),
         says='pipeline.toml: counters.views: a counter makes the column of its name, which the schema must declare as int64; it is not declared; write views = "int64" under [columns]'),
    case("counters: a column of another type", "fit pipeline.toml", column('views = "float32"'),
         add("pipeline.toml", "\n[counters.views]\n"),
         says='pipeline.toml: counters.views: a counter makes the column of its name, which the schema must declare as int64; found float32; write views = "int64" under [columns]'),
    case("counters: by fractions", "fit pipeline.toml", column('views = "int64"'),
         add("pipeline.toml", '\n[counters.views]\nby = "price"\n'),
         says="pipeline.toml: counters.views: column 'price' is float32, and rows are told apart by text, integers, booleans or timestamps; name another, or declare it as one of these"),
    case("counters: by an undeclared column of fractions", "fit pipeline.toml", column('views = "int64"'),
         add("pipeline.toml", '\n[counters.views]\nby = "weight"\n'),
         pipeline('path = "log.csv"\nformat = "csv"', 'path = "log.parquet"\nformat = "parquet"'),
         put("log.parquet", pa.table({"user": ["a"], "item": [1], "price": [1.0], "weight": [1.5], "genres": [["x"]], "shown_at": pa.array([0], pa.timestamp("us")), "paid": [0.0], "clicked": [True]})),
         says="pipeline.toml: counters.views: column 'weight' is float64, and events are found by text, integers, booleans or timestamps; declare it as one under [columns], or name another"),
    case("counters: no time", "fit pipeline.toml", column('views = "int64"'), schema('time = "shown_at"', ""),
         pipeline('by = "time"', 'by = "hash"\nparts = { train = 0.8, test = 0.2 }'),
         pipeline('[histories.recent]\ntokens = { recent_item = "item" }\nwhere = { column = "clicked", equals = true }', "[counters.views]"),
         says="pipeline.toml: counters.views: time is missing, and the schema has no keys.time; name the column there"),
    case("joins: a key that the rows lack", "fit pipeline.toml", pipeline('on = ["item"]', 'on = ["itm"]'),
         says="items.csv: no column 'itm' (did you mean 'item'?); the file has item, brand; correct on, columns or where of pipeline.toml: joins[0], or rename a column"),
    case("joins: a key that the side table lacks", "fit pipeline.toml", pipeline('on = ["item"]', 'on = ["user"]'),
         says="items.csv: no column 'user'; the file has item, brand; correct on, columns or where of pipeline.toml: joins[0], or rename a column"),
    case("joins: a column that the side table lacks", "fit pipeline.toml",
         pipeline('on = ["item"]', 'on = ["item"]\ncolumns = ["brnd"]'),
         says="items.csv: no column 'brnd' (did you mean 'brand'?); the file has item, brand; correct on, columns or where of pipeline.toml: joins[0], or rename a column"),
    case("joins: a column that the rows have", "fit pipeline.toml",
         pipeline('on = ["item"]', 'on = ["item"]\ncolumns = ["price"]'),
         says="pipeline.toml: joins[0]: column 'price' is in the rows already; rename one of the two, or leave it out"),
    case("joins: a key that occurs twice", "fit pipeline.toml", add("items.csv", "3,b9\n"),
         says="items.csv: item = 3 occurs more than once, and each row may meet one row only; remove the repetition"),
    case("joins: nothing that is needed", "fit pipeline.toml", schema('brand = "string"\n', ""),
         schema('brand = { kind = "categorical", table = "brand" }\n', ""),
         schema("brand = { rows = 20, dim = 4 }\n", ""),
         says="pipeline.toml: joins[0]: items.csv offers no column that the schema, a rule or another join needs; remove the join"),
    case("joins: a side table without rows", "fit pipeline.toml", put("items.csv", "item,brand\n"),
         says="items.csv: the side table holds no rows; check what wrote it"),
    case("joins: keys of two types", "fit pipeline.toml",
         pipeline('path = "items.csv"\nformat = "csv"\non = ["item"]', 'path = "users.parquet"\nformat = "parquet"\non = ["code"]'),
         pipeline('path = "log.csv"', 'rename = { paid = "code", price = "paid" }\npath = "log.csv"'),
         schema('price = "float32"\n', ""), schema('price = { kind = "numeric" }\n', ""),
         put("users.parquet", pa.table({"code": [1, 2], "brand": ["x", "y"]})),
         says="users.parquet: key 'code' is int64 here and string in the rows; declare it under [columns] of the schema, so that both sides get one type"),
    case("joins: a count with columns", "fit pipeline.toml",
         pipeline('on = ["item"]', 'on = ["item"]\ncount = "n"\ncolumns = ["brand"]'),
         says="pipeline.toml: joins[0]: count stands for all rows of a key and columns for one of them; write two joins, or leave one out"),
    case("joins: a count that is a text", "fit pipeline.toml",
         pipeline('on = ["item"]', 'on = ["item"]\ncount = "brand"'),
         says="pipeline.toml: joins[0].count: the schema declares 'brand' as string; a count is a number"),
    case("timestamps: an unknown unit", "fit pipeline.toml",
         add("pipeline.toml", '\n[timestamps]\nshown_at = "secnds"\n'),
         says="pipeline.toml: timestamps.shown_at: 'secnds' is neither a unit (seconds, milliseconds, microseconds) nor a format such as \"%d/%m/%Y %H:%M\" (did you mean 'seconds'?)"),
    case("timestamps: a format without a year", "fit pipeline.toml",
         add("pipeline.toml", '\n[timestamps]\nshown_at = "%d/%m"\n'),
         says="pipeline.toml: timestamps.shown_at: '%d/%m' does not name year, month and day; a time needs all three"),
    case("timestamps: a format that is none", "fit pipeline.toml",
         add("pipeline.toml", '\n[timestamps]\nshown_at = "%Y-%m-%d %!"\n'),
         says="pipeline.toml: timestamps.shown_at: '%Y-%m-%d %!' is no format that strptime reads ('!' is a bad directive in format '%Y-%m-%d %!')"),
    case("timestamps: no such column", "fit pipeline.toml",
         add("pipeline.toml", '\n[timestamps]\nshown = "seconds"\n'),
         says="pipeline.toml: timestamps.shown: the schema's [columns] declare no such timestamp (did you mean 'shown_at'?)"),
    case("csv: names without a header are needed", "fit pipeline.toml", pipeline("[csv]", "[csv]\nheader = false"),
         says="pipeline.toml: csv: names are needed with header = false; give the columns' names in order"),
    case("csv: a delimiter of nothing", "fit pipeline.toml", pipeline("[csv]", '[csv]\ndelimiter = ""'),
         says="pipeline.toml: csv.delimiter: needs at least 1 character, found ''"),
    case("csv: a delimiter that ends lines", "fit pipeline.toml", pipeline("[csv]", '[csv]\ndelimiter = "\\n"'),
         says="pipeline.toml: csv: delimiter separates the fields of a line and cannot end it; write another"),
    case("csv: a quote of two characters", "fit pipeline.toml", pipeline("[csv]", '[csv]\nquote = "##"'),
         says="pipeline.toml: csv.quote: takes at most 1 character, found '##'"),
    case("csv: a quote that is the delimiter", "fit pipeline.toml", pipeline("[csv]", '[csv]\nquote = ","'),
         says="pipeline.toml: csv: quote ',' cannot enclose fields beside delimiter ','; "
              "write an ASCII character that is no part of it, or leave it empty"),
    case("csv: one separator for two things", "fit pipeline.toml", pipeline("[csv]", '[csv]\nmap_separator = "|"'),
         says="pipeline.toml: csv: list_separator and map_separator are both '|'; give them different ones"),
    case("csv: an unknown encoding", "fit pipeline.toml", pipeline("[csv]", '[csv]\nencoding = "utf8-bom"'),
         says="pipeline.toml: csv: encoding 'utf8-bom' is unknown; write one such as utf-8 or latin-1"),
    case("csv: a name given twice", "fit pipeline.toml", pipeline("[csv]", '[csv]\nnames = ["a", "b", "a"]'),
         says="pipeline.toml: csv: names lists 'a' twice; give each column a name of its own"),
    case("csv: too few names", "fit pipeline.toml", pipeline("[csv]", '[csv]\nnames = ["user", "item"]'),
         says="log.csv: [csv] gives 2 names, the header 'user,item,price,genres,shown_at,paid,clicked' has 7; give each column its name"),
    case("csv: settings for another format", "fit pipeline.toml",
         pipeline('path = "log.csv"\nformat = "csv"', 'path = "log.csv"\nformat = "parquet"\ncsv = { delimiter = ";" }'),
         says="pipeline.toml: source: csv = ... describes CSV files, and format is 'parquet'"),
    case("csv: lists without their separator", "fit pipeline.toml", pipeline('[csv]\nlist_separator = "|"', ""),
         says="log.csv: column 'genres' is text in a CSV file, the schema says list<string>; say csv.list_separator"),
    # The rows themselves.
    case("files: none of that name", "fit pipeline.toml", pipeline('"log.csv"', '"lag.csv"'),
         says="lag.csv: no such file; pipeline.toml names it as 'lag.csv'"),
    case("files: none of that pattern", "fit pipeline.toml", pipeline('"log.csv"', '"days/*.csv"'),
         says="days/*.csv: no file matches this pattern; pipeline.toml names it as 'days/*.csv'"),
    case("files: a variable that is not set", "fit pipeline.toml",
         pipeline('"log.csv"', '"${RECSYS_NOWHERE}/log.csv"'),
         says="pipeline.toml: path '${RECSYS_NOWHERE}/log.csv' needs the environment variable RECSYS_NOWHERE, which is not set; set it to the folder that holds the data, such as: export RECSYS_NOWHERE=/path/to/data"),
    case("files: named twice", "fit pipeline.toml", pipeline('path = "log.csv"', 'path = ["log.csv", "l*.csv"]'),
         says="pipeline.toml: file log.csv is named twice; its rows would count double"),
    case("files: a folder without any", "fit pipeline.toml",
         pipeline('path = "log.csv"\nformat = "csv"', 'path = "run"\nformat = "csv"'),
         says="run: the folder holds no csv file (*.csv, *.tsv, *.txt, *.dat, *.data); it holds ...; name the files in pipeline.toml, such as 'run/*'"),
    case("files: empty", "fit pipeline.toml", put("log.csv", ""),
         says="log.csv: the file is empty (0 bytes); write it again or take it out of the source"),
    case("files: a header only", "fit pipeline.toml", put("log.csv", ",".join(COLUMNS) + "\n"),
         says="pipeline.toml: no row is left to fit on; check the source and the filters"),
    case("files: Parquet called CSV", "fit pipeline.toml", put("log.csv", pa.table({"a": [1]})),
         says='log.csv: is a Parquet file; say format = "parquet"'),
    case("files: CSV called Parquet", "fit pipeline.toml",
         pipeline('path = "log.csv"\nformat = "csv"', 'path = "log.csv"\nformat = "parquet"'),
         says="log.csv: not readable as Parquet (it begins with b'user'); correct format, or copy the file again"),
    case("files: CSV called JSON lines", "fit pipeline.toml",
         pipeline('path = "log.csv"\nformat = "csv"', 'path = "log.csv"\nformat = "jsonl"'),
         says="log.csv, row 1: not JSON (Expecting value at character 1), found 'user,item,price,genres,shown_at,paid,clicked'; each line must be one JSON object"),
    case("files: packed without saying so", "fit pipeline.toml", put("log.csv", gzip.compress(b"a,b\n1,2\n")),
         says="log.csv: is packed by gzip; give it a name that ends in .gz"),
    case("files: said to be packed", "fit pipeline.toml", pipeline('"log.csv"', '"log.csv.gz"'),
         put("log.csv.gz", "a,b\n"),
         says="log.csv.gz: not readable as CSV (zlib inflate failed: incorrect header check); the copy is incomplete or damaged, or the file is not packed as its name says; copy it again"),
    case("files: an Excel workbook", "fit pipeline.toml", put("log.csv", b"PK\x03\x04..."),
         says="log.csv: is a zip archive or an Excel workbook; unpack it, or save it as CSV"),
    case("files: a column is missing", "fit pipeline.toml", replace("log.csv", "price,genres", "prise,genres"),
         says="log.csv: no column 'price' (did you mean 'prise'?); the file has user, item, prise, genres, shown_at, paid, clicked; correct [columns] or the rule that names it, rename a column, or add a join"),
    case("files: another delimiter", "fit pipeline.toml", replace("log.csv", ",", ";"),
         says="log.csv: no column 'user'; the file has user;item;price;genres;shown_at;paid;clicked; say delimiter = \";\" under [csv]"),
    case("files: a column occurs twice", "fit pipeline.toml", replace("log.csv", "price,genres", "price,price"),
         says="log.csv: column 'price' occurs twice or more, as columns 3 and 4; give each column a name of its own by names = [...] under [csv], which replaces the header"),
    case("files: a renamed column that is not there", "fit pipeline.toml",
         pipeline('path = "log.csv"', 'path = "log.csv"\nrename = { prise = "price" }'),
         says="log.csv: rename names column 'prise', which the file lacks (did you mean 'price'?)"),
    case("files: two that disagree", "fit pipeline.toml",
         pipeline('path = "log.csv"', 'path = ["log.csv", "more.csv"]'), put("more.csv", "user,item\na,1\n"),
         says="more.csv: no column 'price' as log.csv has it; the file has user, item; correct [columns] or the rule that names it, rename a column, or add a join"),
    case("files: two that disagree in a type", "fit pipeline.toml",
         pipeline('path = "log.csv"\nformat = "csv"', 'path = ["a.parquet", "b.parquet"]\nformat = "parquet"'),
         pipeline('column = "paid"', 'column = "cost"'),
         put("a.parquet", pa.table({"cost": [1], "user": ["a"], "item": [1], "price": [1.0], "paid": [1.0], "genres": [["x"]], "shown_at": pa.array([0], pa.timestamp("us")), "clicked": [True]})),
         put("b.parquet", pa.table({"cost": ["1"], "user": ["a"], "item": [1], "price": [1.0], "paid": [1.0], "genres": [["x"]], "shown_at": pa.array([0], pa.timestamp("us")), "clicked": [True]})),
         says="b.parquet: column 'cost' is string, and int64 in a.parquet; write both files alike, or give each a source of its own with another rename"),
    case("rows: a text among numbers", "fit pipeline.toml", cell(6, "price", "cheap"),
         says="log.csv, row 6, column 'price': found 'cheap', which is no float32; correct the file, name it in csv.nulls, or change [columns]"),
    case("rows: a fraction among whole numbers", "build pipeline.toml", cell(6, "item", "1.5"),
         says="log.csv, row 6, column 'item': found '1.5', which is no int64; correct the file, name it in csv.nulls, or change [columns]"),
    case("rows: neither 0 nor 1", "fit pipeline.toml", cell(6, "clicked", "yes"),
         says="log.csv, row 6, column 'clicked': found 'yes', which is no bool; correct the file, name it in csv.nulls, or change [columns]"),
    case("rows: a time of another form", "fit pipeline.toml", cell(6, "shown_at", "31/12/2026"),
         says="log.csv, row 6, column 'shown_at': found '31/12/2026', which is no ISO 8601 time, as those before it are; write all times of a column in one format, or correct the row"),
    case("rows: a time as a number", "fit pipeline.toml", cell(1, "shown_at", "1764672000"),
         says="log.csv, row 1, column 'shown_at': found '1764672000', which is no ISO 8601 time; say its unit: shown_at = \"seconds\" under [timestamps]"),
    case("rows: no time", "fit pipeline.toml", cell(6, "shown_at", ""),
         says="log.csv, row 6: the time is null, so the row belongs to no day; add a filter with not_null = true"),
    case("rows: a field too many", "fit pipeline.toml", cell(6, "user", "a,b"),
         says="log.csv, row 6: 8 fields where the file has 7 columns, found 'a,b,12,7.0,drama,2026-10-01T09:15:00Z,0,0'; correct the row, or [csv] (delimiter, quote, names)"),
    case("rows: a quote that is not closed", "fit pipeline.toml", cell(6, "user", '"a'),
         says="log.csv, row 6: a quote is opened and never closed, found 'a,12,7.0,drama,2026-10-01T09:15:00Z,0,0\\nu6,7,4.5,drama|c...'; close it, or set quote = \"\" under [csv] if quotes mean nothing"),
    case("rows: not UTF-8", "fit pipeline.toml",
         put("log.csv", FILES["log.csv"].replace("u3", "caf\xe9").encode("latin-1")),
         says="log.csv, row 4: not UTF-8, found 'caf\\xe9,10,6.0,drama|comedy,2026-10-01T08:45:00Z,0,0'; say the file's encoding under [csv], such as encoding = \"latin-1\""),
    case("rows: a number that is infinite", "fit pipeline.toml", cell(6, "price", "inf"),
         says="log.csv, row 6: feature 'price', column 'price': inf is not a finite number (1 such row here); write null for a missing value"),
    case("rows: a number beyond float32", "fit pipeline.toml", cell(6, "price", "1e39"),
         says="log.csv, row 6: feature 'price', column 'price': inf is not a finite number (1 such row here); write null for a missing value"),
    case("rows: an impression key that is null", "build pipeline.toml",
         schema("[keys]", '[keys]\nimpression = "user"'), cell(6, "user", ""), without("encoder"),
         says="encoder: no such encoder; check the path, or make it first (recsys fit)"),
    case("json: a line that is none", "fit pipeline.toml",
         pipeline('path = "log.csv"\nformat = "csv"', 'path = "log.jsonl"\nformat = "jsonl"'),
         put("log.jsonl", '{"user": "a"}\n{"user": \n'),
         says="log.jsonl, row 2: not JSON (Expecting value at character 10), found '{\"user\":'; each line must be one JSON object"),
    case("json: an array", "fit pipeline.toml",
         pipeline('path = "log.csv"\nformat = "csv"', 'path = "log.jsonl"\nformat = "jsonl"'),
         put("log.jsonl", '[{"user": "a"}]\n'),
         says="log.jsonl, row 1: found '[{\"user\": \"a\"}]'; the file is one JSON list; write one object a line (jq -c '.[]' FILE > FILE.jsonl)"),
    case("json: a key given twice", "fit pipeline.toml",
         pipeline('path = "log.csv"\nformat = "csv"', 'path = "log.jsonl"\nformat = "jsonl"'),
         put("log.jsonl", '{"user": "a", "user": "b"}\n'),
         says="log.jsonl, row 1: key 'user' occurs twice in one object; keep one of the two"),
    # Stages in the wrong order, or given the wrong thing.
    case("order: build before fit", "build pipeline.toml", without("encoder"),
         says="encoder: no such encoder; check the path, or make it first (recsys fit)"),
    case("order: train before fit", "train experiment.toml", without("encoder"), without("run"),
         says=".../encoder: no such encoder; check the path, or make it first (recsys fit)"),
    case("order: train before build", "train experiment.toml", without("data"), without("run"),
         says=".../data: no day is published, so there is none from 2026-10-01 to 2026-10-02; build the days, or name splits, such as train, in place of days"),
    case("order: evaluate before train", "evaluate run", without("run"),
         says="run: holds no run (no experiment.json); check the path, or train first"),
    case("order: export before train", "export run", without("run"),
         says="run: holds no run (no experiment.json); check the path, or train first"),
    case("order: evaluate a folder that is no run", "evaluate data",
         says="data: holds no run (no experiment.json); check the path, or train first"),
    case("order: build after the schema changed", "build pipeline.toml", schema("rows = 50", "rows = 60"),
         says="encoder: the encoder was fitted for another schema (data digest ..., schema.toml has ...); run fit again"),
    case("order: train after the schema changed", "train experiment.toml other", schema("rows = 50", "rows = 60"),
         says=".../encoder: fitted for another schema (data digest ..., .../schema.toml has ...); fit it again and build the days again"),
    case("order: train after another fit", "train experiment.toml other", schema("rows = 50", "rows = 60"),
         without("encoder"), fitted,
         says=".../data/2026-10-01/...: encoded for another schema (data digest ..., the schema has ...); build the day again with this schema"),
    case("order: serve a run", "serve run",
         says="run: holds no published bundle (no CURRENT file); check the path, or make it first (recsys export)"),
    case("order: serve before export", "serve bundle", without("bundle"),
         says="bundle: no such bundle; check the path, or make it first (recsys export)"),
    case("order: serve a folder that is no bundle", "serve data",
         says="data: holds no published bundle (no CURRENT file); check the path, or make it first (recsys export)"),
    case("order: a report as a bundle", "serve report",
         says="report/...: holds a published report in place of the bundle; give the bundle's path"),
    case("order: an encoder that is none", "build pipeline.toml --encoder data",
         says="data: holds no published encoder (no CURRENT file); check the path, or make it first (recsys fit)"),
    case("order: build with a report as encoder", "build pipeline.toml --encoder report",
         says="report/...: holds a published report in place of the encoder; give the encoder's path"),
    case("order: fit on an encoder of another schema", "fit pipeline.toml new --previous encoder",
         schema("rows = 50", "rows = 60"),
         says="fit: the previous encoder was fitted for another schema; fit from scratch"),
    # experiment.toml and train
    case("experiment: a misspelt key", "train experiment.toml other", experiment("epochs = 1", "epoch = 1"),
         says="experiment.toml: unknown key 'train.epoch' (did you mean 'epochs'?)"),
    case("experiment: no training days", "train experiment.toml other",
         experiment('train = { from = "2026-10-01", to = "2026-10-02" }', ""),
         says="experiment.toml: 'data.train' is missing; add it"),
    case("experiment: no epochs", "train experiment.toml other", experiment("epochs = 1", "epochs = 0"),
         says="experiment.toml: train.epochs: must be at least 1, found 0"),
    case("experiment: an unknown mixing", "train experiment.toml other",
         experiment('"shared_bottom"', '"shared_botom"'),
         says="experiment.toml: model.mixing.kind: unknown 'shared_botom' (did you mean 'shared_bottom'?); known: single_task, shared_bottom, omoe, mmoe, ml_mmoe, cross_stitch, cgc, ple, adatt, home"),
    case("experiment: a setting of another mixing", "train experiment.toml other",
         experiment("hidden = [8]", "experts = 4"),
         says="experiment.toml: unknown key 'model.mixing.experts'; known here: dropout, hidden, kind"),
    case("experiment: layers of nothing", "train experiment.toml other", experiment("hidden = [8]", "hidden = [0]"),
         says="experiment.toml: model.mixing.hidden[0]: must be at least 1, found 0"),
    case("experiment: a level of nothing", "train experiment.toml other",
         experiment('{ kind = "shared_bottom", hidden = [8] }', '{ kind = "ple", levels = [[8], []] }'),
         says="experiment.toml: model.mixing.levels[1]: needs at least 1 entry, found []"),
    case("experiment: experts in words", "train experiment.toml other",
         experiment('{ kind = "shared_bottom", hidden = [8] }', '{ kind = "cgc", task_experts = { click = "two", buy = 1 } }'),
         says="experiment.toml: model.mixing.task_experts: must be a whole number, found 'two'"),
    case("experiment: no kind", "train experiment.toml other", experiment('kind = "shared_bottom", ', ""),
         says="experiment.toml: 'model.mixing.kind' is missing; add one of: single_task, shared_bottom, omoe, mmoe, ml_mmoe, cross_stitch, cgc, ple, adatt, home"),
    case("experiment: a dropout of everything", "train experiment.toml other",
         experiment("hidden = [8]", "dropout = 1.5"),
         says="experiment.toml: model.mixing.dropout: must be below 1, found 1.5"),
    case("experiment: a schema file that is missing", "train experiment.toml other",
         put("experiment.toml", 'schema_file = "shema.toml"\n' + EXPERIMENT),
         says=".../shema.toml: no such file; the experiment names it as schema_file"),
    case("experiment: days that are not built", "train experiment.toml other",
         experiment('validation = ["2026-10-03"]', 'validation = ["2026-10-13"]'),
         says=".../data: no day or split '2026-10-13' (did you mean '2026-10-03'?); it holds 2026-10-01 to 2026-10-04; build it, or list the days without it where the source has no rows for it"),
    case("experiment: a range beyond what is built", "train experiment.toml other",
         experiment('from = "2026-10-01"', 'from = "2026-09-01"'),
         says=".../data: the days from 2026-09-01 to 2026-10-02 go beyond those published, from 2026-10-01 to 2026-10-04; build the others, or change the range"),
    case("experiment: a range of other days", "train experiment.toml other",
         experiment('{ from = "2026-10-01", to = "2026-10-02" }', '{ from = "2025-10-01", to = "2025-10-02" }'),
         says=".../data: the days from 2025-10-01 to 2025-10-02 go beyond those published, from 2026-10-01 to 2026-10-04; build the others, or change the range"),
    case("experiment: trained and judged on one day", "train experiment.toml other",
         experiment('["2026-10-03"]', '["2026-10-02"]'),
         says="experiment.toml: data: validation and train both name '2026-10-02', so the metric would be of rows trained on; take it out of one"),
    case("experiment: a weight of no task", "train experiment.toml other",
         add("experiment.toml", "\n[objective]\nweights = { clik = 2.0 }\n"),
         says="objective.weights: no task 'clik' in .../schema.toml (did you mean 'click'?); its tasks: click, buy"),
    case("experiment: no weight at all", "train experiment.toml other",
         add("experiment.toml", "\n[objective]\nweights = { click = 0.0, buy = 0.0 }\n"),
         says="objective.weights: every task weighs 0, so nothing would be learned; raise one"),
    case("experiment: a negative weight", "train experiment.toml other",
         add("experiment.toml", "\n[objective]\nweights = { click = -1.0 }\n"),
         says="experiment.toml: objective.weights.click: must be at least 0, found -1.0"),
    case("experiment: a penalty below 0", "train experiment.toml other",
         add("experiment.toml", "\n[objective]\norder_penalty = -0.6\n"),
         says="experiment.toml: objective.order_penalty: must be at least 0, found -0.6"),
    case("experiment: a penalty on an order that cannot break", "train experiment.toml other",
         add("experiment.toml", "\n[objective]\norder_penalty = 0.6\n"),
         says="objective.order_penalty: with model.heads of kind = \"towers\" no task can be likelier than the one it is given, so there is nothing to penalise; take order_penalty out, or take kind = \"aitm\""),
    case("experiment: a penalty on the order of no funnel", "train experiment.toml other",
         add("experiment.toml", "\n[objective]\norder_penalty = 0.6\n"), schema(', given = "click"', ""),
         says="objective.order_penalty: no task has given, so there is no order to keep; name each step's parent under [tasks], or take order_penalty out"),
    case("experiment: a misspelt balancing method", "train experiment.toml other",
         add("experiment.toml", '\n[objective]\nbalance = { kind = "famos" }\n'),
         says="experiment.toml: objective.balance.kind: unknown 'famos' (did you mean 'famo'?); known: none, uncertainty, dwa, gradnorm, pcgrad, cagrad, config, famo"),
    case("experiment: a setting of another balancing method", "train experiment.toml other",
         add("experiment.toml", '\n[objective]\nbalance = { kind = "cagrad", alpha = 1.5 }\n'),
         says="experiment.toml: unknown key 'objective.balance.alpha'; known here: kind, radius"),
    case("experiment: a method of shared parameters where there are none", "train experiment.toml other",
         schema(', given = "click"', ""), experiment('"shared_bottom"', '"single_task"'),
         add("experiment.toml", '\n[objective]\nbalance = { kind = "pcgrad" }\n'),
         says='objective.balance: "pcgrad" balances what tasks share behind the embeddings, and this model shares nothing there; choose another mixing, or balance = { kind = "uncertainty" }'),
    case("experiment: an unknown metric", "train experiment.toml other",
         experiment("epochs = 1", 'epochs = 1\nmetric = "clik.auc"'),
         says="train.metric: unknown 'clik.auc' (did you mean 'click.auc'?); known: mean_auc, click.auc, click.gauc, click.log_loss, click.normalized_entropy, buy.auc, buy.gauc, buy.log_loss, buy.normalized_entropy, buy|click.auc, buy|click.gauc, buy|click.log_loss, buy|click.normalized_entropy"),
    case("experiment: a reference of no task", "train experiment.toml other",
         add("experiment.toml", '\n[evaluation]\nreference = { clik = "price" }\n'),
         says="evaluation.reference: no task 'clik' in .../schema.toml (did you mean 'click'?); its tasks: click, buy"),
    case("experiment: a reference that is not kept", "train experiment.toml other",
         add("experiment.toml", '\n[evaluation]\nreference = { click = "price" }\n'),
         says="evaluation.reference.click: column 'price' is not kept; add it to keys.keep in .../schema.toml"),
    case("experiment: a reference of another type", "train experiment.toml other",
         add("experiment.toml", '\n[evaluation]\nreference = { click = "item" }\n'),
         says="evaluation.reference.click: column 'item' is int64, a probability is float32 or float64"),
    case("experiment: a device that is not there", "train experiment.toml other",
         experiment("epochs = 1", 'epochs = 1\ndevice = "cuda"'),
         says='train.device is "cuda", but torch can use no GPU here; say "auto" or "cpu"'),
    case("experiment: rates that blow up", "train experiment.toml other",
         add("experiment.toml", "\n[optimizer]\ndense_lr = 1e30\nclip_norm = 1e30\n"),
         experiment("epochs = 1", "epochs = 50\nevaluate_every = 100"),
         says="step 4: the loss or its gradient is not finite (loss by task: ...); 3 steps were skipped for that before, as many as train.max_skipped_steps allows; lower the learning rates, clip gradients, or check the rows that other/skipped_steps.jsonl lists; checkpoints under other/checkpoints are from before", leaves="other"),
    case("--set: a misspelt key", "train experiment.toml other --set train.epoch=3",
         says="experiment.toml: unknown key 'train.epoch' (did you mean 'epochs'?)"),
    case("--set: a misspelt section", "train experiment.toml other --set trian.epochs=3",
         says="experiment.toml: unknown key 'trian' (did you mean 'train'?)"),
    case("--set: no value", "train experiment.toml other --set train.epochs",
         says="--set 'train.epochs': expected section.key=value, such as train.steps=200"),
    case("--set: a text for a number", "train experiment.toml other --set train.epochs=three",
         says="experiment.toml: train.epochs: must be a whole number, found 'three'"),
    case("--set: a fraction for a whole number", "train experiment.toml other --set train.epochs=1.5",
         says="experiment.toml: train.epochs: must be a whole number, found 1.5"),
    case("--set: a value inside a value", "train experiment.toml other --set train.epochs.x=3",
         says="--set 'train.epochs.x=3': 'epochs' is a value, not a section"),
    case("train: a run is there", "train experiment.toml",
         says="run: holds a run already; resume it (--resume), choose another directory, or remove it"),
    case("train: a run that another process trains", "train experiment.toml", trained_by_another,
         says="run: process 4711 on trainer-1 is training this run, so nothing was changed; wait for it or stop it, then run the same command again, or choose another directory"),
    case("train: resume a run that another process trains", "train experiment.toml run --resume", trained_by_another,
         says="run: process 4711 on trainer-1 is training this run, so nothing was changed; wait for it or stop it, then run the same command again, or choose another directory"),
    case("train: the folder holds other files", "train experiment.toml data",
         says="data: holds other files; choose another directory for the run"),
    case("train: a place that is a file", "train experiment.toml log.csv",
         says="log.csv: holds other files; choose another directory for the run"),
    case("train: resume what never began", "train experiment.toml other --resume",
         says="other: holds no run (no experiment.json); check the path, or train first"),
    case("train: resume another experiment", "train experiment.toml run --resume --set train.seed=3",
         says="run: was started with another experiment (train.seed: 0, not 3); restore it, or train a new run in another directory"),
    case("train: resume with another schema", "train experiment.toml run --resume",
         schema('price = { kind = "numeric" }', 'price = { kind = "numeric", side = "user" }'),
         says=".../schema.toml: is not the schema that run was started with; restore it, or train a new run in another directory"),
    case("train: begin from what is no run", "train experiment.toml other --warm-start data",
         says="data: is neither a run nor a checkpoint of one; name a run, or RUN/checkpoints/CURRENT"),
    case("train: go on and begin anew at once", "train experiment.toml run --resume --warm-start run",
         says="--resume goes on with a run, --warm-start begins a new one from another; leave one of them out"),
    case("train: begin from a run that has nothing in common", "train experiment.toml other --warm-start run --set model.mixing.hidden=[5]",
         schema("dim = 4", "dim = 8"), schema('click = { label', 'tap = { label'), schema('given = "click"', 'given = "tap"'), fitted, built,
         says="run: no table and no parameter of it fits this run; train without --warm-start"),
    case("train: workers for tables that stay whole", 'train experiment.toml other --workers 2 --set model.embeddings.backend="plain"',
         says='model.embeddings.backend: tables of backend "plain" stay whole in one process; set it to "torchrec" (widths in multiples of 4), or train with one worker'),
    case("train: no worker at all", "train experiment.toml other --workers 0",
         says="invalid value for '--workers': must be at least 1, found '0'; see: recsys train --help"),
    case("train: a Ray cluster that does not answer", "train experiment.toml other --workers 2 --ray-address 127.0.0.1:1",
         says="--ray-address 127.0.0.1:1: no Ray cluster answers ([Errno 111] Connection refused); start one (ray start --head), correct the address, or say local"),
    case("train: no address of a Ray cluster", "train experiment.toml other --workers 2 --ray-address here",
         says="--ray-address here: no Ray cluster answers (an address is HOST:PORT, auto or local); start one (ray start --head), correct the address, or say local"),
    case("train: the address of a Ray client", "train experiment.toml other --workers 2 --ray-address ray://host:10001",
         says="--ray-address ray://host:10001: a client cannot start workers; run the command on a machine of the cluster (ray job submit -- recsys train ...) with --ray-address auto"),
    case("train: fewer workers without Ray", "train experiment.toml other --workers 2 --min-workers 1",
         says="--min-workers: only a Ray cluster goes on with fewer workers; add --ray-address, or leave it out"),
    case("train: more workers at the least than at all", "train experiment.toml other --workers 2 --min-workers 3 --ray-address auto",
         says="--min-workers: 3 is more than --workers 2; lower it"),
    case("train: a stream to workers without Ray", "train experiment.toml other --workers 2 --set data.stream=raw",
         says="data.stream: workers share a stream by Ray; add --ray-address (local, or a cluster's), or train with one worker"),
    case("train: a stream of days that are encoded", "train experiment.toml other --set data.stream=data",
         says=".../data/2026-10-01/...: holds a published day in place of the raw day; give the raw day's path"),
    case("train: a stream from no folder", "train experiment.toml other --set data.stream=raw",
         says=".../raw: no day is published, so there is none from 2026-10-01 to 2026-10-02; build the days, or name splits, such as train, in place of days"),
    case("train: a run's directory in a place that cannot be made", "train experiment.toml log.csv/run",
         says="log.csv/run: cannot be written (Not a directory); choose another place"),
    # plan
    case("a plan without ranks", "plan experiment.toml",
         says="missing option '--world-size'; see: recsys plan --help"),
    case("a plan for ranks that do not fill hosts", "plan experiment.toml --world-size 12",
         says="--world-size: 12 ranks do not fill hosts of 8; give a multiple, or another --ranks-per-host"),
    case("an amount without a unit", "plan experiment.toml --world-size 8 --hbm 80",
         says="--hbm: found '80', which is no amount of bytes; write one such as 80GB or 80GiB"),
    case("a plan for tables of the plain backend", 'plan experiment.toml --world-size 8 --set model.embeddings.backend="plain"',
         says='model.embeddings.backend is "plain", whose tables stay whole; set it to "torchrec" to spread them'),
    case("ids a step ahead of their map", "train experiment.toml other --set sharding.pipeline=true",
         schema("rows = 50, dim = 4", 'rows = 50, dim = 4, ids = "zch"'), fitted, built,
         says="sharding.pipeline sends ids a step ahead, and with tables.item.ids = \"zch\" each step changes their rows; take pipeline out, or say ids = \"unbounded\""),
    case("a cache of rows that begin anew", "train experiment.toml other",
         schema("rows = 50, dim = 4", 'rows = 50, dim = 4, ids = "zch"'), fitted, built,
         add("experiment.toml", '[sharding.constraints]\nitem = { kernels = ["fused_uvm_caching"] }\n'),
         says="sharding.constraints.item.kernels: a cache of rows (fused_uvm_caching) does not see rows begin anew, as they do with ids = \"zch\"; take it out, or say ids = \"unbounded\""),
    case("a constraint on an unknown table", "plan experiment.toml --world-size 8", add("experiment.toml", '[sharding.constraints]\nitems = {}\n'),
         says="sharding.constraints: no table 'items' in ...schema.toml (did you mean 'item'?); known here: item, brand, genre"),
    case("a length of an unknown bag", "train experiment.toml other --set sharding.lengths.genre=2",
         says="sharding.lengths: no bag or sequence 'genre' in ...schema.toml (did you mean 'genres'?); known here: genres, recent"),
    case("a plan for tables that Adam trains", "plan experiment.toml --world-size 8 --set optimizer.embeddings=adam",
         says='optimizer.embeddings is "adam", and tables of backend "torchrec" are trained by one of: rowwise_adagrad, adagrad, sgd; take one of these, or set model.embeddings.backend = "plain"'),
    case("an unknown way to cut a table", 'plan experiment.toml --world-size 8 --set sharding.constraints.item.kinds=["rowwise"]',
         says="experiment.toml: sharding.constraints.item.kinds[0]: must be 'table_wise', 'row_wise', 'table_row_wise', 'column_wise', 'table_column_wise' or 'data_parallel', found 'rowwise' (did you mean 'row_wise'?)"),
    case("a way to cut a table that it does not have", 'plan experiment.toml --world-size 8 --set sharding.constraints.item.kinds=["table_row_wise"]',
         says="sharding.constraints.item.kinds: on cuda this table cannot be table_row_wise; take of: table_wise, row_wise, column_wise, data_parallel"),
    case("copies of a table in host memory", 'plan experiment.toml --world-size 8', add("experiment.toml", '[sharding.constraints]\nbrand = { kinds = ["data_parallel"], kernels = ["fused_uvm"] }\n'),
         says="experiment.toml: sharding.constraints.brand: kernels (fused_uvm) beside data_parallel, whose copies lie in the memory of every rank's device; take kernels out, or data_parallel out of kinds"),
    case("rows in host memory beside a CPU", 'plan experiment.toml --world-size 8 --device cpu --set sharding.constraints.item.kernels=["fused_uvm"]',
         says="sharding.constraints.item.kernels: on cpu this table cannot be fused_uvm; take of: fused"),
    case("id maps that are too large", "plan experiment.toml --world-size 8 --hbm 1GB",
         schema("rows = 50, dim = 4", 'rows = 50_000_000, dim = 4, ids = "zch"'),
         says='the id maps do not fit: those of tables with ids = "zch" lie whole on every rank (1.00 GB HBM less 15% reserved and ... for the dense part, 3.60 GB for id maps); give these tables fewer rows, or say ids = "unbounded"'),
    case("a dense part that is too large", "plan experiment.toml --world-size 8 --hbm 1kB",
         says="the dense part does not fit: its ... parameters with gradients and AdamW's moments need ... on every rank, which has 850 B (1.00 kB HBM less 15% reserved); make bottom, mixing or heads smaller"),
    case("a table that is too large", "plan experiment.toml --world-size 2 --hbm 1GB", schema("item = { rows = 50, dim = 4 }", "item = { rows = 20_000_000, dim = 64 }"),
         says="table 'item' does not fit: at its smallest, row_wise with kernel fused, a rank needs 2.60 GB and has room for 850 MB (1.00 GB HBM less 15% reserved and ... for the dense part); take more ranks, fewer rows a step, a table of fewer rows or a smaller dim, or allow another kind or kernel under [sharding] constraints"),
    case("tables that are too large together", "plan experiment.toml --world-size 2 --hbm 300MB", schema("rows = 20, dim = 4", "rows = 1_000_000, dim = 64"),
         says="the tables do not fit: together they need 520 MB at the least, and each of 2 ranks has room for 255 MB (300 MB HBM less 15% reserved and ... for the dense part); the largest is '...': take more ranks, fewer rows a step, a table of fewer rows or a smaller dim, or allow another kind or kernel under [sharding] constraints"),
    case("column shards, whose states TorchRec counts in part", 'plan experiment.toml --world-size 2 --hbm 180MB', schema("brand = { rows = 20, dim = 4 }", "brand = { rows = 1_000_000, dim = 64 }"),
         add("experiment.toml", '[sharding.constraints]\nbrand = { kinds = ["column_wise"], min_partition = 4 }\n'),
         says="rank ... does not hold its tables: they need 160 MB, it has room for 153 MB (180 MB HBM less 15% reserved and ... for the dense part); the largest is 'brand' (column_wise): take more ranks, fewer rows a step, a table of fewer rows or a smaller dim, or allow another kind or kernel under [sharding] constraints"),
    # evaluate, baseline, compare, export
    case("evaluate: a day that is not built", "evaluate run other --days 2026-10-14",
         says=".../data: no day or split '2026-10-14' (did you mean '2026-10-04'?); it holds 2026-10-01 to 2026-10-04; build it, or list the days without it where the source has no rows for it"),
    case("evaluate: a range that is backwards", "evaluate run other --days 2026-10-04:2026-10-01",
         says="days: runs from 2026-10-04 to 2026-10-01, which is backwards; swap them"),
    case("evaluate: a range of no days", "evaluate run other --days 1:2",
         says="days: '1' is no day; write it as \"2026-10-01\""),
    case("evaluate: no day", "evaluate run other --days a/b",
         says="days: 'a/b' is not the name of a day or split"),
    case("evaluate: no test days", "evaluate run other",
         replace("run/experiment.json", '"test": [\n   "2026-10-04"\n  ]', '"test": null'),
         says="run: the experiment names no test days; name days to evaluate (--days)"),
    case("evaluate: no such checkpoint", "evaluate run other --checkpoint best",
         says="run/checkpoints: no checkpoint 'best'; name BEST, CURRENT or one of ..."),
    case("evaluate: data built anew with another schema", "evaluate run other", schema("rows = 50", "rows = 60"),
         without("encoder"), without("data"), fitted, built,
         says=".../data/2026-10-04/...: encoded for another schema (data digest ..., the schema has ...); build the day again with this schema"),
    case("evaluate: a place that is a file", "evaluate run log.csv",
         says="log.csv: cannot be written (File exists); choose another place"),
    case("baseline: no test days", "baseline experiment.toml other", experiment('test = ["2026-10-04"]', ""),
         says="the experiment names no test days; add data.test, or name days to evaluate (--days)"),
    case("baseline: before build", "baseline experiment.toml other", without("data"),
         says=".../data: no day is published, so there is none from 2026-10-01 to 2026-10-02; build the days, or name splits, such as train, in place of days"),
    case("baseline: a day that is not built", "baseline experiment.toml other --days 2026-10-14",
         says=".../data: no day or split '2026-10-14' (did you mean '2026-10-04'?); it holds 2026-10-01 to 2026-10-04; build it, or list the days without it where the source has no rows for it"),
    case("compare: no such report", "compare report other",
         says="other: no such report; check the path, or make it first (recsys evaluate)"),
    case("compare: a run in place of a report", "compare report run",
         says="run: holds no published report (no CURRENT file); check the path, or make it first (recsys evaluate)"),
    case("fit: labels that are neither 0 nor 1", "build pipeline.toml other",
         schema('clicked = "bool"', 'clicked = "float32"'), cell(6, "clicked", "2"),
         pipeline("equals = true", "equals = 1"), without("encoder"), fitted,
         says="log.csv, row 6: task 'click', column 'clicked': label 2; a binary label is 0 or 1, make one by a rule in pipeline.toml or declare kind = \"regression\""),
    case("fit: a schema with a label of several levels", "fit pipeline.toml", pipeline("equals = true", "equals = 1"),
         says="pipeline.toml: histories.recent: 1 cannot be compared with column 'clicked', which is bool; write a value of that type, or declare the column's dtype under [columns] of the schema"),
    case("compare: of other rows", "compare report other", evaluated_elsewhere,
         says="unequal rows: 40 rows are only in report/.../predictions (click) (such as row key 120) and 40 rows are only in other/.../predictions (click) (such as row key 80); evaluate both on the same rows"),
    case("export: a name with a blank", "export run other --name My",
         says="model name 'My': use lower-case letters, digits, '-' and '_', 64 at most"),
    case("export: no such rows", "export run other --rows rows.prquet",
         says="rows.prquet: no such file; check the path"),
    case("export: rows without a column", "export run other --rows short.parquet",
         put("short.parquet", pa.table({"item": [1]})),
         says="export --rows needs column 'brand', which the rows do not have; they have item"),
    case("export: no such checkpoint", "export run other --checkpoint newest",
         says="run/checkpoints: no checkpoint 'newest'; name BEST, CURRENT or one of ..."),
    case("export: a place that is a file", "export run log.csv",
         says="log.csv: cannot be written (File exists); choose another place"),
    # rows
    case("rows: no such day", "rows pipeline.toml out.parquet --day 2026-10-14",
         says="pipeline.toml: '2026-10-14' has no rows (did you mean '2026-10-04'?); check the source and the filters"),
    case("rows: a day that is no name", "rows pipeline.toml out.parquet --day a/b",
         says="pipeline.toml: 'a/b' has no rows; check the source and the filters"),
    case("build: a place that is a file", "build pipeline.toml log.csv",
         says="log.csv: cannot be written (File exists); choose another place"),
    case("fit: a place that is a file", "fit pipeline.toml log.csv",
         says="log.csv: cannot be written (File exists); choose another place"),
    # serve and score
    case("serve: the port is taken", "serve bundle --port TAKEN --metrics-port 0",
         says="port ... on 127.0.0.1: Address already in use; choose another or 0"),
    case("serve: the metrics port is taken", "serve bundle --port 0 --metrics-port TAKEN",
         says="metrics port ... on 127.0.0.1: Address already in use; choose another"),
    case("serve: no port of that number", "serve bundle --port 99999",
         says="port 99999 on 127.0.0.1: a port is a number from 0 to 65535; choose another or 0"),
    case("serve: a host that is not this machine", "serve bundle --host no.such.host.invalid --key-file key --port 0",
         put("key", "k" * 32),
         says="port 0 on no.such.host.invalid: Name or service not known; choose another or 0"),
    case("serve: open to others without a key", "serve bundle --host 0.0.0.0",
         says="host '0.0.0.0' is reachable from other machines; give a key file, or serve on 127.0.0.1"),
    case("serve: a short key", "serve bundle --key-file key", put("key", "secret"),
         says="key: a key is one line of at least 32 printable characters without blanks; make one with: openssl rand -hex 32"),
    case("serve: no key", "serve bundle --key-file key",
         says="key: no readable key (No such file or directory); write one line of ASCII"),
    case("serve: two bundles of one name", "serve bundle bundle",
         says="two bundles are named 'default'; export one under another name"),
    case("serve: a ready file in no folder", "serve bundle --ready-file nowhere/ready",
         says="ready file nowhere/ready: no such folder; make it, or name another"),
    case("serve: a ready file that is a folder", "serve bundle --ready-file data",
         says="ready file data: Is a directory; choose another place"),
    case("score: neither bundle nor url", "score rows.parquet scores.parquet",
         says="score: give either --bundle or --url, to say what scores the rows"),
    case("score: both bundle and url", "score rows.parquet scores.parquet --bundle bundle --url http://127.0.0.1:9",
         says="score: give either --bundle or --url, to say what scores the rows"),
    case("score: CSV in place of Parquet", "score log.csv scores.parquet --bundle bundle",
         says="log.csv: not a readable Parquet file; give raw rows as recsys rows writes them"),
    case("score: a column is missing", "score short.parquet scores.parquet --bundle bundle",
         put("short.parquet", pa.table({"item": [1], "pricy": [1.0]})),
         says="short.parquet: the rows have no column 'recent_item', which the model reads; add it"),
    case("score: a column of another type", "score short.parquet scores.parquet --bundle bundle",
         put("short.parquet", pa.table({"item": ["1"], "price": [1.0], "brand": ["b"], "genres": [["war"]], "recent_item": [[1]]})),
         says="short.parquet: feature 'item': column 'item' is string, the schema says int64; cast it or change [columns]"),
    case("score: a number that is infinite", "score short.parquet scores.parquet --bundle bundle",
         put("short.parquet", pa.table({"item": [1], "price": pa.array([float("inf")], pa.float32()), "brand": ["b"], "genres": [["war"]], "recent_item": [[1]]})),
         says="short.parquet, row 1: feature 'price', column 'price': inf is not a finite number (1 such row here); write null for a missing value"),
    case("score: a row of several that is wrong", "score short.parquet scores.parquet --bundle bundle",
         put("short.parquet", pa.table({"item": [1, 2], "price": pa.array([1.0, float("nan")], pa.float32(), from_pandas=False), "brand": ["b", "b"], "genres": [["war"], []], "recent_item": [[1], []]})),
         says="short.parquet, row 2: feature 'price', column 'price': nan is not a finite number (1 such row here); write null for a missing value"),
    case("score: no such bundle", "score rows.parquet scores.parquet --bundle bundel",
         says="bundel: no such bundle; check the path, or make it first (recsys export)"),
    case("score: no server", "score rows.parquet scores.parquet --url http://127.0.0.1:9",
         says="http://127.0.0.1:9: no answer ([Errno 111] Connection refused); check that the server runs"),
    case("score: no URL", "score rows.parquet scores.parquet --url localhost:8000",
         says="localhost:8000/: is no URL of a server; write one such as http://127.0.0.1:8000"),
    case("score: a folder that is not there", "score rows.parquet nowhere/scores.parquet --bundle bundle",
         says="nowhere/scores.parquet: cannot be written (No such file or directory); choose another place"),
    # init and quickstart
    case("init: no such file", "init lag.csv",
         says="lag.csv: no such file; check the path"),
    case("init: an empty file", "init log.csv --out new", put("log.csv", ""),
         says="log.csv: the file is empty (0 bytes); give a file with rows"),
    case("init: an empty folder", "init new --out new", folder("new"),
         says="new: this folder holds no data file; give Parquet, CSV or JSON lines"),
    case("init: a header only", "init log.csv --out new", put("log.csv", ",".join(COLUMNS) + "\n"),
         says="log.csv: holds no rows below its header; give a file with rows"),
    case("init: few rows", "init log.csv --out new", put("log.csv", "a,clicked\n1,0\n2,1\n"),
         says="log.csv: 2 rows are too few to train a model and to judge it; give at least 100, better thousands"),
    case("init: files are there", "init log.csv --label clicked",
         says="schema.toml: is there already; name another folder with --out, or replace it with --force"),
    case("init: no such label", "init log.csv --label cliked --out new",
         says="--label cliked: no such column (did you mean 'clicked'?); the columns: user, item, price, genres, shown_at, paid, clicked"),
    case("init: a label that is none", "init log.csv --label shown_at --out new",
         says="--label shown_at: the column holds 160 different values of timestamp; a label has two values, or is a number. Make one by a rule: see Rules in docs/pipeline.md"),
    case("init: no such user", "init log.csv --label clicked --user usr --out new",
         says="--user usr: no such column (did you mean 'user'?); the columns: user, item, price, genres, shown_at, paid, clicked"),
    case("init: a user that is none", "init log.csv --label clicked --user price --out new",
         says="--user price: the column holds float32, and user needs text or whole numbers"),
    case("init: a time that is none", "init log.csv --label clicked --time user --out new",
         says="--time user: the column holds string ('u0', 'u1', 'u2'), and time needs times (or whole numbers whose size says seconds or milliseconds)"),
    case("init: nothing to predict", "init log.csv --out new",
         put("log.csv", "a,b\n" + "".join(f"{row * 0.37},{row * 1.7}\n" for row in range(300))),
         says="no column looks like something to predict: none has two values or a few levels that occur often enough (closest: a, 300 different values of float32; b, 300 different values of float32); name one with --label, a number for a regression"),
    case("init: two columns of one name", "init log.csv --out new", replace("log.csv", "price,genres", "price,price"),
         says="log.csv: column 'price' occurs twice in the header (columns 3, 4); rename one of them"),
    case("init: files of unlike columns", "init log.csv other.csv --out new", put("other.csv", "x,y\n" + "1,2\n" * 30),
         says="other.csv: has other columns than log.csv, and no column that both have names its rows one by one, as a side table's key does; leave it out"),
    case("init: a broken Parquet file", "init log.parquet --out new", put("log.parquet", b"PAR1 and no more"),
         says="log.parquet: not readable as Parquet; the copy is damaged, copy the file again"),
    case("init: an Excel workbook", "init log.xlsx --out new", put("log.xlsx", b"PK\x03\x04\x00\x01"),
         says="log.xlsx: is a zip archive or an Excel workbook; unpack it, or save it as CSV"),
    case("init: a place that is a file", "init log.csv --label clicked --out items.csv",
         says="items.csv: cannot be written (File exists); choose another place"),
    case("init: nothing but a label", "init log.csv --label clicked --out new",
         put("log.csv", "clicked\n" + "0\n1\n" * 100),
         says="log.csv: no column is left as an input; there are too few; give a file with more columns, or name other roles with --user, --item, --label"),
    case("quickstart: an earlier one is there", "quickstart log.csv --label clicked --out .",
         says="schema.toml: is there already; replace it with --force, name another place with --out, or go on from it by hand, beginning with: recsys fit pipeline.toml"),
    case("quickstart: no such label", "quickstart log.csv --label cliked --out new",
         says="--label cliked: no such column (did you mean 'clicked'?); the columns: user, item, price, genres, shown_at, paid, clicked"),
    case("simulate: a place that is taken", "simulate data",
         says=".../data: is there already and no empty folder; remove it or name another"),
    case("simulate: too few rows", "simulate new --rows 3",
         says="simulate: rows is 3; give at least 1000"),
    case("simulate: few rows for the days", "simulate new --rows 1000 --days 50",
         says="simulate: 1000 rows are few for 50 days; give at least 100 a day"),
    case("experiment: a task of no expert", "train experiment.toml other",
         experiment('{ kind = "shared_bottom", hidden = [8] }', '{ kind = "ple", task_experts = { click = 0, buy = 1 }, shared_experts = 0 }'),
         says="model.mixing: task 'click' has no expert of its own and shared_experts is 0; give it at least one"),
    case("experiment: experts of no task", "train experiment.toml other",
         experiment('{ kind = "shared_bottom", hidden = [8] }', '{ kind = "ple", task_experts = { clik = 1, buy = 1 } }'),
         says="model.mixing.task_experts names task 'clik', which the schema does not have (did you mean 'click'?)"),
    case("experiment: experts of some tasks", "train experiment.toml other",
         experiment('{ kind = "shared_bottom", hidden = [8] }', '{ kind = "ple", task_experts = { buy = 1 } }'),
         says="model.mixing.task_experts leaves out task 'click'; give every task its number, 0 for none"),
    case("experiment: fewer experts than none", "train experiment.toml other",
         experiment('{ kind = "shared_bottom", hidden = [8] }', '{ kind = "ple", task_experts = { click = -1, buy = 1 } }'),
         says="experiment.toml: model.mixing.task_experts: must be at least 0, found -1"),
    case("experiment: groups of some tasks", "train experiment.toml other",
         experiment('{ kind = "shared_bottom", hidden = [8] }', '{ kind = "home", groups = { all = ["click"] } }'),
         says="model.mixing (home): groups leave out task 'buy'; put every task into one group"),
    case("experiment: a group of no task", "train experiment.toml other",
         experiment('{ kind = "shared_bottom", hidden = [8] }', '{ kind = "home", groups = { all = ["clik", "buy"] } }'),
         says="model.mixing (home): groups.all names task 'clik', which the schema does not have (did you mean 'click'?)"),
    case("experiment: an empty group", "train experiment.toml other",
         experiment('{ kind = "shared_bottom", hidden = [8] }', '{ kind = "home", groups = { all = ["click", "buy"], none = [] } }'),
         says="model.mixing (home): groups.none is empty; give it tasks or remove it"),
    case("experiment: a task in two groups", "train experiment.toml other",
         experiment('{ kind = "shared_bottom", hidden = [8] }', '{ kind = "home", groups = { all = ["click", "buy"], one = ["buy"] } }'),
         says="model.mixing (home): groups name task 'buy' twice, in 'all' and in 'one'; name it once, in one group"),
    case("experiment: a group of numbers", "train experiment.toml other",
         experiment('{ kind = "shared_bottom", hidden = [8] }', '{ kind = "home", groups = { all = [1] } }'),
         says="experiment.toml: model.mixing.groups.all[0]: must be a text, found 1"),
    case("experiment: a batch too small for its norms", "train experiment.toml other",
         experiment('{ kind = "shared_bottom", hidden = [8] }', '{ kind = "home" }'),
         experiment("batch_size = 64", "batch_size = 1"),
         says="data.batch_size is 1, and this mixing normalises its experts over the batch (BatchNorm); give at least 32 rows, better 1024, or choose another mixing"),
    case("experiment: parts too small for its norms", "train experiment.toml other --set train.accumulate=4",
         experiment('{ kind = "shared_bottom", hidden = [8] }', '{ kind = "home" }'),
         says="data.batch_size is 64 in 4 parts (train.accumulate), and this mixing normalises its experts over the batch (BatchNorm); give at least 128 rows, better 4096, or choose another mixing"),
    case("experiment: interests without a sequence", "train experiment.toml other",
         experiment("mixing =", 'bottom = { kind = "dtrn" }\nmixing ='),
         schema('[sequences.recent]\nmax_length = 5\nitem = { table = "item" }\n', ""),
         schema('recent_item = "list<int64>"\n', ""), pipeline('[histories.recent]\ntokens = { recent_item = "item" }\nwhere = { column = "clicked", equals = true }\n', ""), without("encoder"),
         without("data"), fitted, built,
         says="model.bottom (dtrn): the schema has no sequence to read interests from; declare one under [sequences], or take kind = \"flat\""),
    case("experiment: heads that do not divide the width", "train experiment.toml other",
         experiment("mixing =", 'bottom = { kind = "dtrn", width = 16, attention_heads = 3 }\nmixing ='),
         says="experiment.toml: model.bottom: width 16 is no multiple of attention_heads 3; change one"),
    case("experiment: a funnel's heads without a funnel", "train experiment.toml other",
         experiment("mixing =", 'heads = { kind = "aitm" }\nmixing ='), schema(', given = "click"', ""),
         says="model.heads (aitm): no task has given, so there is no funnel to hand on along; name each step's parent under [tasks], or take kind = \"towers\""),
    case("experiment: a width that TorchRec cannot take", "train experiment.toml other",
         experiment("[train]", '[model.embeddings]\nbackend = "torchrec"\n\n[train]'),
         schema("brand = { rows = 20, dim = 4 }", "brand = { rows = 20, dim = 6 }"), without("encoder"),
         without("data"), fitted, built,
         says="tables.brand: dim 6 is no multiple of 4, which TorchRec's kernels need; change it or set model.embeddings.backend = \"plain\""),
    case("experiment: validation rows of one class", "train experiment.toml other",
         replace("pipeline.toml", "[split]", '[[filters]]\ncolumn = "clicked"\nequals = false\n\n[split]'),
         without("data"), built,
         says="validation: mean_auc is undefined (click: no positive among 27 rows, so AUC is undefined; buy: no positive among 27 rows, so AUC is undefined; buy|click: no observed rows); name other validation days or another train.metric"),
    case("experiment: a run's JSON that is damaged", "train run/experiment.json other",
         put("run/experiment.json", "{"),
         says="run/experiment.json: not valid JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
    case("experiment: a run's JSON that holds no sections", "train run/experiment.json other",
         put("run/experiment.json", "[]"),
         says="run/experiment.json: holds no sections; give the experiment.json of a run"),
    case("days: labelled by other rules", "train experiment.toml other", relabelled,
         says=".../data/2026-10-03/...: labelled by other rules of pipeline.toml than the days trained on were; build both by the same rules"),
    case("days: a range in a gap", "train experiment.toml other", without("data/2026-10-02"),
         without("data/2026-10-03"),
         experiment('train = { from = "2026-10-01", to = "2026-10-02" }', 'train = { from = "2026-10-02", to = "2026-10-03" }'),
         experiment('["2026-10-03"]', '["2026-10-01"]'),
         says=".../data: no day from 2026-10-02 to 2026-10-03 is published; build them, or change the range"),
    case("days: of an encoder that is not extended", "train experiment.toml other", without("encoder"),
         pipeline('to = "2026-10-02"', 'to = "2026-10-01"'), fitted,
         says=".../data/2026-10-01/...: encoded by encoder 99910be084fb, which 6d165c06b2ff does not extend; build the day again with this encoder, or name the one it was built with"),
    case("baseline: a task without a label", "baseline experiment.toml other", column('seen = "bool"'),
         schema('buy = { label = "bought", given = "click" }', 'buy = { label = "bought", mask = "seen" }'),
         pipeline("[labels]", '[labels]\nseen = { column = "paid", above = 1000 }'), without("encoder"),
         without("data"), fitted, built,
         says="task 'buy': no training row is observed, so nothing can be learned; name more training days, or check its label and mask in the schema"),
    case("compare: no task in common", "compare report other", evaluated_otherwise,
         says="report and other: no binary task in common (click, buy, buy|click; tap); compare reports of the same tasks"),
    case("rows: a vector of another length", "build pipeline.toml other", *PICTURES,
         feature('picture = { kind = "vector", dim = 3 }'), without("encoder"), fitted,
         says="log.csv, row 1: feature 'picture', column 'picture': 2 numbers, the vector has 3; change dim or the row"),
    case("rows: a weight for some of the ids", "fit pipeline.toml", *PICTURES,
         schema('table = "genre"', 'table = "genre", weights = "picture"'),
         says="log.csv, row 2: feature 'genres', column 'picture': 2 weights for the 3 ids of column 'genres'; give each id its weight"),
    case("rows: a negative weight", "build pipeline.toml other", schema("[keys]", '[keys]\nsample_weight = "paid"'),
         cell(6, "paid", "-1"), without("encoder"), fitted,
         says="log.csv, row 6: column 'paid': sample weight -1.0; a weight is a number >= 0, fill or filter"),
    case("csv: an empty header", "fit pipeline.toml", put("log.csv", "\n" + FILES["log.csv"]),
         says="log.csv: the header line is empty; write the columns' names, or set header = false"),
    case("csv: a header that opens a quote", "fit pipeline.toml", replace("log.csv", "user,item", '"user,item'),
         says="log.csv: the header line '\"user,item,price,genres,shown_at,paid,clicked' opens a quote and does not close it; write the header in one line, or set quote = \"\" under [csv]"),
    case("csv: UTF-16", "fit pipeline.toml", put("log.csv", FILES["log.csv"].encode("utf-16")),
         says='log.csv: the text looks like UTF-16, not utf-8; say encoding = "utf-16" under [csv]'),
    case("csv: UTF-8 that is said to be UTF-16", "fit pipeline.toml", pipeline("[csv]", '[csv]\nencoding = "utf-16"'),
         says='log.csv: the text does not look like utf-16; take encoding out of [csv], or say encoding = "latin-1"'),
    case("json: not UTF-8", "fit pipeline.toml", *JSON_LINES, put("log.jsonl", b'{"user": "caf\xe9"}\n'),
         says="log.jsonl, row 1: the line is not UTF-8; write the file as UTF-8"),
    case("json: NaN", "fit pipeline.toml", *JSON_LINES, put("log.jsonl", '{"user": "a", "price": NaN}\n'),
         says="log.jsonl, row 1: NaN is no JSON; write null for a missing value"),
    case("json: a text where a number is declared", "fit pipeline.toml", *JSON_LINES,
         put("log.jsonl", JSON_ROW.replace("2.5", '"cheap"')),
         says="log.jsonl, row 1, column 'price': found \"cheap\", text, where the schema says float32; write a number or change [columns]"),
    case("json: a whole number beyond 64 bits", "fit pipeline.toml", *JSON_LINES,
         put("log.jsonl", JSON_ROW.replace('"item": 1', '"item": 99999999999999999999')),
         says="log.jsonl, row 1, column 'item': found 99999999999999999999, beyond 64-bit integers; write it as text and declare string"),
    case("json: a number beyond floats", "fit pipeline.toml", *JSON_LINES,
         put("log.jsonl", JSON_ROW.replace("2.5", "1e999")),
         says="log.jsonl, row 1, column 'price': found inf, beyond 64-bit floats; correct it, or write null"),
    case("json: an object where a number is declared", "fit pipeline.toml", *JSON_LINES,
         put("log.jsonl", JSON_ROW.replace("2.5", '{"eur": 2}')),
         says="log.jsonl, row 1, column 'price': found {\"eur\": 2}, an object, where the schema says float32; write a number or change [columns]"),
    case("json: an object of texts as a map", "fit pipeline.toml", *JSON_LINES,
         column('scores = "map<string,float32>"'), put("log.jsonl", JSON_ROW.replace("}", ', "scores": {"a": "b"}}')),
         says="log.jsonl, row 1, column 'scores': found \"b\", text, where the schema says float64; write a number or change [columns]"),
    case("json: keys of a map that are no integers", "fit pipeline.toml", *JSON_LINES,
         column('scores = "map<int64,float32>"'), put("log.jsonl", JSON_ROW.replace("}", ', "scores": {"a": 1}}')),
         says="log.jsonl, row 1, column 'scores': found the key \"a\", which is no integer; correct it, or declare map<string,float32>"),
    case("parquet: numbers without their unit of time", "fit pipeline.toml", *PARQUET,
         put("log.parquet", PARQUET_ROWS.set_column(4, "shown_at", pa.array([1]))),
         says="log.parquet: column 'shown_at' holds numbers, the schema says timestamp; say their unit under [timestamps], such as \"seconds\" or \"milliseconds\""),
    case("parquet: lists where numbers are declared", "fit pipeline.toml", *PARQUET,
         put("log.parquet", PARQUET_ROWS.set_column(2, "price", pa.array([[1.0]]))),
         says="log.parquet: column 'price' is list<float64> in the file, the schema says float32; change the file or [columns]"),
    case("parquet: no rows", "fit pipeline.toml", *PARQUET, put("log.parquet", PARQUET_ROWS.slice(0, 0)),
         says="pipeline.toml: no row is left to fit on; check the source and the filters"),
    case("parquet: lists of a sequence that are not aligned", "build pipeline.toml other", *PARQUET,
         column('seen_item = "list<int64>"\nseen_genre = "list<string>"'),
         schema("[tasks]", '[sequences.seen]\nitem = { table = "item" }\ngenre = { table = "genre" }\n\n[tasks]'),
         put("log.parquet", PARQUET_ROWS.append_column("seen_item", [[[1, 2]]]).append_column("seen_genre", [[["war"]]])),
         without("encoder"), fitted,
         says="log.parquet, row 1: sequence 'seen': column 'seen_item' has 2 events and column 'seen_genre' 1; the lists of a sequence must be aligned"),
    case("score: a folder", "score data scores.parquet --bundle bundle",
         says="data: is a folder; name one Parquet file of raw rows"),
    case("init: a file of blanks", "init log.csv --out new", put("log.csv", "  \n \n"),
         says="log.csv: the file holds no rows; give a file with rows"),
    case("init: a label of one value", "init log.csv --label clicked --out new",
         put("log.csv", "user,clicked\n" + "".join(f"u{row % 9},1\n" for row in range(200))),
         says="--label clicked: the column holds one value only; a label has two values, or is a number. Make one by a rule: see Rules in docs/pipeline.md"),
    case("init: unlike files without headers", "init log.csv other.csv --out new",
         put("log.csv", "".join(f"{row % 9},{row % 2}\n" for row in range(200))),
         put("other.csv", "".join(f"{row},{row},{row}\n" for row in range(200))),
         says="other.csv: has other columns than log.csv, and without headers nothing says how the two belong together; give one of them, and add the other to pipeline.toml under [[joins]]"),
    case("simulate: a start that is no day", "simulate log.csv/new",
         says=".../log.csv/new: cannot be written (Not a directory); check path, rights and free space"),
]
# fmt: on


@dataclass(frozen=True)
class Ended:
    """How a command ended and what it printed."""

    code: object
    out: str
    err: str


def run(folder: Path, command: str, patch: pytest.MonkeyPatch) -> Ended:
    """The command line in a folder, in this process."""
    out, err = StringIO(), StringIO()
    with patch.context() as patched, redirect_stdout(out), redirect_stderr(err):
        patched.chdir(folder)
        patched.setattr(sys, "argv", ["recsys", *command.split()])
        with pytest.raises(SystemExit) as ended:
            main()
    return Ended(ended.value.code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small project after every command of a first hour."""
    folder = tmp_path_factory.mktemp("project")
    for name, content in FILES.items():
        (folder / name).write_text(content, encoding="utf-8")
    for command in (
        "fit pipeline.toml",
        "build pipeline.toml",
        "rows pipeline.toml rows.parquet --day 2026-10-04",
        "train experiment.toml",
        "evaluate run",
        "export run",
    ):
        ended = run(folder, command, pytest.MonkeyPatch())
        assert ended.code == 0, ended.err
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def taken_port() -> Iterator[int]:
    """A port that somebody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_mistake_is_told_in_one_sentence_and_nothing_is_lost(
    case: Case, project: Path, taken_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = copied(project, tmp_path, case.changes)
    before = contents(place)

    ended = run(place, case.command.replace("TAKEN", str(taken_port)), monkeypatch)

    assert re.fullmatch(_pattern(f"recsys: {case.says}\n"), ended.err), ended.err
    assert ended.code == 2
    assert ended.out == ""
    after = contents(place)
    assert {name: after.get(name) for name in before} == before
    assert {name.partition("/")[0] for name in after.keys() - before.keys()} <= {case.leaves}


def copied(project: Path, place: Path, changes: tuple[Change, ...]) -> Path:
    """A copy of the project in a folder, changed."""
    shutil.copytree(project, place / "project")
    for change in changes:
        change(place / "project")
    return place / "project"


def _pattern(sentence: str) -> str:
    return ".*".join(map(re.escape, sentence.split("...")))


# fmt: off
PROBLEMS: list[tuple[str, Change, str]] = [
    ("check pipeline.toml", cell(6, "clicked", "2"),
     "log.csv, row 6, column 'clicked': found '2', which is no bool; correct the file, name it in csv.nulls, or change [columns]"),
    ("check pipeline.toml", cell(6, "price", "inf"),
     "column 'price': values that are NaN or infinite: 1; write null for a missing value"),
    ("check pipeline.toml", feature('paid = { kind = "numeric" }'),
     "feature 'paid' reads column 'paid', which the label of task 'buy' is made of; take the feature out of the schema"),
    ("check pipeline.toml", pipeline('to = "2026-10-02" }', 'to = "2026-10-02" }\nfilters = [{ column = "clicked", equals = true }]'),
     "task 'click': the training rows do not hold both labels; check its rule and the split"),
    ("check pipeline.toml", pipeline('{ from = "2026-10-01", to = "2026-10-02" }', '["2026-10-09"]'),
     "no row is of the days or splits that fit_on names; found 2026-10-01, 2026-10-02, 2026-10-03, 2026-10-04"),
    ("check pipeline.toml", pipeline('{ from = "2026-10-01", to = "2026-10-02" }', '["2026-10-01", "2026-10-09"]'),
     "fit_on names '2026-10-09', which has no rows; found 2026-10-01, 2026-10-02, 2026-10-03, 2026-10-04"),
    ("check pipeline.toml", add("pipeline.toml", '\n[[filters]]\ncolumn = "price"\nabove = 1000\n'),
     "no row is left after the filters; check the source and the filters"),
    ("check pipeline.toml", everything(schema('clicked = "bool"', 'clicked = "float32"'), cell(6, "clicked", "2"), pipeline("equals = true", "equals = 1")),
     "task 'click': labels of column 'clicked' that are neither 0 nor 1: 1; make it by a rule under [labels], or declare kind = \"regression\""),
]
# fmt: on


@pytest.mark.parametrize(
    ("command", "change", "says"), PROBLEMS, ids=[says[:40] for *_, says in PROBLEMS]
)
def test_a_check_lists_what_is_wrong_with_the_rows(
    command: str, change: Change, says: str, project: Path, tmp_path: Path
) -> None:
    place = copied(project, tmp_path, (change,))

    ended = run(place, command, pytest.MonkeyPatch())

    assert ended.code == 2
    assert f"problem: {says}" in ended.out.splitlines()


# fmt: off
WARNINGS: list[tuple[str, str, tuple[Change, ...], str]] = [
    ("days that a range lacks", "train experiment.toml other", (without("data/2026-10-02"), experiment('to = "2026-10-02"', 'to = "2026-10-03"'), experiment('["2026-10-03"]', '["2026-10-04"]')),
     "days.missing directory=... range='2026-10-01 to 2026-10-03' days=2026-10-02 hint='not published; build them unless the source has no rows of these days'"),
    ("a version that is damaged", "evaluate run other", (damaged_newest,),
     "publish.fell_back kind=day to=... because=..."),
    ("a step of a funnel without the one before it", "train experiment.toml other", (cell(1, "paid", "5"), built),
     "labels.outside_funnel task=buy given=click rows=1 of_positives=... first_row_key=0 hint='buy = 1 where click = 0: the rows train p(buy) and are left out of buy|click; correct the labels by a rule in pipeline.toml, or drop given if one needs no other'"),
    ("days of several rules", "train experiment.toml other", (ruled_otherwise,),
     "days.rules_differ directory=... days=2026-10-01,2026-10-02 hint='built by different rules of pipeline.toml; build all of them again unless that is meant'"),
    ("trees for a task of one class", "baseline experiment.toml other", (pipeline("above = 0", "above = 100"), cell(5, "paid", "500"), built),
     "baseline.average task=buy... rows=... positives=1 hint='fewer than ... rows of a class: its average is predicted'"),
    ("widths that the kernels cannot hold", "train experiment.toml other", (schema("brand = { rows = 20, dim = 4 }", "brand = { rows = 20, dim = 6 }"),),
     "embeddings backend=plain reason='TorchRec needs widths in multiples of 4, not so: brand'"),
    ("a balance that never comes into play", 'train experiment.toml other --set objective.balance={kind="dwa"}', (),
     "balance kind=dwa steps=... period=...: weighs by the two periods before, so this training never reweighs; set objective.balance.every or train longer"),
]
# fmt: on


@pytest.mark.parametrize(
    ("command", "changes", "says"),
    [row[1:] for row in WARNINGS],
    ids=[name for name, *_ in WARNINGS],
)
def test_a_warning_says_what_is_done_about_it(
    command: str,
    changes: tuple[Change, ...],
    says: str,
    project: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    place = copied(project, tmp_path, changes)

    ended = run(place, command, pytest.MonkeyPatch())

    assert ended.code == 0, ended.err
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert any(re.fullmatch(_pattern(says), line) for line in warned), warned


# Sentences that this list does not hold, by file, or by file and a part of the sentence, and why.
DAMAGE = "a file of ours that was damaged or written by another release; the artifact's own tests"
REQUEST = "the body of an HTTP request; tests/serving/test_refusals.py"
OURS = "rows or tables that nobody but this program makes"
CALLER = "an argument of a function that the command line always gives well"
ELSEWHERE: dict[str, str] = {
    "pipelines/contract.py:   range": "lines of the report that are no mistakes",
    "pipelines/contract.py:  rows read, ... kept": "lines of the report that are no mistakes",
    "pipelines/contract.py: column ... is the same in every row": "lines of the report that are no mistakes",
    "pipelines/contract.py: unknown to the encoder: ... of ": "lines of the report that are no mistakes",
    "pipelines/csv_faults.py: : a field of more than ... characters, most ": "tests/pipelines/test_csv_files.py",
    "pipelines/csv_faults.py: : holds bytes that are no ...); correct enco": "tests/pipelines/test_csv_files.py",
    "pipelines/csv_text.py: : holds the control character 0x1F, which st": "tests/pipelines/test_csv_files.py",
    "pipelines/init/formats.py: : cannot be read (...); check the file": "tests/pipelines/test_init.py",
    "pipelines/init/formats.py: no file given; name the files that hold your": "tests/pipelines/test_init.py",
    "pipelines/init/labels.py: : the same value in all rows looked at, so t": "tests/pipelines/test_init.py",
    "pipelines/init/labels.py: no name says what is to be predicted; it can": "tests/pipelines/test_init.py",
    "pipelines/json_columns.py: found ..., an object whose values are not nu": "tests/pipelines/test_jsonl_files.py",
    "pipelines/json_columns.py: found ..., where earlier rows hold ...; writ": "tests/pipelines/test_jsonl_files.py",
    "pipelines/rows.py: : the source's files hold no rows; check wha": "files that hold no part at all",
    "pipelines/simulate.py: simulate: start is ...; write a date such as": CALLER,
    "pipelines/build.py: : changed while it was read": "a file that is still written; tests/pipelines/test_resume.py",
    "pipelines/staging.py: : another process is building the same there": "two builds at once; tests/pipelines/test_resume.py",
    "recsys/baseline/trees.py: LightGBM cannot be loaded (...); on Debian a": "LightGBM is missing or cannot be loaded; tests/recsys/test_baseline.py",
    "recsys/baseline/trees.py: recsys baseline needs LightGBM, which is not": "LightGBM is missing or cannot be loaded; tests/recsys/test_baseline.py",
    "recsys/batch.py": OURS,
    "recsys/bundle.py": DAMAGE,
    "recsys/calibrate.py": DAMAGE,
    "recsys/cli/quickstart.py: : holds no rows to export with; check the fi": "a held-out split without rows; evaluation refuses it first",
    "recsys/config.py: : cannot be read (...); check the path": "a file that may not be read, which root always may",
    "recsys/days.py:  hold no rows; build days with rows, or name": DAMAGE,
    "recsys/days.py: : cannot be read (...); build the day again": DAMAGE,
    "recsys/days.py: : column ... is ..., the schema says ...; bu": DAMAGE,
    "recsys/days.py: : column ... is missing; build the day again": DAMAGE,
    "recsys/days.py: : holds ... rows, its manifest says ...; bui": DAMAGE,
    "recsys/days.py: : not a readable Parquet file (...); build t": DAMAGE,
    "recsys/derived.py:  inside a vector; write null for the whole v": "tests/recsys/test_derived.py",
    "recsys/derived.py: , column ...: a text is not valid UTF-8 (...": "tests/recsys/test_derived.py",
    "recsys/derived.py: : weight ...; a weight is a finite number >=": "tests/recsys/test_derived.py",
    "recsys/encode.py: : format ..., this release reads ...; fit ag": DAMAGE,
    "recsys/encode.py: : its content does not match its digest; the": DAMAGE,
    "recsys/encode.py: : not a readable encoder (...); fit it again": DAMAGE,
    "recsys/evaluation/metrics.py: task ... of ... are NaN or infinite": "tests/recsys/test_evaluate.py",
    "recsys/evaluation/metrics.py: task ... of ... rows have a reference that i": "tests/recsys/test_evaluate.py",
    "recsys/evaluation/outcomes.py: evaluation: no rows; name days or splits tha": "tests/recsys/test_evaluate.py",
    "recsys/experiment.py: : cannot be read (...); check the path": "a file that may not be read, and a reference for a regression",
    "recsys/experiment.py: : task ... is a regression; only a binary ta": "a file that may not be read, and a reference for a regression",
    "recsys/export.py: export: on ... the bundle's logits differ fr": "an export whose scores differ; tests/recsys/test_export.py plants one",
    "recsys/fitting.py: feature ...: its numbers are too large for a": "pipelines.build says it first, with its file",
    "recsys/fitting.py: fit: no training rows; check the source, the": "pipelines.build says it first, with its file",
    "recsys/golden.py": DAMAGE,
    "recsys/hold.py: train.not_held": "a file system without locks; tests/recsys/test_hold.py",
    "recsys/idmap.py": DAMAGE,
    "recsys/measures.py": CALLER,
    "recsys/models/embeddings/lookup.py": "damage, and an installation without TorchRec",
    "recsys/models/precision.py: train.slow_bf16": "a CPU without bf16; tests/recsys/test_models.py",
    "recsys/models/embeddings/torchrec.py": "a table of more than 2^31 rows",
    "recsys/parent.py": DAMAGE,
    "recsys/predictions.py": DAMAGE,
    "recsys/publish.py:  bytes, the manifest says ...; the copy is d": DAMAGE,
    "recsys/publish.py: : SHA-256 differs from the manifest; the cop": DAMAGE,
    "recsys/publish.py: : cannot be written (..., then run the same": "a disk that is full; tests/recsys/test_full_disks.py",
    "recsys/publish.py: : damaged (...); publish this ... again": DAMAGE,
    "recsys/publish.py: : damaged (its digest differs); publish this": DAMAGE,
    "recsys/publish.py: : manifest format ..., this release reads ": DAMAGE,
    "recsys/publish.py: : missing, though the manifest lists it; pub": DAMAGE,
    "recsys/publish.py: : names ..., which lies outside; publish it ": DAMAGE,
    "recsys/publish.py: : no ..., so this ... is unfinished or missi": DAMAGE,
    "recsys/publish.py: : points to ..., which is not a version name": DAMAGE,
    "recsys/raw.py:  is beyond what a float32 holds; scale or fi": "a float64 column, told by recsys.derived's tests",
    "recsys/report.py": DAMAGE,
    "recsys/run.py: : cannot be read (...); train again": DAMAGE,
    "recsys/run.py: : does not fit this run's model (...); it wa": DAMAGE,
    "recsys/run.py: : stamped with ..., the run has ...; it belo": DAMAGE,
    "recsys/tensor_files.py": DAMAGE,
    "recsys/training/checkpoint.py": DAMAGE,
    "recsys/training/distributed/audit.py: a plan needs TorchRec, and ... is not instal": "an installation without TorchRec",
    "recsys/training/distributed/fit.py: table ... stands ... times in the plan, wher": "tests/recsys/test_sharding_plan.py",
    "recsys/training/distributed/fit.py: table ...: the shards of the plan hold ... n": "tests/recsys/test_sharding_plan.py",
    "recsys/training/distributed/workers.py:  workers, and torch sees ": "a machine with GPUs",
    "recsys/raw_days.py: , row group ": "tests/recsys/test_stream.py",
    "recsys/training/distributed/launcher.py: --workers: this process is one": "tests/recsys/test_workers_slowly.py",
    "recsys/training/distributed/ray_cluster.py: --ray-address ...: the training takes": "tests/recsys/test_ray_workers.py",
    "recsys/training/distributed/ray_launcher.py": "several machines, or a kill; tests/recsys/test_ray_workers.py",
    "recsys/training/distributed/stream.py: stream.resumed": "a training that is stopped; tests/recsys/test_stream.py",
    "recsys/training/distributed/restarts.py: train.restart": "a worker that is killed; tests/recsys/test_ray_workers.py",
    "recsys/training/distributed/workers.py: another worker has ended": "a launcher that does not notice an end",
    "recsys/training/journal.py": DAMAGE,
    "recsys/training/skipped.py: train.skipped_step because=": "tests/recsys/test_skipped_steps.py",
    "recsys/training/managed_ids.py: tables....: ids = ": "an installation without TorchRec; tests/recsys/test_managed_ids.py",
    "recsys/training/soundness.py: step ... is not finite in places": "tests/recsys/test_skipped_steps.py",
    "recsys/utility.py": DAMAGE,
    "serving/app.py": REQUEST,
    "serving/body.py": REQUEST,
    "serving/client.py": "a server of another program",
    "serving/decoding.py": REQUEST,
    "serving/inputs.py": REQUEST,
    "serving/models.py": REQUEST,
    "serving/rows.py": "tests/serving/test_kinds.py",
    "serving/wire.py": REQUEST,
}


def sites() -> Iterator[tuple[str, str, str]]:
    """File, constant text and pattern of every sentence that a module raises, lists as a problem, or warns with."""
    for path in sorted(
        path for room in ("recsys", "pipelines", "serving") for path in (ROOT / room).rglob("*.py")
    ):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            told = [
                part
                for text in _constants(_told(node))
                # A warning's values stand in its template.
                for part in (_VALUE.split(text) if isinstance(node, ast.Call) else [text])
            ]
            parts = [part for part in told if part.strip(" :;,()'")]
            if parts:
                yield (
                    path.relative_to(ROOT).as_posix(),
                    "...".join(parts),
                    ".*".join(map(re.escape, parts)),
                )


def _told(node: ast.AST) -> ast.expr | None:
    """The expression of a sentence, where a node holds one."""
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "warning"
    ):
        return node.args[0]
    if isinstance(node, ast.Raise | ast.Return):
        value = node.exc if isinstance(node, ast.Raise) else node.value
        if (
            isinstance(value, ast.Call)
            and isinstance(value.func, ast.Name)
            and value.func.id in ERRORS
        ):
            return value.args[0]
    if isinstance(node, ast.Yield) and isinstance(node.value, ast.JoinedStr | ast.BinOp):
        return node.value
    return None


def _constants(expression: ast.expr | None) -> list[str]:
    match expression:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.JoinedStr(values=values):
            return [text for value in values for text in _constants(value)]
        case ast.BinOp(left=left, right=right):
            return [*_constants(left), *_constants(right)]
        case _:
            return []


def test_the_list_holds_every_sentence_that_a_newcomer_can_meet() -> None:
    said = [case.says for case in CASES]
    said += [problem[-1] for problem in PROBLEMS] + [warning[-1] for warning in WARNINGS]
    missing = [
        (file, text)
        for file, text, pattern in sites()
        if not any(re.search(pattern, says) for says in said)
    ]
    excused = {
        (file, text): {key for key in ELSEWHERE if f"{file}: {text}".startswith(key)}
        for file, text in missing
    }
    assert not [site for site, keys in excused.items() if not keys], (
        "add a case, or say why there is none"
    )
    assert not ELSEWHERE.keys() - set().union(*excused.values()), (
        "reasons that nothing needs any more"
    )
