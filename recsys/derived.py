"""What each kind of feature makes of raw columns, before its encoding: ids, bags of ids, numbers, vectors.

Fitting counts and measures these same values, so a kind is written down here once. Nothing here is fitted.
Axes: **B** rows, **N** values of all rows, **D** numbers of a vector.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recsys.errors import DataError
from recsys.hashing import combined, hash_ids
from recsys.raw import column_of, flat_list, number_of, one_array
from recsys.schema import (
    BagFeature,
    BucketFeature,
    CategoricalFeature,
    DatePartFeature,
    ExpressionFeature,
    IdFeature,
    LookupFeature,
    NumberFeature,
    NumericFeature,
    OverlapFeature,
    Schema,
    TextFeature,
    VectorFeature,
)
from recsys.text import ngrams

_MICROSECONDS_AN_HOUR = 3_600_000_000


@dataclass(frozen=True)
class Source:
    """Raw rows as one feature reads them; `where` names it in messages."""

    raw: pa.Table
    schema: Schema
    where: str

    def column(self, name: str) -> pa.Array:
        """A column of its declared type. Raises DataError when it is absent or of another type."""
        return column_of(self.raw, name, self.schema, self.where)

    def repeated(self, name: str) -> tuple[pa.Array, NDArray[np.int64] | None]:
        """The values of a dictionary array and which of them each row has; of another column None, one a row."""
        index = self.raw.schema.get_field_index(name)
        if index < 0 or not pa.types.is_dictionary(self.raw.schema.field(index).type):
            return self.column(name), None
        coded = one_array(self.raw.column(index))
        values = column_of(pa.table({name: coded.dictionary}), name, self.schema, self.where)
        return values, coded.indices.to_numpy().astype(np.int64)

    def number(self, name: str) -> NDArray[np.float64]:
        """A column as float64, NaN for null. Raises DataError for a NaN or infinity that is not null."""
        return number_of(self.column(name), name, self.where)


@dataclass(frozen=True)
class Bag:
    """The ids of each row, `offsets` [B + 1] into `ids_N`, and their weights where the feature has any."""

    offsets: NDArray[np.int64]
    ids_N: pa.Array
    weights_N: NDArray[np.float32] | None = None


def ids(item: IdFeature, source: Source) -> pa.Array:
    """One id a row: the column's, or the 64-bit combination of several columns' hashes; null where any is null."""
    if isinstance(item, CategoricalFeature):
        return source.column(item.column)
    columns = [source.column(name) for name in item.columns]
    present_B = np.logical_and.reduce([_valid(column) for column in columns])
    known = pa.array(present_B)
    crossed_B = np.zeros(len(present_B), np.int64)
    crossed_B[present_B] = combined([hash_ids(column.filter(known)) for column in columns]).view(
        np.int64
    )
    return pa.array(crossed_B, mask=~present_B)


def bag(item: BagFeature, source: Source) -> Bag:
    """A list of ids a row: the column's, with weights if the feature has them, or the hashes of a text's n-grams."""
    column = source.column(item.column)
    if isinstance(item, TextFeature):
        try:
            offsets, hashes_N = ngrams(column, item)
        except (UnicodeDecodeError, pa.ArrowInvalid) as error:
            raise DataError(
                f"{source.where}, column {item.column!r}: a text is not valid UTF-8 ({error}); convert it"
            ) from error
        return Bag(offsets, pa.array(hashes_N))
    offsets, ids_N = flat_list(column)
    if item.weights is None:
        return Bag(offsets, ids_N)
    return Bag(offsets, ids_N, _weights(item.column, item.weights, offsets, source))


def _weights(
    ids: str, name: str, offsets: NDArray[np.int64], source: Source
) -> NDArray[np.float32]:
    weight_offsets, weights = flat_list(source.column(name))
    where = f"{source.where}, column {name!r}"
    counts_B, found_B = np.diff(offsets), np.diff(weight_offsets)
    differ = np.flatnonzero(counts_B != found_B)
    if len(differ):
        row = int(differ[0])
        raise DataError(
            f"{where}: {found_B[row]} weights for the {counts_B[row]} ids of column {ids!r}; give each id its weight",
            row=row,
        )
    weights_N: NDArray[np.float32] = weights.to_numpy(zero_copy_only=False)
    wrong = np.flatnonzero(~((weights_N >= 0) & np.isfinite(weights_N)))
    if len(wrong):
        found = weights[int(wrong[0])].as_py()
        raise DataError(
            f"{where}: weight {'null' if found is None else found}; a weight is a finite number >= 0, fill or filter",
            row=_row_of(offsets, int(wrong[0])),
        )
    return weights_N


def date_part(item: DatePartFeature, source: Source) -> pa.Array:
    """The part of each time, from 0: hour, weekday (Monday 0), day of month, month, or hour of the week."""
    shift = round(item.utc_offset_hours * _MICROSECONDS_AN_HOUR)
    # Without a time zone Arrow needs no time zone database.
    local = pc.add(source.column(item.column).cast(pa.int64()), shift).cast(pa.timestamp("us"))
    match item.part:
        case "hour":
            return pc.hour(local)
        case "weekday":
            return pc.day_of_week(local)
        case "day_of_month":
            return pc.subtract(pc.day(local), 1)
        case "month":
            return pc.subtract(pc.month(local), 1)
        case "hour_of_week":
            return pc.add(pc.multiply(pc.day_of_week(local), 24), pc.hour(local))


def number(item: NumberFeature | BucketFeature, source: Source) -> NDArray[np.float64]:
    """One number a row, NaN where missing, before any transform."""
    match item:
        case NumericFeature() | BucketFeature():
            return source.number(item.column)
        case LookupFeature():
            return _looked_up(item, source)
        case OverlapFeature():
            return _overlap(item, source)
        case ExpressionFeature():
            columns = {name: source.number(name) for name in item.columns}
            return item.parsed.value(columns, source.raw.num_rows)


def _looked_up(item: LookupFeature, source: Source) -> NDArray[np.float64]:
    maps, map_of_B = source.repeated(item.column)
    key_B = source.column(item.key)
    if pa.types.is_boolean(key_B.type) or pa.types.is_integer(key_B.type):
        key_B = key_B.cast(pa.int64())
    # A map is a list of pairs, whose keys and items ignore a slice of it.
    offsets = maps.offsets.to_numpy()
    begin, count = int(offsets[0]), int(offsets[-1] - offsets[0])
    keys_N, items_N = maps.keys.slice(begin, count), maps.items.slice(begin, count)
    map_N = np.repeat(np.arange(len(maps)), np.diff(offsets))
    if map_of_B is None:
        entry_B, held_B = _entries(map_N, keys_N, key_B), _valid(maps)
    else:
        entry_B = _shared_entries(map_N, keys_N, map_of_B, key_B)
        held_B = _valid(maps)[map_of_B]
    # A null map may still own hidden pairs.
    found_B = items_N.take(pa.array(entry_B, mask=(entry_B < 0) | ~held_B))
    return number_of(found_B, item.column, source.where)


def _entries(map_N: NDArray[np.int64], keys_N: pa.Array, key_B: pa.Array) -> NDArray[np.int64]:
    """The pair of each row's key in the row's own map, -1 for none: all pairs are compared once."""
    same_N = pc.equal(keys_N, key_B.take(pa.array(map_N))).fill_null(False)
    match_N = np.flatnonzero(same_N.to_numpy(zero_copy_only=False))
    entry_B = np.full(len(key_B), -1, np.int64)
    # Of repeated keys the last one counts: the assignment ends with it.
    entry_B[map_N[match_N]] = match_N
    return entry_B


def _shared_entries(
    map_N: NDArray[np.int64], keys_N: pa.Array, map_of_B: NDArray[np.int64], key_B: pa.Array
) -> NDArray[np.int64]:
    """The pair of each row's key in the map that the row names, -1 for none: no map is gone through once a row."""
    coded = pc.dictionary_encode(pa.concat_arrays([keys_N, key_B]))
    code = coded.indices.fill_null(0).to_numpy()
    # One number names a map and a key in it.
    width = max(len(coded.dictionary), 1)
    pair_N = map_N * width + code[: len(keys_N)]
    pair_B = pa.array(map_of_B * width + code[len(keys_N) :], mask=~_valid(key_B))
    # The first of equals is found, and of repeated keys the last one counts.
    backwards_B = pc.index_in(pair_B, pa.array(pair_N[::-1]))
    entry_B: NDArray[np.int64] = len(keys_N) - 1 - backwards_B.fill_null(len(keys_N)).to_numpy()
    return entry_B


