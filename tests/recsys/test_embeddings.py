"""Every embedding backend, TorchRec in both forms, against a dense table and row-wise Adagrad written out by hand."""

import tomllib
from collections.abc import Iterable
from dataclasses import replace
from itertools import permutations
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from recsys.batch import Batch, from_encoded
from recsys.errors import ArtifactError, ConfigError, DataError
from recsys.layout import slots
from recsys.models.embeddings.fused import RAGGED, one_stream
from recsys.models.embeddings.lookup import Embeddings, choose_backend, table_specs
from recsys.models.embeddings.pooling import pad, weighted_pool
from recsys.models.embeddings.tables import EmbeddingsConfig
from recsys.models.embeddings.updates import TableOptimizer
from recsys.models.inputs import Blocks
from recsys.schema import Schema
from tests.recsys.table_state import optimizer_state

TREE = tomllib.loads("""
[columns]
user_id = "string"
item_id = "int64"
other_id = "int64"
tags = "list<string>"
more_tags = "list<string>"
tag_weights = "list<float32>"
taste = "list<float32>"
price = "float32"
hour = "float32"
seen_item = "list<int64>"
seen_tag = "list<string>"
clicked = "bool"
[tables]
user = { rows = 30, dim = 4 }
item = { rows = 40, dim = 8 }
tag = { rows = 20, dim = 4 }
pure = { rows = 20, dim = 4 }
[features]
user_id = { kind = "categorical", table = "user", side = "user" }
price = { kind = "numeric" }
item_id = { kind = "categorical", table = "item" }
other_id = { kind = "categorical", table = "item" }
hour = { kind = "numeric", side = "context" }
tags = { kind = "multi_valued", table = "tag" }
more_tags = { kind = "multi_valued", table = "pure", pooling = "sum" }
same_tags = { kind = "multi_valued", column = "more_tags", table = "pure", side = "user" }
mean_tags = { kind = "multi_valued", column = "tags", weights = "tag_weights", table = "tag" }
sum_tags = { kind = "multi_valued", column = "tags", weights = "tag_weights", table = "tag", pooling = "sum" }
taste = { kind = "vector", dim = 3 }
[sequences.seen]
item = { table = "item" }
tag = { table = "tag" }
max_length = 5
target = { item = "item_id" }
[tasks]
click = { label = "clicked" }
""")
CANDIDATE_SLOTS = ("item_id", "other_id", "tags", "more_tags", "mean_tags", "sum_tags")
ROWS = 12
RATE = 0.1
# `vectors` is TorchRec's with the form that ragged tables have on GPUs.
BACKENDS = ("plain", "torchrec", "vectors")
each_backend = pytest.mark.parametrize("backend", BACKENDS)


@pytest.fixture(scope="module")
def schema() -> Schema:
    return Schema.parse(TREE, where="schema.toml")


def embeddings(schema: Schema, backend: str, **options: Any) -> Embeddings:
    return build(schema, backend, "rowwise_adagrad", **options)


def build(schema: Schema, backend: str, optimizer: TableOptimizer, **options: Any) -> Embeddings:
    """Tables on the CPU, of one of BACKENDS or `auto`."""
    form = {"cpu": "vectors"} if backend == "vectors" else {}
    named = "torchrec" if backend == "vectors" else backend
    config = EmbeddingsConfig.parse({"backend": named, **options}, where="test")
    with patch.dict(RAGGED, form):
        return Embeddings(schema, config, seed=0, device=torch.device("cpu"), optimizer=optimizer)


def random_batch(schema: Schema, seed: int, rows: int = ROWS, longest: int = 5) -> Batch:
    """Ids of few distinct values, so that rows repeat within and between slots; some bags and sequences are empty."""
    random = torch.Generator().manual_seed(seed)
    seen = torch.randint(0, longest + 1, (rows,), generator=random)
    lengths, values = [], []
    for slot in slots(schema):
        drawn = torch.randint(0, 4, (rows,), generator=random)
        length = {"single": torch.ones_like(drawn), "bag": drawn, "token": seen}[slot.kind]
        lengths.append(length.int())
        values.append(torch.randint(0, 9, (int(length.sum()),), generator=random))
    values_N = torch.cat(values)
    weights_N = torch.randint(0, 3, values_N.shape, generator=random) / 2
    return Batch(
        values_N=values_N,
        weights_N=weights_N,
        lengths_FB=torch.stack(lengths),
        dense_BD=torch.randn(rows, 5, generator=random),
        labels_BT=torch.zeros(rows, 1),
        observed_BT=torch.ones(rows, 1, dtype=torch.bool),
        weights_B=torch.ones(rows),
        groups_B=torch.zeros(rows, dtype=torch.long),
        row_key_B=torch.arange(rows),
    )


