"""Days that go into the id maps of unbounded tables, one update a day, in the order in which they are named."""

import logging
from collections.abc import Mapping

from recsys.admission import Taken, Update, id_families
from recsys.days import Build, Days
from recsys.idmap import IdMap, hashes_of
from recsys.layout import slots

logger = logging.getLogger(__name__)


def take_in(days: Days, maps: Mapping[str, IdMap]) -> tuple[dict[str, IdMap], tuple[Taken, ...]]:
    """The maps after these days, and what every day did to each; a named split counts as one day.

    Reads the columns of unbounded tables once. Memory is bounded by the tables and one row group. Raises DataError
    naming the file when one cannot be read.
    """
    after, taken = dict(maps), list[Taken]()
    if not days.schema.unbounded:
        return after, ()
    for build in days.builds:
        for found_map, found in _take_in_day(days, build, after):
            after[found.table] = found_map
            taken.append(found)
            told = " ".join(f"{name}={count:.10g}" for name, count in found.counts.items())
            logger.info("ids table=%s day=%s %s", found.table, found.day, told)
    return after, tuple(taken)


def _take_in_day(days: Days, build: Build, maps: Mapping[str, IdMap]) -> list[tuple[IdMap, Taken]]:
    schema = days.schema
    updates = {name: Update(maps[name], schema.tables[name]) for name in schema.unbounded}
    columns = {slot.name: slot.table for slot in slots(schema) if slot.table in updates}
    for group in days.groups_of(build):
        rows = days.hashed((group,), list(columns))
        for column, table in columns.items():
            updates[table].add(hashes_of(rows.column(column)))
    families = id_families(schema)
    return [
        update.finish(table=name, day=build.day, family=families[name])
        for name, update in updates.items()
    ]
