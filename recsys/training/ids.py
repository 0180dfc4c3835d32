"""The id maps that a training reads its days by.

They are made once, before the first step: each training day is one update, in order, and then the maps stay as they
are until the training ends. A resumed training takes those of its checkpoint, and a warm start begins with its
parent's. So a map is a function of these and of the builds of the days, whatever the order in which rows are shuffled,
however many ranks share them, wherever a run was stopped.

Maps that TorchRec keeps begin as the parent's too, or empty; the steps change them (`recsys.training.managed_ids`).
"""

from collections.abc import Mapping, Sequence

from recsys.admission import Taken
from recsys.days import Days
from recsys.id_days import take_in
from recsys.idmap import ID_MAPS, IdMap, empty_id_maps, read_id_maps
from recsys.publish import Published
from recsys.run import RunDirectory
from recsys.training.journal import Record
from recsys.training.warm_start import parent_id_maps


def id_maps_of(
    run: RunDirectory, days: Days, checkpoint: Published | None
) -> tuple[Mapping[str, IdMap], tuple[Taken, ...]]:
    """The maps of a checkpoint or, without one, those after the training days and what each day did to them.

    They begin with those of the run's parent. Raises ArtifactError when that is gone or damaged.
    """
    if checkpoint is not None:
        return read_id_maps(checkpoint.path / ID_MAPS, days.schema), ()
    begun = empty_id_maps(days.schema) | parent_id_maps(run)
    by_steps = {name: begun.pop(name).admitted for name in days.schema.managed}
    by_days, taken = take_in(days, begun)
    return by_days | by_steps, taken


def id_records(taken: Sequence[Taken], *, step: int) -> list[Record]:
    """A journal record a day taken in before a step: its counts by table."""
    return [
        {
            "kind": "ids",
            "step": step,
            "day": day,
            "tables": {item.table: item.counts for item in taken if item.day == day},
        }
        for day in dict.fromkeys(item.day for item in taken)
    ]
