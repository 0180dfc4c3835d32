"""What the optimizer of tables remembers, read where training reads it: in the parts that this process holds."""

from torch import Tensor

from recsys.models.embeddings.lookup import Embeddings
from recsys.ranks import world_size


def optimizer_state(embeddings: Embeddings) -> dict[str, Tensor]:
    """Views of the state of whole tables, by `Quantity.key`."""
    assert world_size() == 1, "a rank holds parts of the tables"
    return {
        item.key(part.table): part.state[item.name]
        for part in embeddings.tables.parts()
        for item in embeddings.quantities
    }
