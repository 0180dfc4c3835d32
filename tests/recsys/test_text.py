"""n-grams of texts: what a word is, which n-grams are kept and in which order, and that they never cross texts."""

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.features import TextFeature
from recsys.hashing import combined, xxh3
from recsys.text import ngrams


def feature(**change: object) -> TextFeature:
    return TextFeature.model_validate({"kind": "text", "table": "word"} | change)


def hashes(units: list[str]) -> list[int]:
    """The id of an n-gram of these units."""
    return int(combined([xxh3(pa.array([unit])) for unit in units]).view(np.int64)[0])


def bags(texts: list[str | None], item: TextFeature) -> list[list[int]]:
    offsets, ids = ngrams(pa.array(texts, pa.string()), item)
    return [list(map(int, ids[begin:end])) for begin, end in pairwise(offsets)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Red shoes, size 42!", ["red", "shoes", "size", "42"]),
        ("rock'n'roll b-side", ["rock", "n", "roll", "b", "side"]),
        ("ÜBER größe", ["über", "größe"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("日本 語", ["日本", "語"]),
        ("snake_case 3.5", ["snake", "case", "3", "5"]),
        ("  ", []),
        ("", []),
        ("🙂 ok 🙂", ["ok"]),
    ],
)
def test_words_are_runs_of_letters_marks_and_digits(text: str, words: list[str]) -> None:
    assert bags([text], feature(ngrams=(1,))) == [[hashes([word]) for word in words]]


def test_ngrams_stand_where_they_begin_shortest_first_and_duplicates_stay() -> None:
    assert bags(["a b a b"], feature(ngrams=(1, 3))) == [
        [
            hashes(["a"]),
            hashes(["a", "b", "a"]),
            hashes(["b"]),
            hashes(["b", "a", "b"]),
            hashes(["a"]),
            hashes(["b"]),
        ]
    ]


def test_the_first_max_ids_are_kept() -> None:
    whole = bags(["a b c d e", "x y", None, "z"], feature())

    assert [len(ids) for ids in whole] == [9, 3, 0, 1]
    for most in range(1, 10):
        found = bags(["a b c d e", "x y", None, "z"], feature(max_ids=most))
        assert found == [ids[:most] for ids in whole]
    assert bags(["a b c"], feature(ngrams=(3,), max_ids=1)) == [[hashes(["a", "b", "c"])]]


def test_no_ngram_spans_two_texts() -> None:
    assert bags(["a b", "c d"], feature(ngrams=(2,))) == [
        [hashes(["a", "b"])],
        [hashes(["c", "d"])],
    ]
    assert bags(["a", "b"], feature(ngrams=(2,))) == [[], []]


def test_order_of_words_matters_and_case_only_if_asked() -> None:
    assert hashes(["a", "b"]) != hashes(["b", "a"])
    assert bags(["Ab"], feature()) == bags(["aB"], feature())
    assert bags(["Ab"], feature(lowercase=False)) != bags(["aB"], feature(lowercase=False))


def test_characters_are_those_of_the_words_with_one_space_between() -> None:
    item = feature(unit="character", ngrams=(2,))

    assert bags(["¡é -b!"], item) == [[hashes(["é", " "]), hashes([" ", "b"])]]
    assert bags(["é b"], item) == bags(["¡é -b!"], item)


def test_an_id_is_the_xxh3_hash_of_the_word() -> None:
    (found,) = bags(["größe"], feature(ngrams=(1,)))

    assert found[0] % 2**64 == xxhash.xxh3_64_intdigest("größe".encode())


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.none() | st.text(max_size=12), min_size=1, max_size=6),
    unit=st.sampled_from(["word", "character"]),
)
def test_a_text_alone_has_the_ngrams_it_has_in_any_batch(
    texts: list[str | None], unit: str
) -> None:
    item = feature(unit=unit, ngrams=(1, 2, 3), max_ids=9)

    assert bags(texts, item) == [bag for text in texts for bag in bags([text], item)]
