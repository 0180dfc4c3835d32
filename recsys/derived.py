"""What each kind of feature makes of raw columns, before its encoding: ids, bags of ids, numbers, vectors.

Fitting counts and measures these same values, so a kind is written down here once. Nothing here is fitted.
Axes: **B** rows, **N** values of all rows, **D** numbers of a vector.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

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
        values, index_B = self.repeated(name)
        return values if index_B is None else values.take(pa.array(index_B))

    def repeated(self, name: str) -> tuple[pa.Array, NDArray[np.int64] | None]:
        """The values of a dictionary array and which of them each row has; of another column None, one a row."""
        if not self._is_dictionary(name):
            return column_of(self.raw, name, self.schema, self.where), None
        coded = one_array(self.raw.column(name))
        if coded.indices.null_count:
            coded = coded.dictionary_decode().dictionary_encode(null_encoding="encode")
        values = column_of(pa.table({name: coded.dictionary}), name, self.schema, self.where)
        return values, _int64(coded.indices)

    def once(self, names: Iterable[str]) -> tuple["Source", NDArray[np.int64]] | None:
        """Each of the columns' values once and which of them each row has; None unless all repeat alike."""
        if not all(map(self._is_dictionary, names)):
            return None
        values: dict[str, pa.Array] = {}
        indices: list[NDArray[np.int64]] = []
        for name in names:
            values[name], index_B = self.repeated(name)
            assert index_B is not None
            indices.append(index_B)
        if not all(np.array_equal(indices[0], other_B) for other_B in indices[1:]):
            return None
        return replace(self, raw=pa.table(values)), indices[0]

    def _is_dictionary(self, name: str) -> bool:
        place = self.raw.schema.get_field_index(name)
        return place >= 0 and bool(pa.types.is_dictionary(self.raw.schema.field(place).type))

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
    present, hashes = zip(*(_hashed(source, name) for name in item.columns), strict=True)
    crossed_B = combined(hashes).view(np.int64)
    return pa.array(crossed_B, mask=~np.logical_and.reduce(present))


def _hashed(source: Source, name: str) -> tuple[NDArray[np.bool_], NDArray[np.uint64]]:
    """Whether each row has a value in a column, and its hash; each repeated value is hashed once."""
    values, index_B = source.repeated(name)
    present = _valid(values)
    hashes = np.zeros(len(values), np.uint64)
    hashes[present] = hash_ids(values.drop_null())
    return (present, hashes) if index_B is None else (present[index_B], hashes[index_B])


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
    keys, key_of_B = source.repeated(item.key)
    # A map is a list of pairs, whose keys and items ignore a slice of it.
    offsets = maps.offsets.to_numpy()
    begin, count = int(offsets[0]), int(offsets[-1] - offsets[0])
    items_N = maps.items.slice(begin, count)
    map_N = np.repeat(np.arange(len(maps)), np.diff(offsets))
    code_N, code = _coded(maps.keys.slice(begin, count), keys)
    code_B = code if key_of_B is None else code[key_of_B]
    if map_of_B is None:
        entry_B, held_B = _entries(map_N, code_N, code_B), _valid(maps)
    else:
        entry_B = _shared_entries(map_N, code_N, map_of_B, code_B)
        held_B = _valid(maps)[map_of_B]
    # A null map may still own hidden pairs.
    found_B = items_N.take(pa.array(entry_B, mask=(entry_B < 0) | ~held_B))
    return number_of(found_B, item.column, source.where)


