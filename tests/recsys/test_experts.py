"""Which form a bank of experts takes."""

import pytest
import torch

from recsys.models.experts import ExpertBank, Form, choose_form


@pytest.mark.parametrize(
    ("hidden", "reads", "few", "many"),
    [
        ((8,), (0, 0, 0, 0), "wide", "wide"),
        ((8, 4), (0, 0, 0, 0), "wide", "loop"),
        ((8,), (0, 0, 1, 1), "wide", "wide"),
        ((8, 4), (0, 0, 1, 1), "wide", "loop"),
        ((8,), (0, 1, 2, 3), "batched", "loop"),
    ],
)
def test_the_form_on_a_cpu_follows_rows_depth_and_shared_inputs(
    hidden: tuple[int, ...], reads: tuple[int, ...], few: Form, many: Form
) -> None:
    bank, streams = ExpertBank(1, hidden, experts=4, inputs=reads), max(reads) + 1
    # Four experts of width 8 give 2^19 numbers in the first layer for 2^14 rows.
    for rows, form in ((2**14, few), (2**14 + 1, many)):
        x = torch.empty(rows, 1) if streams == 1 else torch.empty(rows, streams, 1)
        assert choose_form(bank, x) == form