def naive_blocks(schema: Schema, tables: dict[str, Tensor], batch: Batch) -> Blocks:
    """The blocks by loops over rows and slots, differentiable in whole tables."""
    rows, start = batch.rows, 0
    vectors: dict[str, list[Tensor]] = {}
    for slot, lengths in zip(slots(schema), batch.lengths_FB.tolist(), strict=True):
        vectors[slot.name] = []
        for length in lengths:
            assert batch.weights_N is not None
            found = tables[slot.table][batch.values_N[start : start + length]]
            weights = batch.weights_N[start : start + length]
            start += length
            if slot.weighted:
                total = float(weights.sum()) if slot.pooling == "mean" else 1.0
                pooled = (found * weights[:, None]).sum(dim=0) / (total or 1.0)
            else:
                pooled = found.sum(dim=0)
                if slot.kind == "bag" and slot.pooling == "mean" and length:
                    pooled = pooled / length
            vectors[slot.name].append(found if slot.kind == "token" else pooled)
    price, hour, taste = batch.dense_BD.split([1, 1, 3], dim=1)  # type: ignore[no-untyped-call]
    events = [torch.cat([vectors["seen.item"][b], vectors["seen.tag"][b]], 1) for b in range(rows)]
    longest = max(1, *(len(item) for item in events))
    return Blocks(
        user_UI=torch.cat(
            [*(torch.stack(vectors[name]) for name in ("user_id", "same_tags")), hour], 1
        ),
        candidate_NI=torch.cat(
            [
                *(torch.stack(vectors[name]) for name in CANDIDATE_SLOTS),
                price,
                taste,
            ],
            1,
        ),
        tokens={
            "seen": torch.stack(
                [torch.cat([item, torch.zeros(longest - len(item), 12)]) for item in events]
            )
        },
        valid={"seen": torch.tensor([[l < len(item) for l in range(longest)] for item in events])},  # noqa: E741
    )


def some_loss(found: Blocks) -> Tensor:
    """A loss whose gradient differs in every entry of every block."""
    total = torch.zeros(())
    for block in (found.user_UI, found.candidate_NI, found.tokens["seen"]):
        weights = torch.linspace(-1, 1, block.numel()).view_as(block)
        total = total + (weights * block + 0.3 * block.square()).sum()
    return total


def train_by_hand(
    schema: Schema, tables: dict[str, Tensor], batches: list[Batch], *, epsilon: float, start: float
) -> dict[str, Tensor]:
    """Dense tables after row-wise Adagrad, one update a step from the whole dense gradient; tables change in place."""
    sums = {name: torch.full((len(table),), start) for name, table in tables.items()}
    for batch in batches:
        leaves = {name: table.clone().requires_grad_() for name, table in tables.items()}
        some_loss(naive_blocks(schema, leaves, batch)).backward()  # type: ignore[no-untyped-call]
        for name, leaf in leaves.items():
            assert leaf.grad is not None
            for row, gradient in enumerate(leaf.grad):
                sums[name][row] += gradient.square().mean()
                tables[name][row] -= RATE * gradient / (sums[name][row].sqrt() + epsilon)
    return sums


@each_backend
def test_blocks_are_those_of_a_loop_over_rows(schema: Schema, backend: str) -> None:
    module = embeddings(schema, backend, initial_deviation=1.0)
    tables = {name: table.clone() for name, table in module.table_weights().items()}
    for seed, rows, longest in ((0, ROWS, 5), (1, 1, 5), (2, 3, 0)):
        batch = random_batch(schema, seed, rows, longest)
        found, expected = module(batch), naive_blocks(schema, tables, batch)
        torch.testing.assert_close(found.user_UI, expected.user_UI)
        torch.testing.assert_close(found.candidate_NI, expected.candidate_NI)
        torch.testing.assert_close(found.tokens, expected.tokens)
        assert (found.valid["seen"] == expected.valid["seen"]).all()
        with torch.no_grad():
            torch.testing.assert_close(module(batch).tokens, expected.tokens)


