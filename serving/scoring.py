"""Files of raw rows in, files of scores out, through the ranker itself or through a running server."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from recsys.errors import ConfigError, DataError
from recsys.raw import read_rows
from serving.client import score_rows_over_http
from serving.ranker import Ranker
from serving.server import read_key

_SHOWN_ROWS = 5
_SHOWN_KEYS = 4


@dataclass(frozen=True)
class ScoredFile:
    """What was written where; `first` holds the first rows, to be looked at."""

    path: Path
    rows: int
    columns: tuple[str, ...]
    first: tuple[dict[str, Any], ...]

    def to_json(self) -> dict[str, Any]:
        return {"scores": str(self.path), "rows": self.rows, "columns": list(self.columns)}

    @property
    def shown(self) -> tuple[str, ...]:
        """The columns worth a look: the first keys, which come before the score, and what is served."""
        place = self.columns.index("score")
        served = (name for name in self.columns[place:] if not name.startswith("raw:"))
        return (*self.columns[:place][:_SHOWN_KEYS], *served)

    def render(self) -> str:
        """The first rows as an aligned table of the shown columns, how many rows there are, and the path."""
        cells = [
            list(self.shown),
            *([_cell(row[name]) for name in self.shown] for row in self.first),
        ]
        widths = [max(len(row[column]) for row in cells) for column in range(len(self.shown))]
        lines = [
            "  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True))
            for row in cells
        ]
        more = [f"... {self.rows - len(self.first):,} more"] if self.rows > len(self.first) else []
        closing = f"scores of {self.rows:,} rows in {len(self.columns)} columns: {self.path}"
        return "\n".join([*lines, *more, closing])


def score_file(
    rows: Path,
    scores: Path,
    *,
    bundle: Path | None = None,
    url: str | None = None,
    key_file: Path | None = None,
) -> ScoredFile:
    """Score a Parquet file of raw rows into another, row by row in their order.

    Through `bundle` in this process, or through the server at `url`; exactly one. Raises ConfigError, DataError for
    rows that cannot be read or scored, ArtifactError for the bundle, RequestError for the server's refusals.
    """
    if (bundle is None) == (url is None):
        raise ConfigError("score: give either --bundle or --url, to say what scores the rows")
    table = read_rows(rows)
    if bundle is not None:
        scored = _score(Ranker.load(bundle), table, rows)
    else:
        assert url is not None
        key = None if key_file is None else read_key(key_file)
        scored = score_rows_over_http(table, url, key=key)
    try:
        pq.write_table(scored, scores, compression="zstd")
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        raise ConfigError(
            f"{scores}: cannot be written ({reason}); choose another place"
        ) from error
    first = scored.slice(0, _SHOWN_ROWS).to_pylist()
    return ScoredFile(scores, scored.num_rows, tuple(scored.column_names), tuple(first))


def _score(ranker: Ranker, table: pa.Table, rows: Path) -> pa.Table:
    """The scores of a file's rows; what is wrong with them is named by the file, its rows counted from 1."""
    try:
        return ranker.score_rows(table)
    except DataError as error:
        where = f"{rows}" if error.row is None else f"{rows}, row {error.row + 1}"
        raise DataError(f"{where}: {error.problem}") from error


def _cell(value: Any) -> str:
    if value is None:
        return "null"
    return f"{value:.6f}" if isinstance(value, float) else str(value)
