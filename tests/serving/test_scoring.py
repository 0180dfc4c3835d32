"""What `recsys score` shows of the file that it wrote."""

from pathlib import Path

from serving.scoring import ScoredFile

KEYS = ("user_id", "item_id", "shown_at", "impression_id", "country", "oracle_click")
SCORES = ("score", "raw:click", "p:click", "value:watch")


def test_the_table_shows_keys_and_what_is_served_and_says_how_much_more_there_is() -> None:
    row = dict.fromkeys(KEYS, "x") | dict.fromkeys(SCORES, 0.5) | {"value:watch": None}
    header, first, more, closing = (
        ScoredFile(Path("s.parquet"), 1200, KEYS + SCORES, (row,)).render().splitlines()
    )
    assert header.split() == [*KEYS[:4], "score", "p:click", "value:watch"]
    assert first.split() == ["x", "x", "x", "x", "0.500000", "0.500000", "null"]
    assert more == "... 1,199 more"
    assert closing == "scores of 1,200 rows in 10 columns: s.parquet"
