"""Seeded 64-bit hashes of ids: the same value for the same id in every process, machine and release.

Integers go through splitmix64 (Steele, Lea and Flood, OOPSLA 2014, the finaliser of SplittableRandom), strings through
XXH3 of their UTF-8 bytes. Trained tables depend on every bit of this file; golden vectors in the tests pin it.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray

_GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = np.uint64(0x94D049BB133111EB)


def splitmix64(values_N: NDArray[np.int64], seed: int = 0) -> NDArray[np.uint64]:
    """64-bit hashes of int64 values: splitmix64's output for state `value + seed * gamma`."""
    with np.errstate(over="ignore"):
        state_N = values_N.astype(np.uint64) + (np.uint64(seed) + np.uint64(1)) * _GOLDEN_GAMMA
        state_N = (state_N ^ (state_N >> np.uint64(30))) * _MULTIPLIER_1
        state_N = (state_N ^ (state_N >> np.uint64(27))) * _MULTIPLIER_2
        mixed_N: NDArray[np.uint64] = state_N ^ (state_N >> np.uint64(31))
    return mixed_N


def xxh3(values_N: pa.Array, seed: int = 0) -> NDArray[np.uint64]:
    """64-bit hashes of a string array without nulls. Each distinct string is hashed once."""
    encoded = pc.dictionary_encode(values_N.cast(pa.binary()))
    hash_of_distinct = np.fromiter(
        (xxhash.xxh3_64_intdigest(value, seed) for value in encoded.dictionary.to_pylist()),
        dtype=np.uint64,
        count=len(encoded.dictionary),
    )
    hashes_N: NDArray[np.uint64] = hash_of_distinct[encoded.indices.to_numpy(zero_copy_only=False)]
    return hashes_N


def combined(hashes: Sequence[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    """One 64-bit hash of several, element by element; their order counts. The hash of one is itself.

    Each further hash h makes `splitmix64(so_far * gamma xor h)`: a bijection of either, so no bit is lost.
    """
    combined_N, *others = hashes
    for hashes_N in others:
        combined_N = splitmix64(((combined_N * _GOLDEN_GAMMA) ^ hashes_N).view(np.int64))
    return combined_N


def hash_ids(values_N: pa.Array, seed: int = 0) -> NDArray[np.uint64]:
    """64-bit hashes of an array of strings, integers or booleans without nulls."""
    if pa.types.is_string(values_N.type):
        return xxh3(values_N, seed)
    return splitmix64(values_N.cast(pa.int64()).to_numpy(zero_copy_only=False), seed)
