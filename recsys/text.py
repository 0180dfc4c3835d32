"""Hashed n-grams of texts.

A text is its words, runs of letters, marks and digits (Unicode categories L, M and N), parted by single spaces. Its
units are those words, or the characters of that. An n-gram is n adjacent units of one text; its id is the combined
XXH3 hash of their UTF-8 bytes. At each unit stand the n-grams that begin there, shortest first.
Axes: **B** texts, **N** characters or units of all texts, **M** n-grams.
"""

import unicodedata

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recsys.features import TextFeature
from recsys.hashing import combined, xxh3

_SPACE = ord(" ")


def ngrams(texts_B: pa.Array, item: TextFeature) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Offsets [B + 1] and ids of the n-grams of each text, at most `max_ids`; a null text has none."""
    plain_B = texts_B.fill_null("")
    lengths_B, units_N = _units(pc.utf8_lower(plain_B) if item.lowercase else plain_B, item.unit)
    # Units further on begin no n-gram that is kept.
    lengths_B, index_N = _first(lengths_B, item.max_ids + item.ngrams[-1] - 1)
    hashes_N = xxh3(units_N.take(pa.array(index_N)))
    row_N = np.repeat(np.arange(len(lengths_B)), lengths_B)
    left_N = np.cumsum(lengths_B)[row_N] - np.arange(len(row_N))
    begins = [np.flatnonzero(left_N >= length) for length in item.ngrams]
    ids = [
        combined([hashes_N[begin_M + i] for i in range(length)])
        for length, begin_M in zip(item.ngrams, begins, strict=True)
    ]
    begin_M = np.concatenate(begins)
    order_M = np.argsort(begin_M, kind="stable")
    kept_B, index_M = _first(np.bincount(row_N[begin_M], minlength=len(lengths_B)), item.max_ids)
    ids_M: NDArray[np.int64] = np.concatenate(ids).view(np.int64)[order_M][index_M]
    return np.concatenate([[0], np.cumsum(kept_B)]), ids_M


def _units(plain_B: pa.StringArray, unit: str) -> tuple[NDArray[np.int64], pa.Array]:
    """How many units each text has, and the units of all texts."""
    row_N, code_N = _characters(plain_B)
    word_N = _in_word(code_N)
    same_text_N = np.append(False, row_N[1:] == row_N[:-1])
    after_word_N = np.append(False, word_N[:-1]) & same_text_N
    if unit == "word":
        kept_N, begins_N = word_N, word_N & ~after_word_N
    else:
        last_word_B = np.full(len(plain_B), -1, np.int64)
        last_word_B[row_N[word_N]] = np.flatnonzero(word_N)
        between_N = ~word_N & after_word_N & (np.arange(len(row_N)) < last_word_B[row_N])
        kept_N = begins_N = word_N | between_N
    lengths_B = np.bincount(row_N[begins_N], minlength=len(plain_B))
    return lengths_B, _strings(np.where(word_N, code_N, _SPACE)[kept_N], begins_N[kept_N])


def _characters(plain_B: pa.StringArray) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    """The text that holds each character, and its code point; texts without nulls."""
    joined = "".join(plain_B.to_pylist())
    code_N = np.frombuffer(joined.encode("utf-32-le"), np.uint32)
    lengths_B = pc.utf8_length(plain_B).to_numpy(zero_copy_only=False)
    return np.repeat(np.arange(len(plain_B)), lengths_B), code_N


def _in_word(code_N: NDArray[np.uint32]) -> NDArray[np.bool_]:
    distinct, index_N = np.unique(code_N, return_inverse=True)
    in_word: NDArray[np.bool_] = np.fromiter(
        (unicodedata.category(chr(code))[0] in "LMN" for code in distinct.tolist()),
        dtype=np.bool_,
        count=len(distinct),
    )
    return in_word[index_N]


def _strings(code_N: NDArray[np.uint32], begins_N: NDArray[np.bool_]) -> pa.StringArray:
    """The strings that characters make up, each from where one begins to where the next does."""
    data = code_N.astype(np.uint32).tobytes().decode("utf-32-le").encode("utf-8")
    bytes_N = np.frombuffer(data, np.uint8)
    # In UTF-8 every byte of a character but the first is 10xxxxxx.
    start_N = np.flatnonzero((bytes_N & 0xC0) != 0x80)
    offsets = np.append(start_N[begins_N], len(data)).astype(np.int32)
    return pa.StringArray.from_buffers(len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(data))


def _first(lengths_B: NDArray[np.int64], most: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Lengths of lists cut to their first `most` values, and where these stand in the flat values."""
    kept_B = np.minimum(lengths_B, most)
    skipped_B = np.cumsum(lengths_B) - lengths_B - (np.cumsum(kept_B) - kept_B)
    return kept_B, np.arange(kept_B.sum()) + np.repeat(skipped_B, kept_B)
