"""The softmax of gates, in whatever layout it is computed."""

import torch

from recsys.models.gates import softmax_of_choices


def test_gates_are_a_softmax_over_experts_with_its_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    scores_BGE = torch.randn(5, 3, 4, generator=generator)
    # What a gate may not choose.
    scores_BGE[:, 1, 2] = -torch.inf
    slopes_BGE = torch.randn(5, 3, 4, generator=generator)
    ours, plain = (scores_BGE.clone().requires_grad_() for _ in range(2))

    found, expected = softmax_of_choices(ours), torch.softmax(plain, dim=-1)
    (found * slopes_BGE).sum().backward()
    (expected * slopes_BGE).sum().backward()

    # Another order of sums.
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-5, atol=1e-7)
    assert not found[:, 1, 2].any()


def test_gates_are_float32_whatever_their_scores_are() -> None:
    gate_BGE = softmax_of_choices(torch.randn(7, 2, 3).bfloat16())
    assert gate_BGE.dtype == torch.float32
    torch.testing.assert_close(gate_BGE.sum(dim=-1), torch.ones(7, 2))


def test_a_batch_without_rows_has_no_gates() -> None:
    assert softmax_of_choices(torch.empty(0, 2, 3)).shape == (0, 2, 3)
