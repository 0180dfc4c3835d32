"""Days that go into the id maps of unbounded tables, one update a day, in the order in which they are named."""

import logging
from collections.abc import Mapping

from recsys.admission import Taken, Update, id_families
from recsys.day_names import is_date
from recsys.days import Build, Days
from recsys.idmap import IdMap, hashes_of
from recsys.layout import slots

logger = logging.getLogger(__name__)


def take_in(days: Days, maps: Mapping[str, IdMap]) -> tuple[dict[str, IdMap], tuple[Taken, ...]]:
    """These maps after these days, and what every day did to each; a named split counts as one day.

    Days up to the last one that a map has taken in before are not counted again; of splits, that one alone. Reads the
    columns of unbounded tables once. Memory is bounded by the tables and one row group. Raises DataError naming the
    file when one cannot be read.
    """
    after, taken = dict(maps), list[Taken]()
    if not maps:
        return after, ()
    for build in days.builds:
        going_on = {
            name: after[name] for name, before in maps.items() if not _holds(before, build.day)
        }
        for found_map, found in _take_in_day(days, build, going_on):
            after[found.table] = found_map
            taken.append(found)
            told = " ".join(f"{name}={count:.10g}" for name, count in found.counts.items())
            logger.info("ids table=%s day=%s %s", found.table, found.day, told)
    return after, tuple(taken)


def _take_in_day(days: Days, build: Build, maps: Mapping[str, IdMap]) -> list[tuple[IdMap, Taken]]:
    schema = days.schema
    updates = {name: Update(item, schema.tables[name]) for name, item in maps.items()}
    columns = {slot.name: slot.table for slot in slots(schema) if slot.table in updates}
    for group in days.groups_of(build) if updates else ():
        rows = days.hashed((group,), list(columns))
        for column, table in columns.items():
            updates[table].add(hashes_of(rows.column(column)))
    families = id_families(schema)
    return [
        update.finish(table=name, day=build.day, family=families[name])
        for name, update in updates.items()
    ]


def _holds(id_map: IdMap, day: str) -> bool:
    """Whether a map has taken a day in; a date before its last one counts as such."""
    last = id_map.last_day
    return day == last or (is_date(day) and is_date(last) and day < last)
