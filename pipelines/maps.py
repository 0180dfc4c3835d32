"""Maps of numbers: from Arrow maps, lists of pairs, structs, and text such as `action:0.7|drama:0.3`."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.scalars import other_family, plain, scalars
from recsys.schema import dtype_name


@dataclass(frozen=True)
class _Entries:
    """Keys and items of all rows, row by row; `lengths_B` counts those of each row, `missing_B` marks null rows."""

    keys: pa.Array
    items: pa.Array
    lengths_B: pa.Array
    missing_B: pa.Array

    def to_map(self) -> pa.MapArray:
        offsets = pa.concat_arrays(
            [pa.array([0], pa.int32()), pc.cumulative_sum(self.lengths_B.cast(pa.int32()))]
        )
        self._require_distinct_keys()
        return pa.MapArray.from_arrays(offsets, self.keys, self.items, mask=self.missing_B)

    def _require_distinct_keys(self) -> None:
        if self.keys.null_count:
            raise pa.ArrowInvalid("a key is null")
        codes_N = self.keys.dictionary_encode().indices.to_numpy(zero_copy_only=False)
        rows_N = np.repeat(np.arange(len(self.lengths_B)), self.lengths_B.to_numpy())
        pairs_N = rows_N * (codes_N.max(initial=0) + np.int64(1)) + codes_N
        if len(np.unique(pairs_N)) < len(pairs_N):
            raise pa.ArrowInvalid("a key occurs twice in one map")


def convert_map(values: pa.Array, target: pa.MapType) -> pa.MapArray:
    """Typed values as a map: of Arrow maps, lists of pairs, or structs, whose fields are keys unless they are null.

    Raises DataError for another family, and pa.ArrowInvalid where a value does not fit or a key occurs twice.
    """
    if pa.types.is_struct(values.type):
        found = _of_struct(values, target)
    elif pa.types.is_map(values.type) or _is_list_of_pairs(values.type):
        found = _of_pairs(values)
    else:
        raise other_family(
            values.type, f"map<{dtype_name(target.key_type)},{dtype_name(target.item_type)}>"
        )
    keys = scalars(plain(found.keys), target.key_type)
    items = scalars(plain(found.items), target.item_type)
    return _Entries(keys, items, found.lengths_B, found.missing_B).to_map()


def parse_map(
    text: pa.Array, target: pa.MapType, *, separator: str, map_separator: str
) -> pa.MapArray:
    """Text as a map: entries split at `separator`, each at its last `map_separator`. An empty text is an empty map.

    Raises pa.ArrowInvalid where an entry is no key with a number, or a key occurs twice.
    """
    filled = text.fill_null("")
    entries = pc.split_pattern(filled, separator)
    lengths_B = pc.if_else(pc.equal(filled, ""), 0, entries.value_lengths())
    pairs = pc.split_pattern(
        _flat(entries, pc.equal(filled, "")), map_separator, max_splits=1, reverse=True
    )
    if not pc.all(pc.equal(pairs.value_lengths(), 2), min_count=0).as_py():
        raise pa.ArrowInvalid(f"an entry without {map_separator!r}")
    keys, items = pc.list_element(pairs, 0), pc.list_element(pairs, 1)
    # The key of "a:1| b:2" is "b".
    keys = pc.utf8_trim_whitespace(keys).cast(target.key_type)
    items = pc.utf8_trim_whitespace(items).cast(target.item_type)
    return _Entries(keys, items, lengths_B, text.is_null()).to_map()


def _flat(entries: pa.ListArray, is_empty: pa.Array) -> pa.Array:
    return entries.filter(pc.invert(is_empty)).flatten()


def _is_list_of_pairs(found: pa.DataType) -> bool:
    return bool(
        (pa.types.is_list(found) or pa.types.is_large_list(found))
        and pa.types.is_struct(found.value_type)
        and found.value_type.num_fields == 2
    )


def _of_pairs(values: pa.Array) -> _Entries:
    # Rebuilt, so that offsets start at 0 and a null row owns nothing.
    values = values.take(pa.array(np.arange(len(values))))
    lengths_B = pa.array(np.diff(values.offsets.to_numpy()))
    if pa.types.is_map(values.type):
        return _Entries(values.keys, values.items, lengths_B, values.is_null())
    names = [field.name for field in values.type.value_type]
    fields = dict(zip(names, values.flatten().flatten(), strict=True))
    key, item = ("key", "value") if set(names) == {"key", "value"} else names
    return _Entries(fields[key], fields[item], lengths_B, values.is_null())


def _of_struct(values: pa.StructArray, target: pa.MapType) -> _Entries:
    names = pa.array([field.name for field in values.type], pa.string())
    columns = [scalars(plain(column), target.item_type) for column in values.flatten()]
    present_FB = np.stack([column.is_valid().to_numpy(zero_copy_only=False) for column in columns])
    row_N, field_N = np.nonzero(present_FB.T)
    items = pa.concat_arrays(columns).take(pa.array(field_N * len(values) + row_N))
    lengths_B = pa.array(present_FB.sum(axis=0))
    # The names of fields are always text.
    keys = names.take(pa.array(field_N)).cast(target.key_type)
    return _Entries(keys, items, lengths_B, values.is_null())