def _overlap(item: OverlapFeature, source: Source) -> NDArray[np.float64]:
    columns = [source.column(name) for name in item.columns]
    rows = source.raw.num_rows
    (first_row_N, first_ids), (second_row_N, second_ids) = (_flat_ids(part) for part in columns)
    coded = pc.dictionary_encode(pa.concat_arrays([first_ids, second_ids]))
    # One number names a row and an id in it.
    width = max(len(coded.dictionary), 1)
    row_N = np.concatenate([first_row_N, second_row_N])
    pair_N = row_N * width + coded.indices.fill_null(0).to_numpy()
    present_N, in_first_N = _valid(coded.indices), np.arange(len(pair_N)) < len(first_row_N)
    first, second = (np.unique(pair_N[present_N & part_N]) for part_N in (in_first_N, ~in_first_N))
    common = np.intersect1d(first, second, assume_unique=True)
    first_B, second_B, common_B = (
        np.bincount(pairs // width, minlength=rows).astype(np.float64)
        for pairs in (first, second, common)
    )
    whole_B = {
        "count": np.ones(rows),
        "share": first_B,
        "jaccard": first_B + second_B - common_B,
    }[item.measure]
    known_B = _valid(columns[0]) & _valid(columns[1]) & (whole_B > 0)
    measured_B: NDArray[np.float64] = np.full(rows, np.nan)
    measured_B[known_B] = common_B[known_B] / whole_B[known_B]
    return measured_B


def _flat_ids(column: pa.Array) -> tuple[NDArray[np.int64], pa.Array]:
    """The row of each id and the ids, of a list column or of single ids."""
    if pa.types.is_list(column.type):
        offsets, ids_N = flat_list(column)
        return np.repeat(np.arange(len(column)), np.diff(offsets)), ids_N
    whole = column if pa.types.is_string(column.type) else column.cast(pa.int64())
    return np.arange(len(column)), whole


def vector(item: VectorFeature, source: Source) -> NDArray[np.float64]:
    """Vectors [B, D], of length 1 if asked; zeros for null and for what has no length."""
    column = source.column(item.column)
    where = f"{source.where}, column {item.column!r}"
    offsets, flat = flat_list(column)
    present_B, lengths_B = _valid(column), np.diff(offsets)
    wrong = np.flatnonzero(present_B & (lengths_B != item.dim))
    if len(wrong):
        raise DataError(
            f"{where}: {lengths_B[wrong[0]]} numbers, the vector has {item.dim}; change dim or the row",
            row=int(wrong[0]),
        )
    numbers_N: NDArray[np.float64] = flat.to_numpy(zero_copy_only=False).astype(np.float64)
    wrong = np.flatnonzero(~np.isfinite(numbers_N))
    if len(wrong):
        found = flat[int(wrong[0])].as_py()
        raise DataError(
            f"{where}: {'null' if found is None else found} inside a vector; write null for the whole vector",
            row=_row_of(offsets, int(wrong[0])),
        )
    vectors_BD = np.zeros((len(column), item.dim))
    vectors_BD[present_B] = numbers_N.reshape(-1, item.dim)
    if item.normalize == "l2":
        length_B1 = np.sqrt(np.square(vectors_BD).sum(axis=1, keepdims=True))
        vectors_BD /= np.where(length_B1 > 0, length_B1, 1.0)
    return vectors_BD


def _valid(column: pa.Array) -> NDArray[np.bool_]:
    valid_B: NDArray[np.bool_] = column.is_valid().to_numpy(zero_copy_only=False)
    return valid_B


def _row_of(offsets: NDArray[np.int64], index: int) -> int:
    """The row that holds a flat value."""
    return int(np.searchsorted(offsets, index, side="right")) - 1