def test_a_weighted_mean_is_a_sum_of_shares_and_zero_where_there_is_no_weight() -> None:
    rows = torch.tensor([[1.0, 2.0], [3.0, 6.0], [5.0, 5.0], [7.0, 7.0]], requires_grad=True)
    weights, lengths = torch.tensor([1.0, 3.0, 0.0, 3e38]), torch.tensor([2, 1, 0, 1])
    mean = weighted_pool(rows, weights, lengths_B=lengths, pooling="mean")
    assert mean.tolist() == [[2.5, 5.0], [0.0, 0.0], [0.0, 0.0], [7.0, 7.0]]
    mean.sum().backward()  # type: ignore[no-untyped-call]
    assert rows.grad is not None
    assert rows.grad[:, 0].tolist() == [0.25, 0.75, 0.0, 1.0]
    # A total beyond float32 is no reason for a mean that is not finite.
    huge = weighted_pool(
        rows[:2], torch.tensor([3e38, 3e38]), lengths_B=torch.tensor([2]), pooling="mean"
    )
    assert huge.tolist() == [[2.0, 4.0]]
    total = weighted_pool(
        rows, torch.tensor([1.0, 3.0, 0.0, 2.0]), lengths_B=lengths, pooling="sum"
    )
    assert total.tolist() == [[10.0, 20.0], [0.0, 0.0], [0.0, 0.0], [14.0, 14.0]]
    none = weighted_pool(rows[:0], weights[:0], lengths_B=torch.tensor([0, 0]), pooling="mean")
    assert none.tolist() == [[0.0, 0.0]] * 2


@each_backend
@pytest.mark.parametrize(("epsilon", "start"), [(1e-8, 0.0), (0.01, 0.5)])
def test_tables_train_like_dense_ones_with_one_update_a_step(
    schema: Schema, backend: str, epsilon: float, start: float
) -> None:
    module = embeddings(
        schema, backend, initial_deviation=0.5, epsilon=epsilon, initial_accumulator=start
    )
    expected = {name: table.clone() for name, table in module.table_weights().items()}
    batches = [random_batch(schema, seed) for seed in range(6)]
    module.set_learning_rate(RATE)
    for batch in batches:
        some_loss(module(batch)).backward()  # type: ignore[no-untyped-call]
    sums = train_by_hand(schema, expected, batches, epsilon=epsilon, start=start)
    for name, table in module.table_weights().items():
        torch.testing.assert_close(table, expected[name], rtol=1e-5, atol=2e-6)
        torch.testing.assert_close(optimizer_state(module)[name], sums[name], rtol=1e-5, atol=1e-6)


@each_backend
def test_a_batch_without_any_event_leaves_tables_of_events_alone(backend: str) -> None:
    """Tables that nothing but a sequence reads get no id at all; with other batches before and after."""
    seen = {"item": {"table": "seen_item"}, "tag": {"table": "seen_tag"}, "max_length": 5}
    tables = TREE["tables"] | {
        "seen_item": {"rows": 40, "dim": 8},
        "seen_tag": {"rows": 20, "dim": 4},
    }
    tree = TREE | {"tables": tables, "sequences": {"seen": seen}}
    schema = Schema.parse(tree, where="schema.toml")
    module = embeddings(schema, backend, initial_deviation=0.5)
    expected = {name: table.clone() for name, table in module.table_weights().items()}
    batches = [
        random_batch(schema, seed, longest=longest) for seed, longest in enumerate((5, 0, 5))
    ]
    module.set_learning_rate(RATE)
    for batch in batches:
        found = module(batch)
        assert found.valid["seen"].any() == bool(batch.lengths_FB[-1].any())
        some_loss(found).backward()  # type: ignore[no-untyped-call]
    train_by_hand(schema, expected, batches, epsilon=1e-8, start=0.0)
    for name, table in module.table_weights().items():
        torch.testing.assert_close(table, expected[name], rtol=1e-5, atol=2e-6)


def test_two_updates_a_step_would_be_noticed(schema: Schema) -> None:
    """Feature and sequence of one table as two steps: what looking the table up twice would do."""
    module = embeddings(schema, "plain", initial_deviation=0.5)
    before = {name: table.clone() for name, table in module.table_weights().items()}
    batch = random_batch(schema, 0)
    module.set_learning_rate(RATE)
    features, events = module(batch), module(batch)
    none = {"seen": torch.zeros_like(events.tokens["seen"])}
    some_loss(replace(features, tokens=none)).backward()  # type: ignore[no-untyped-call]
    zero = torch.zeros_like(events.candidate_NI)
    some_loss(replace(events, candidate_NI=zero, user_UI=events.user_UI * 0)).backward()  # type: ignore[no-untyped-call]
    train_by_hand(schema, before, [batch], epsilon=1e-8, start=0.0)
    assert (module.table_weights()["item"] - before["item"]).abs().max() > 1e-2


