"""Hashed n-grams of texts.

A text is its runs of letters, marks and digits (Unicode categories L, M and N), parted by single spaces. Its units
are those words, or the characters of that. An n-gram is n adjacent units of one text; its id is the combined XXH3 hash
of their UTF-8 bytes. At each unit stand the n-grams that begin there, shortest first.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recsys.features import TextFeature
from recsys.hashing import combined, xxh3
from recsys.raw import flat_list

_BETWEEN_WORDS = r"[^\pL\pM\pN]+"


def ngrams(texts_B: pa.Array, item: TextFeature) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Offsets [B + 1] and ids of the n-grams of each text, at most `max_ids`; a null text has none."""
    plain_B = texts_B.fill_null("")
    if item.lowercase:
        plain_B = pc.utf8_lower(plain_B)
    plain_B = pc.utf8_trim(pc.replace_substring_regex(plain_B, _BETWEEN_WORDS, " "), " ")
    lengths_B, units_N = _words(plain_B) if item.unit == "word" else _characters(plain_B)
    # Units further on begin no n-gram that is kept.
    lengths_B, index_N = _first(lengths_B, item.max_ids + item.ngrams[-1] - 1)
    hashes_N = xxh3(units_N.take(pa.array(index_N)))
    left_N = np.repeat(np.cumsum(lengths_B), lengths_B) - np.arange(len(hashes_N))
    begins = [np.flatnonzero(left_N >= length) for length in item.ngrams]
    ids = [
        combined([hashes_N[begin_M + i] for i in range(length)])
        for length, begin_M in zip(item.ngrams, begins, strict=True)
    ]
    begin_N = np.concatenate(begins)
    order_N = np.argsort(begin_N, kind="stable")
    row_N = np.repeat(np.arange(len(lengths_B)), lengths_B)[begin_N]
    kept_B, index_N = _first(np.bincount(row_N, minlength=len(lengths_B)), item.max_ids)
    ids_N: NDArray[np.int64] = np.concatenate(ids).view(np.int64)[order_N][index_N]
    return np.concatenate([[0], np.cumsum(kept_B)]), ids_N


def _words(plain_B: pa.StringArray) -> tuple[NDArray[np.int64], pa.Array]:
    offsets, words_N = flat_list(pc.split_pattern(plain_B, " "))
    # An empty text splits into one empty word.
    filled_B = pc.not_equal(plain_B, "").to_numpy(zero_copy_only=False)
    return np.diff(offsets) * filled_B, words_N.filter(pc.not_equal(words_N, ""))


def _characters(plain_B: pa.StringArray) -> tuple[NDArray[np.int64], pa.Array]:
    """The characters of texts without nulls, cut where a byte begins one in UTF-8."""
    plain_B = pa.concat_arrays(
        [plain_B, pa.array([""])]
    )  # a buffer of its own, whose offsets begin at 0
    _, offset_buffer, data = plain_B.buffers()
    offsets = np.frombuffer(offset_buffer, np.int32)[: len(plain_B)]
    bytes_N = np.frombuffer(data or b"", np.uint8)[: offsets[-1]]
    begins_N = np.flatnonzero((bytes_N & 0xC0) != 0x80)
    lengths_B = np.diff(np.searchsorted(begins_N, offsets))
    cuts = pa.py_buffer(np.append(begins_N, offsets[-1]).astype(np.int32))
    return lengths_B, pa.StringArray.from_buffers(len(begins_N), cuts, data)


def _first(lengths_B: NDArray[np.int64], most: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Lengths of lists cut to their first `most` values, and where these stand in the flat values."""
    kept_B = np.minimum(lengths_B, most)
    skipped_B = np.cumsum(lengths_B) - lengths_B - (np.cumsum(kept_B) - kept_B)
    return kept_B, np.arange(kept_B.sum()) + np.repeat(skipped_B, kept_B)