def _coded(first: pa.Array, second: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ids of two arrays as numbers from 0, equal for equal ids; -1 for null."""
    both = [
        ids.cast(pa.int64())
        if pa.types.is_boolean(ids.type) or pa.types.is_integer(ids.type)
        else ids
        for ids in (first, second)
    ]
    codes = _int64(pc.dictionary_encode(pa.concat_arrays(both)).indices.fill_null(-1))
    return codes[: len(first)], codes[len(first) :]


def _entries(
    map_N: NDArray[np.int64], code_N: NDArray[np.int64], code_B: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The pair of each row's key in the row's own map, -1 for none: all pairs are compared once."""
    match_N = np.flatnonzero(code_N == code_B[map_N])
    entry_B = np.full(len(code_B), -1, np.int64)
    # Of repeated keys the last one counts: the assignment ends with it.
    entry_B[map_N[match_N]] = match_N
    return entry_B


def _shared_entries(
    map_N: NDArray[np.int64],
    code_N: NDArray[np.int64],
    map_of_B: NDArray[np.int64],
    code_B: NDArray[np.int64],
) -> NDArray[np.int64]:
    """The pair of each row's key in the map that the row names, -1 for none: no map is gone through once a row."""
    # One number names a map and a key in it.
    width = 1 + max(code_N.max(initial=0), code_B.max(initial=0))
    pair_N, pair_B = map_N * width + code_N, map_of_B * width + code_B
    # The first of equals is found, and of repeated keys the last one counts.
    backwards_B = pc.index_in(pa.array(pair_B, mask=code_B < 0), pa.array(pair_N[::-1]))
    entry_B: NDArray[np.int64] = len(code_N) - 1 - backwards_B.fill_null(len(code_N)).to_numpy()
    return entry_B


def _overlap(item: OverlapFeature, source: Source) -> NDArray[np.float64]:
    first, first_of_B = source.repeated(item.columns[0])
    second, second_of_B = source.repeated(item.columns[1])
    if first_of_B is not None and second_of_B is not None:
        second, second_of_B = source.column(item.columns[1]), None
    (first_row_N, first_ids), (second_row_N, second_ids) = _flat_ids(first), _flat_ids(second)
    first_code_N, second_code_N = _coded(first_ids, second_ids)
    # One number names a set and an id in it.
    width = 1 + int(max(first_code_N.max(initial=0), second_code_N.max(initial=0)))
    first_pairs = np.unique((first_row_N * width + first_code_N)[first_code_N >= 0])
    second_pairs = np.unique((second_row_N * width + second_code_N)[second_code_N >= 0])
    first_sizes = np.bincount(first_pairs // width, minlength=len(first))
    second_sizes = np.bincount(second_pairs // width, minlength=len(second))
    rows_B = np.arange(source.raw.num_rows)
    if second_of_B is None:
        first_of_B, second_of_B = rows_B if first_of_B is None else first_of_B, rows_B
        common_B = _common(second_pairs, first_pairs, first_of_B, width)
    else:
        first_of_B = rows_B
        common_B = _common(first_pairs, second_pairs, second_of_B, width)
    first_B, second_B = first_sizes[first_of_B], second_sizes[second_of_B]
    whole_B = {
        "count": np.ones(len(rows_B)),
        "share": first_B,
        "jaccard": first_B + second_B - common_B,
    }[item.measure]
    known_B = _valid(first)[first_of_B] & _valid(second)[second_of_B] & (whole_B > 0)
    measured_B: NDArray[np.float64] = np.full(len(rows_B), np.nan)
    measured_B[known_B] = common_B[known_B] / whole_B[known_B]
    return measured_B


def _common(
    pairs: NDArray[np.int64], others: NDArray[np.int64], other_of_B: NDArray[np.int64], width: int
) -> NDArray[np.int64]:
    """How many ids of each row's set are in the other set that the row names."""
    row = pairs // width
    in_both = np.isin(other_of_B[row] * width + pairs % width, others)
    common_B: NDArray[np.int64] = np.bincount(row[in_both], minlength=len(other_of_B))
    return common_B


def _flat_ids(column: pa.Array) -> tuple[NDArray[np.int64], pa.Array]:
    """The row of each id and the ids, of a list column or of single ids."""
    if pa.types.is_list(column.type):
        offsets, ids_N = flat_list(column)
        return np.repeat(np.arange(len(column)), np.diff(offsets)), ids_N
    return np.arange(len(column)), column


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


def _int64(integers: pa.Array) -> NDArray[np.int64]:
    found: NDArray[np.int64] = integers.to_numpy().astype(np.int64)
    return found


def _row_of(offsets: NDArray[np.int64], index: int) -> int:
    """The row that holds a flat value."""
    return int(np.searchsorted(offsets, index, side="right")) - 1