@each_backend
def test_a_step_changes_the_rows_it_read_and_no_other(schema: Schema, backend: str) -> None:
    module, batch = embeddings(schema, backend), random_batch(schema, 0)
    before = {name: table.clone() for name, table in module.table_weights().items()}
    some_loss(module(batch)).backward()  # type: ignore[no-untyped-call]
    start = 0
    read: dict[str, set[int]] = {name: set() for name in before}
    for slot, count in zip(slots(schema), batch.lengths_FB.sum(dim=1).tolist(), strict=True):
        read[slot.table] |= set(batch.values_N[start : start + count].tolist())
        start += count
    for name, table in module.table_weights().items():
        changed = (table != before[name]).any(dim=1).nonzero().flatten().tolist()
        assert set(changed) == read[name]
        assert set(optimizer_state(module)[name].nonzero().flatten().tolist()) == read[name]


@each_backend
def test_no_gradient_of_a_tables_size_exists(backend: str) -> None:
    rows = 50_003
    large = TREE | {"tables": {**TREE["tables"], "item": {"rows": rows, "dim": 8}}}
    schema = Schema.parse(large, where="schema.toml")
    module = embeddings(schema, backend)
    with Allocations([*module.table_weights().values(), *optimizer_state(module).values()]) as made:
        total = some_loss(module(random_batch(schema, 0)))
        total.backward()  # type: ignore[no-untyped-call]
    assert made.largest
    assert made.largest < rows
    assert all(item.grad is None for item in module.parameters())


def test_a_dense_gradient_would_be_noticed() -> None:
    table = torch.zeros(50_003, 8, requires_grad=True)
    with Allocations([table]) as made:
        table[torch.tensor([3])].sum().backward()  # type: ignore[no-untyped-call]
    assert made.largest == table.numel()


class Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the largest tensor, in elements, that any operation returns, backward pass included, tables aside."""

    def __init__(self, tables: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.largest = 0
        self._tables = {item.untyped_storage().data_ptr() for item in tables}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for item in tree_leaves(result):
            if isinstance(item, Tensor) and item.untyped_storage().data_ptr() not in self._tables:
                self.largest = max(self.largest, item.numel())
        return result


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 100])
def test_all_ids_of_a_table_are_one_stream_in_few_lengths(count: int) -> None:
    ids = torch.arange(count)
    stream = one_stream(ids)
    assert (stream.values() == ids).all()
    assert stream.lengths().sum() == count
    assert stream.lengths().max() <= 32
    assert stream.stride() == len(stream.lengths()) == count // 32 + 1


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_all_backends_begin_with_the_same_rows(schema: Schema, backend: str) -> None:
    plain, fused = (embeddings(schema, name).table_weights() for name in ("plain", backend))
    assert plain.keys() == fused.keys() == {"user", "item", "tag", "pure"}
    for name, table in plain.items():
        assert (table == fused[name]).all()
    assert (plain["tag"] != plain["pure"]).any(), "tables of one shape begin differently"


@pytest.mark.parametrize(("one", "other"), list(permutations(BACKENDS, 2)))
def test_a_checkpoint_of_one_backend_continues_in_another(
    schema: Schema, one: str, other: str
) -> None:
    first, second = embeddings(schema, one), embeddings(schema, other)
    for module in (first, second):
        module.set_learning_rate(RATE)
    some_loss(first(random_batch(schema, 0))).backward()  # type: ignore[no-untyped-call]
    second.load_table_weights({name: item.clone() for name, item in first.table_weights().items()})
    second.load_optimizer_state(
        {name: item.clone() for name, item in optimizer_state(first).items()}
    )
    for module in (first, second):
        some_loss(module(random_batch(schema, 1))).backward()  # type: ignore[no-untyped-call]
    for name, table in first.table_weights().items():
        torch.testing.assert_close(table, second.table_weights()[name], rtol=1e-5, atol=1e-6)


@each_backend
def test_the_learning_rate_counts_from_the_next_forward(schema: Schema, backend: str) -> None:
    module, batch = embeddings(schema, backend), random_batch(schema, 0)
    before = {name: table.clone() for name, table in module.table_weights().items()}
    module.set_learning_rate(0.0)
    some_loss(module(batch)).backward()  # type: ignore[no-untyped-call]
    assert all((table == before[name]).all() for name, table in module.table_weights().items())
    module.set_learning_rate(RATE)
    total = some_loss(module(batch))
    module.set_learning_rate(0.0)
    total.backward()  # type: ignore[no-untyped-call]
    moved = max(
        float((table - before[name]).abs().max()) for name, table in module.table_weights().items()
    )
    assert moved > RATE / 10


@each_backend
@pytest.mark.parametrize("wrong", [40, -1, 2**33])
@pytest.mark.parametrize("grad", [True, False])
def test_an_id_outside_its_table_raises_and_is_not_rewritten(
    schema: Schema, backend: str, wrong: int, grad: bool
) -> None:
    module, batch = embeddings(schema, backend), random_batch(schema, 0)
    batch.values_N[ROWS] = wrong
    with torch.set_grad_enabled(grad), pytest.raises(AssertionError, match="outside"):
        module(batch)
    assert batch.values_N[ROWS] == wrong


def test_encoded_rows_with_an_id_outside_its_table_are_refused_by_name() -> None:
    tree = {
        "columns": {"a": "int64", "y": "bool"},
        "tables": {"t": {"rows": 5, "dim": 4}},
        "features": {"a": {"kind": "categorical", "table": "t"}},
        "tasks": {"y": {"label": "y"}},
    }
    schema = Schema.parse(tree, where="schema.toml")
    for wrong in (5, -1):
        encoded = pa.table(
            {
                "a": pa.array([4, wrong], pa.int64()),
                "label:y": pa.array([0, 1], pa.float32()),
                "observed:y": [True, True],
                "weight": pa.array([1, 1], pa.float32()),
                "group": [0, 1],
                "row_key": [0, 1],
            }
        )
        with pytest.raises(DataError, match=f"slot 'a': id {wrong} is outside table 't' of 5 rows"):
            from_encoded(encoded, schema)
        assert from_encoded(encoded.slice(0, 1), schema).values_N.tolist() == [4]


def test_weights_of_other_tables_are_refused(schema: Schema) -> None:
    module = embeddings(schema, "plain")
    weights = module.table_weights()
    with pytest.raises(ArtifactError, match="tables differ"):
        module.load_table_weights({"user": weights["user"]})
    with pytest.raises(
        ArtifactError, match=r"table 'user' has shape \(3, 4\), this model's is \(30, 4\)"
    ):
        module.load_table_weights(weights | {"user": torch.zeros(3, 4)})


def test_widths_that_fbgemm_cannot_hold_are_refused_or_avoided(
    caplog: pytest.LogCaptureFixture,
) -> None:
    odd = Schema.parse(
        TREE | {"tables": {**TREE["tables"], "user": {"rows": 9, "dim": 6}}}, where="x"
    )
    with pytest.raises(ConfigError, match=r"tables.user: dim 6 is no multiple of 4"):
        embeddings(odd, "torchrec")
    assert embeddings(odd, "auto").backend == "plain"
    assert "user" in caplog.text


def test_auto_takes_torchrec_where_it_imports(schema: Schema) -> None:
    assert choose_backend(EmbeddingsConfig(), table_specs(schema)) == "torchrec"


def test_without_torchrec_auto_is_plain_and_says_so(
    schema: Schema, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "recsys.models.embeddings.torchrec", None)
    assert embeddings(schema, "auto").backend == "plain"
    assert "torchrec and fbgemm do not import here" in caplog.text
    with pytest.raises(ConfigError, match='set backend = "plain"'):
        embeddings(schema, "torchrec")


@each_backend
def test_a_schema_without_tables_has_blocks_of_dense_values(backend: str) -> None:
    tree = {
        "columns": {"a": "float32", "b": "float32", "y": "bool"},
        "features": {"a": {"kind": "numeric"}, "b": {"kind": "numeric", "side": "context"}},
        "tasks": {"y": {"label": "y"}},
    }
    module = embeddings(Schema.parse(tree, where="schema.toml"), backend)
    batch = replace(
        random_batch(Schema.parse(TREE, where="schema.toml"), 0),
        values_N=torch.empty(0, dtype=torch.long),
        lengths_FB=torch.empty(0, ROWS, dtype=torch.int32),
    )
    found = module(batch)
    assert (found.candidate_NI == batch.dense_BD[:, :1]).all()
    assert (found.user_UI == batch.dense_BD[:, 1:2]).all()
    module.set_learning_rate(RATE)
    assert module.table_weights() == optimizer_state(module) == {}


def test_events_are_left_aligned_with_zeros_behind() -> None:
    events, lengths = torch.arange(1.0, 7).view(3, 2), torch.tensor([2, 0, 1])
    padded, valid = pad(events, lengths)
    assert padded.tolist() == [[[1, 2], [3, 4]], [[0, 0], [0, 0]], [[5, 6], [0, 0]]]
    assert valid.tolist() == [[True, True], [False, False], [True, False]]
